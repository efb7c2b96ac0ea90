"""The objective ||f(x)||^2 around one point of a search: its derivatives, their scales, and the secant term."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ._quadratic_model import QuadraticModel


class Point(Protocol):
    """What a problem returns for a point x (p,).

    f (M,) is not finite where the point is of no use. It is a difference of terms of size ``cancellation``, and comes
    from a linear problem with ``deficiency`` columns that depend on others.
    """

    @property
    def x(self) -> np.ndarray: ...

    @property
    def f(self) -> np.ndarray: ...

    @property
    def cancellation(self) -> float: ...

    @property
    def deficiency(self) -> int: ...


class Slopes(Protocol):
    """Derivatives at a point.

    J (M, p), the step of each variable up to which they may be trusted (p,), a mask of those that leave f alone because
    linear parameters are on their bounds (p,), and how many more directions of x rounding hides.
    """

    @property
    def jacobian(self) -> np.ndarray: ...

    @property
    def reach(self) -> np.ndarray: ...

    @property
    def silent(self) -> np.ndarray: ...

    @property
    def hidden(self) -> int: ...


LOSS = 1e-4
"""A step after which the derivative by some variable is this much smaller went too far: to where the basis is flat."""

SECANT_LIMIT = 300
"""Parameters up to which the second-order term, one eigendecomposition for each step, is worth its time."""


@dataclass
class Local:
    """The objective around one point, in the scaled variables D x.

    Attributes:
        point: the point.
        objective: ||f||^2.
        norm: ||f||.
        noise: rounding error of the objective.
        j: J, (M, p).
        gradient: J^T f, (p,).
        d: largest column norms of J so far, (p,).
        weight: d, 1 where that is zero.
        gauss_newton: the model without the secant term.
        s: the secant term, or None.
        free: mask (p,) of the variables that a step may move.
        silent: mask (p,) of the variables that leave f alone because linear parameters are on their bounds.
        hidden: how many directions of x have no influence, besides these.
        slope: the largest decrease of ||f|| for a unit step of one variable.
    """

    point: Any
    objective: float
    norm: float
    noise: float
    j: np.ndarray
    gradient: np.ndarray
    d: np.ndarray
    weight: np.ndarray
    gauss_newton: QuadraticModel
    s: np.ndarray | None
    free: np.ndarray
    silent: np.ndarray
    hidden: int
    slope: float

    def size(self) -> float:
        """The length of x."""
        return float(np.linalg.norm(self.d * self.point.x))

    def lost(self, before: "Local") -> bool:
        """Whether a variable has all but lost its influence since ``before``."""
        old, new = np.linalg.norm(before.j, axis=0), np.linalg.norm(self.j, axis=0)
        return bool((before.free & ~self.silent & (new < LOSS * old)).any())


@dataclass(frozen=True)
class Linearizer:
    """Makes what is known of the objective around a point.

    Attributes:
        linearise: point -> slopes.
        lower: lower bounds (p,).
        upper: upper bounds (p,); equal ones hold a variable.
        scale: a norm of the data, against which the rounding of f is measured.
        eps: relative rounding of f.
        tol: tolerance of the cosine between f and the columns of J.
    """

    linearise: Callable[[Any], Slopes]
    lower: np.ndarray
    upper: np.ndarray
    scale: float
    eps: float
    tol: float

    def noise(self, point: Any, norm: float) -> float:
        """Rounding error of the objective at a point."""
        return self.eps * norm * (norm + self.scale + point.cancellation)

    def at(self, point: Any, before: Local | None) -> tuple[Local, str, np.ndarray | None]:
        """The objective around ``point``, a key of REASONS if the search ends there, and how far slopes are good."""
        x, f = point.x, point.f
        objective = float(f @ f)
        norm = objective**0.5
        p = x.size
        d = np.zeros(p) if before is None else before.d
        blank = np.zeros(p)
        local = Local(
            point, objective, norm, self.noise(point, norm), np.zeros((f.size, p)), blank, d, np.ones(p),
            QuadraticModel(np.zeros((p, p)), blank), None, np.zeros(p, bool), np.zeros(p, bool), 0, 0.0,
        )  # fmt: skip
        if norm <= 4 * self.eps * self.scale:
            return local, "exact", None
        slopes = self.linearise(point)
        j = slopes.jacobian
        if not np.isfinite(j).all():
            return local, "derivative", None
        columns = np.linalg.norm(j, axis=0)
        q, r = np.linalg.qr(j)
        qtf = q.T @ f
        g = r.T @ qtf
        d = np.maximum(d, columns)
        weight = np.where(d > 0, d, 1.0)
        local.j, local.gradient, local.d, local.weight = j, g, d, weight
        local.silent, local.hidden = slopes.silent, slopes.hidden
        local.gauss_newton = QuadraticModel(r / weight, qtf)
        if before is not None and p <= SECANT_LIMIT:
            local.s = secant_term(before, local)
        local.free = (self.lower < self.upper) & ~((x <= self.lower) & (g >= 0)) & ~((x >= self.upper) & (g <= 0))
        local.free &= columns > 0
        moving = columns[local.free]
        if not moving.size:
            flat = not columns.any() and (self.lower < self.upper).any()
            return local, "flat" if flat else "bounds", slopes.reach
        local.slope = float(np.max(np.abs(g[local.free]) / moving))
        return local, "gradient" if local.slope <= self.tol * norm else "", slopes.reach


def secant_term(before: Local, after: Local) -> np.ndarray | None:
    """Dennis, Gay and Welsch's update: the S nearest to the sized old one with S step = (J - J_before)^T f.

    All in the scaled variables, whose units the new point sets. None where the objective is not convex along the step.
    """
    weight = after.weight
    step = (after.point.x - before.point.x) * weight
    g, change = after.gradient / weight, (after.gradient - before.gradient) / weight
    target = g - (before.j.T @ after.point.f) / weight
    if before.s is None:
        s = np.zeros((step.size, step.size))
    else:
        s = before.s * np.outer(before.weight / weight, before.weight / weight)
    curvature, old = float(change @ step), float(step @ s @ step)
    if not curvature > 0:
        return None
    s = s * (min(1.0, abs(float(target @ step) / old)) if old else 1.0)
    miss, unit = target - s @ step, change / curvature
    twice = np.outer(miss, unit)
    s = s + twice + twice.T - float(miss @ step) * np.outer(unit, unit)
    return s if np.isfinite(s).all() else None
