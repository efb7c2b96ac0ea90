"""A separable problem as the solver sees it: points with a projected residual, and their derivatives."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from .._mlx import dtypes, fail
from . import _arguments as arguments
from ._basis import Basis, to_numpy
from ._determined import Determined
from ._projection import Derivatives, Projection, differentiate, project

NUDGE = 0.03
"""How far from a start with dependent columns another is tried, in changes of a column by its own length."""


class ProjectedPoint(NamedTuple):
    """A point of the solver.

    Where the basis is not finite, ``f`` is infinite and ``projection`` None.

    Attributes:
        x: alpha, (p,).
        f: projected residual, flat, in units of ``SeparableProblem.unit``.
        phi: basis, (m, n).
        projection: what eliminated the linear parameters.
        deficiency: how many linear parameters are not determined, those on bounds left out.
        cancellation: size of the terms of which f is a difference.
    """

    x: np.ndarray
    f: np.ndarray
    phi: np.ndarray
    projection: Projection | None
    deficiency: int = 0
    cancellation: float = 0.0


class Linearisation(NamedTuple):
    """What the solver needs of the derivatives at a point.

    Attributes:
        jacobian: d f / d x, (M, p); directions of x that rounding hides are projected out, so that the column of a
            parameter without influence is zero.
        reach: how far each parameter may go before a column of the basis changes by its own length, (p,).
        silent: mask (p,) of the parameters whose columns have the coefficient 0, on a bound.
        hidden: how many directions are projected out, the silent ones apart.
    """

    jacobian: np.ndarray
    reach: np.ndarray
    silent: np.ndarray
    hidden: int


@dataclass(frozen=True)
class Objective:
    """What is minimised beside the basis: the arguments of :func:`pinvnn.varpro.varpro` of these names."""

    y: mx.array
    weights: Any = None
    l2: Any = 0.0
    linear_bounds: Any = (None, None)
    full: bool = True


class SeparableProblem:
    """min over alpha, c of sum w (y - Phi(alpha) c)^2 + sum l2 c^2, without c. A call evaluates the basis once."""

    def __init__(self, basis: Basis, objective: Objective):
        self.basis, self.objective, self.shape = basis, objective, objective.y.shape
        self.weights = arguments.row_weights(objective.weights, objective.y)
        self.y = arguments.right_hand_sides(objective.y, self.weights)
        self.full = objective.full
        self.root = None if self.weights is None else np.sqrt(self.weights)[:, None]
        self.rows = len(self.y) if self.weights is None else int(np.count_nonzero(self.weights))
        b = self.weighted(self.y)
        peak = float(np.max(np.abs(b), initial=0.0))
        self.unit = 2.0 ** np.floor(np.log2(peak)) if 0 < peak < np.inf else 1.0
        self.b = b / self.unit
        self.penalty: np.ndarray | None = None
        self.linear_bounds: tuple[np.ndarray, np.ndarray] | None = None
        self.dtype = basis.dtype
        self._last: tuple[ProjectedPoint, Derivatives] | None = None

    def start(self, x: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> ProjectedPoint:
        """The point to start from, at or beside ``x``, after the checks that need the basis there."""
        x = arguments.finite("alpha", x)
        phi = self.basis(x)
        arguments.check_basis(phi, len(self.y))
        n, k = phi.shape[1], self.y.shape[1]
        self.dtype = phi.dtype
        solution = (n, *self.shape[1:])
        self.penalty = arguments.penalty_roots(self.objective.l2, solution)
        bounds = arguments.linear_box(self.objective.linear_bounds, solution)
        if bounds is not None:
            self.linear_bounds = bounds[0] / self.unit, bounds[1] / self.unit
        if self.penalty is None and self.rows * k < n * k + x.size:
            got = f"{self.rows * k} of positive weight for {n * k} linear and {x.size} nonlinear parameters"
            fail(arguments.NAME, "the data must not be fewer than the parameters", got, "Use a smaller basis, or l2.")
        point = self._separate(x, phi)
        if point.projection is None:
            fail(arguments.NAME, "basis must be finite at the start", "NaN or Inf", "Start elsewhere.")
        if self.rank(point) == 0:
            fail(arguments.NAME, "basis must not be zero at the start", "rank 0", "Start elsewhere.")
        return self._beside(point, lower, upper) if point.deficiency else point

    def _beside(self, point: ProjectedPoint, lower: np.ndarray, upper: np.ndarray) -> ProjectedPoint:
        """A point near one with dependent columns where fewer of them are, if there is one; otherwise the same.

        Two equal rates, or the rate 0 beside a constant, would stay together: no derivative parts them.
        """
        rate = self.derivatives(point).rate
        known = (rate > 0) & np.isfinite(rate)
        random = np.random.default_rng(0)
        away = NUDGE * random.uniform(0.5, 1, rate.size) * random.choice([-1, 1], rate.size)
        x = point.x + np.where(known, away / np.where(known, rate, 1.0), 0.0)
        other = self(np.clip(x, lower, upper))
        return other if other.projection is not None and other.deficiency < point.deficiency else point

    def __call__(self, x: np.ndarray) -> ProjectedPoint:
        x = self.basis.round(x)
        return self._separate(x, self.basis(x))

    def linearise(self, point: ProjectedPoint) -> Linearisation:
        """The Jacobian that leads a step from ``point``."""
        d = self.derivatives(point)
        silent = d.rounding == 0
        with np.errstate(divide="ignore"):
            reach = 1 / d.rate
        if not np.isfinite(d.jacobian).all():
            return Linearisation(d.jacobian, reach, silent, 0)
        determined = self.determined(d)
        hidden = int((~determined.kept).sum() - silent.sum())
        return Linearisation(determined.clean(d.jacobian), reach, silent, hidden)

    def determined(self, d: Derivatives) -> Determined:
        """Which directions of alpha change the residual by more than rounding does."""
        return Determined.of(d.kaufman, dtypes.eps(self.dtype) * d.rounding)

    def derivatives(self, point: ProjectedPoint) -> Derivatives:
        """Of the projection at ``point``. The last ones are kept."""
        assert point.projection is not None
        if self._last is None or self._last[0] is not point:
            tangents = map(self.weighted, self.basis.tangents(point.x, point.phi.size))
            self._last = point, differentiate(point.projection, tangents, point.x.size, self.full)
        return self._last[1]

    def rank(self, point: ProjectedPoint) -> int:
        """Rank of the weighted basis, the penalty left out."""
        if self.penalty is None and point.projection is not None:
            return point.projection.rank
        return project(self.weighted(point.phi), self.b, None, self.dtype).rank

    def weighted(self, rows: np.ndarray) -> np.ndarray:
        """W^1/2 times ``rows``; zero in rows of weight 0, whatever they hold."""
        if self.root is None:
            return rows
        return np.where(self.root > 0, self.root * rows, 0.0)

    def _separate(self, x: np.ndarray, phi: mx.array) -> ProjectedPoint:
        values = to_numpy(phi)
        useless = ProjectedPoint(x, np.full(1, np.inf), values, None)
        rows = self.weighted(values)
        if not np.isfinite(rows).all():
            return useless
        try:
            projection = project(rows, self.b, self.penalty, self.dtype, self.linear_bounds)
        except np.linalg.LinAlgError:  # Finite, but too large to be factored.
            return useless
        if not np.isfinite(projection.residual).all():
            return useless
        f = projection.residual.ravel()
        return ProjectedPoint(x, f, values, projection, projection.deficiency, projection.cancellation)
