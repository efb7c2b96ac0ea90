"""Levenberg and Marquardt's method in a scaled trust region, with bounds and a secant term.

Minimises F(x) = ||f(x)||^2 / 2 for lower <= x <= upper. A step minimises a quadratic model (`_quadratic_model.py`) over
the ball ||D p|| <= radius and the box; D holds the largest column norms of J so far, so that the path does not depend
on the units of x (Moré 1978, doi 10.1007/BFb0067700). A step is accepted by the ratio of the actual to the predicted
reduction; a trial point where f is not finite is refused, and the ball shrinks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from ._quadratic_model import QuadraticModel


class Point(Protocol):
    """What a problem returns for a point: f (M,) at x (p,), not finite where the point is of no use."""

    @property
    def x(self) -> np.ndarray: ...

    @property
    def f(self) -> np.ndarray: ...


class Step(NamedTuple):
    """One trial step, as the solver's callback sees it.

    Attributes:
        step: 1, 2, ...
        objective: the objective ||f||^2 after the step.
        trial: the objective at the trial point; inf where f is not finite there.
        accepted: whether the trial point was taken.
        length: the length of the trial step relative to x, in the scaled norm.
        point: the point after the step.
    """

    step: int
    objective: float
    trial: float
    accepted: bool
    length: float
    point: Any


class Outcome(NamedTuple):
    """The last point accepted, the trial steps it took, whether it is a minimum, and why the iteration ended."""

    point: Any
    steps: int
    converged: bool
    reason: str


REASONS = {
    "step": (True, "the last step is below tol"),
    "gradient": (True, "the residual is orthogonal to its derivatives, to tol"),
    "exact": (True, "the residual is zero to rounding"),
    "rounding": (True, "the objective has no decrease left that rounding does not hide"),
    "bounds": (True, "every parameter is held by a bound"),
    "flat": (False, "the residual does not depend on alpha here; start elsewhere"),
    "derivative": (False, "the derivative of the basis is not finite here"),
    "not finite": (False, "the basis is not finite at any trial point near the last one"),
    "stalled": (False, "no step brings the decrease that the derivative predicts; is the basis smooth?"),
    "max_steps": (False, "the steps ran out"),
    "stopped": (False, "the callback asked for it"),
}
"""Why an iteration ends: whether that is a minimum, and what it means."""


SECANT_LIMIT = 300
"""Parameters up to which the second-order term, one eigendecomposition for each step, is worth its time."""


class TrustRegionSearch:
    """One minimisation.

    Args:
        evaluate: x (p,) -> point.
        jacobian: point -> J (M, p), called once for each accepted point but perhaps the last.
        lower, upper: bounds (p,); equal ones hold a variable.
        scale: a norm of the data, against which the rounding of f is measured.
        eps: relative rounding of f.
        tol: tolerance of the relative step, and of the cosine between f and the columns of J.
    """

    def __init__(
        self,
        evaluate: Callable[[np.ndarray], Any],
        jacobian: Callable[[Any], np.ndarray],
        lower: np.ndarray,
        upper: np.ndarray,
        *,
        scale: float,
        eps: float,
        tol: float,
    ):
        self.evaluate, self.jacobian = evaluate, jacobian
        self.lower, self.upper = lower, upper
        self.scale, self.eps, self.tol = scale, eps, tol
        self.j = self.gradient = np.zeros(0)
        self.s: np.ndarray | None = None
        self.d = np.zeros(lower.size)
        self.radius = self.previous = np.inf
        self.secant = False

    def run(self, start: Point, max_steps: int, callback: Callable[[Step], object] | None = None) -> Outcome:
        """Minimise from ``start``, where f is finite, in at most ``max_steps`` trial steps; a true callback ends it."""
        self.point = start
        ending = self._linearise(None)
        steps = 0
        while not ending and steps < max_steps:
            steps += 1
            before = self.point
            step, ending = self._step(steps)
            if callback is not None and callback(step):
                ending = ending or "stopped"
            if step.accepted and not ending:
                ending = self._linearise(before)
        ending = ending or "max_steps"
        converged, meaning = REASONS[ending]
        return Outcome(self.point, steps, converged, f"{ending}: {meaning}")

    def _linearise(self, before: Any) -> str:
        """New models at the current point; a key of REASONS if the search ends there."""
        x, f = self.point.x, self.point.f
        self.objective = float(f @ f)
        self.norm = self.objective**0.5
        if self.norm <= 4 * self.eps * self.scale:
            return "exact"
        j = self.jacobian(self.point)
        if not np.isfinite(j).all():
            return "derivative"
        columns = np.linalg.norm(j, axis=0)
        q, r = np.linalg.qr(j)
        qtf = q.T @ f
        g = r.T @ qtf
        if before is not None and x.size <= SECANT_LIMIT:
            self._update_secant(x - before.x, g, g - self.gradient, self.j.T @ f)
        self.j, self.gradient, self.d = j, g, np.maximum(self.d, columns)
        self.weight = np.where(self.d > 0, self.d, 1.0)
        self.gauss_newton = QuadraticModel(r / self.weight, qtf)
        self.free = (self.lower < self.upper) & ~((x <= self.lower) & (g >= 0)) & ~((x >= self.upper) & (g <= 0))
        if not np.isfinite(self.radius):
            self.radius = float(np.linalg.norm(self.weight * x)) or float(np.linalg.norm(self.weight))
        moving = columns[self.free]
        if not moving.any():
            return "bounds" if columns.any() else "flat"
        self.slope = float(np.max(np.abs(g[self.free]) / np.where(moving > 0, moving, 1.0)))
        return "gradient" if self.slope <= self.tol * self.norm else ""

    def _update_secant(self, step: np.ndarray, g: np.ndarray, change: np.ndarray, mixed: np.ndarray) -> None:
        """Dennis, Gay and Welsch's update: the S nearest to the sized old one with S step = (J - J_before)^T f."""
        s = np.zeros((step.size, step.size)) if self.s is None else self.s
        target = g - mixed
        curvature, old = float(change @ step), float(step @ s @ step)
        if curvature <= 0:
            self.s, self.secant = None, False
            return
        s = s * (min(1.0, abs(float(target @ step) / old)) if old else 1.0)
        miss = target - s @ step
        twice = np.outer(miss, change) / curvature
        self.s = s + twice + twice.T - float(miss @ step) * np.outer(change, change) / curvature**2

    def _step(self, number: int) -> tuple[Step, str]:
        """One trial step from the current point, and a key of REASONS if the search ends with it."""
        x, weight = self.point.x, self.weight
        model, other = self.gauss_newton, None
        if self.s is not None:
            other = QuadraticModel(model.r, model.qtf, self.s / np.outer(weight, weight))
            if self.secant and other.is_convex(self.free):
                model, other = other, model
        # Below `noise` the objective cannot tell two points apart. The steps still can, as long as they shrink.
        noise = 10 * self.eps * self.norm * (self.norm + self.scale)
        box = (self.lower - x) * weight, (self.upper - x) * weight
        move, limited = model.minimum(*box, self.free, np.inf)
        reach = max(model.decrease(move), 0.5 * self.slope**2)  # The latter by one variable alone.
        below_noise = reach <= noise
        if not below_noise:
            move, limited = model.minimum(*box, self.free, self.radius)
        target = np.where(move <= box[0], self.lower, np.where(move >= box[1], self.upper, x + move / weight))
        trial = self.evaluate(np.clip(target, self.lower, self.upper))
        move = (trial.x - x) * weight
        length, size = float(np.linalg.norm(move)), float(np.linalg.norm(weight * x))

        predicted = model.decrease(move)
        finite = bool(np.isfinite(trial.f).all())
        objective = float(trial.f @ trial.f) if finite else np.inf
        decrease = 0.5 * (self.objective - objective)
        if below_noise:
            accepted = decrease >= -noise and length < self.previous
        else:
            ratio = decrease / predicted if predicted > 0 else -np.inf
            accepted = ratio > 1e-4
            self._resize(ratio, length, finite)
            if other is not None:
                closer = abs(model.decrease(move) - decrease) <= abs(other.decrease(move) - decrease)
                self.secant = accepted and closer == (model.s is not None)
        self.previous = length if accepted and not limited else np.inf
        if accepted:
            self.point = trial
        best = objective if accepted else self.objective
        step = Step(number, best, objective, accepted, length / (size or 1.0), self.point)

        if not limited and (accepted or below_noise) and length <= self.tol * size:
            return step, "step"
        hidden = below_noise or (max(predicted, abs(decrease)) <= noise and reach <= 1e4 * noise)
        if not accepted and hidden:
            return step, "rounding"
        if not accepted and self.radius <= self.eps * size:
            return step, "stalled" if finite else "not finite"
        return step, ""

    def _resize(self, ratio: float, length: float, finite: bool) -> None:
        """The next radius, from the ratio of the actual to the predicted reduction."""
        if ratio > 0.75:
            self.radius = max(self.radius, 2 * length)
        elif not ratio > 0.25:
            self.radius = (0.5 if finite else 0.1) * min(self.radius, length or self.radius)
