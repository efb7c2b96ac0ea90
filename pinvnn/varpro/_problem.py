"""A separable problem as the solver sees it: points with a projected residual, and their derivatives."""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from .._mlx import fail
from . import _arguments as arguments
from ._basis import Basis, to_numpy
from ._projection import Derivatives, Projection, differentiate, project


class ProjectedPoint(NamedTuple):
    """A point of the solver: flat ``x`` (p,), flat residual ``f``, basis ``phi`` (m, n) and ``projection``.

    Where the basis is not finite, ``f`` is infinite and ``projection`` None.
    """

    x: np.ndarray
    f: np.ndarray
    phi: np.ndarray
    projection: Projection | None


class SeparableProblem:
    """min over alpha, c of sum w (y - Phi(alpha) c)^2 + sum l2 c^2, without c. A call evaluates the basis once."""

    def __init__(self, basis: Basis, y: mx.array, weights: Any, full: bool):
        self.basis, self.full, self.shape = basis, full, y.shape
        self.y = arguments.right_hand_sides(y)
        weights = arguments.row_weights(weights, len(y))
        self.root = None if weights is None else np.sqrt(weights)[:, None]
        self.rows = len(y) if weights is None else int(np.count_nonzero(weights))
        self.b = self.weighted(self.y)
        self.penalty: np.ndarray | None = None
        self.dtype = basis.dtype
        self._last: tuple[ProjectedPoint, Derivatives] | None = None

    def start(self, l2: Any) -> ProjectedPoint:
        """The starting point, after the checks that need the basis there."""
        x = arguments.finite("alpha", self.basis.start)
        phi = self.basis(x)
        arguments.check_basis(phi, len(self.y))
        n, k = phi.shape[1], self.y.shape[1]
        self.dtype = phi.dtype
        self.penalty = arguments.penalty_roots(l2, (n, *self.shape[1:]))
        if self.penalty is None and self.rows * k < n * k + x.size:
            got = f"{self.rows * k} of positive weight for {n * k} linear and {x.size} nonlinear parameters"
            fail(arguments.NAME, "the data must not be fewer than the parameters", got, "Use a smaller basis, or l2.")
        point = self._separate(x, phi)
        if point.projection is None:
            fail(arguments.NAME, "basis must be finite at the start", "NaN or Inf", "Start elsewhere.")
        if self.rank(point) == 0:
            fail(arguments.NAME, "basis must not be zero at the start", "rank 0", "Start elsewhere.")
        return point

    def __call__(self, x: np.ndarray) -> ProjectedPoint:
        x = self.basis.round(x)
        return self._separate(x, self.basis(x))

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
        return rows if self.root is None else self.root * rows

    def _separate(self, x: np.ndarray, phi: mx.array) -> ProjectedPoint:
        values = to_numpy(phi)
        useless = ProjectedPoint(x, np.full(1, np.inf), values, None)
        if not np.isfinite(values).all():
            return useless
        try:
            projection = project(self.weighted(values), self.b, self.penalty, self.dtype)
        except np.linalg.LinAlgError:  # Finite, but too large to be factored.
            return useless
        if not np.isfinite(projection.residual).all():
            return useless
        return ProjectedPoint(x, projection.residual.ravel(), values, projection)
