"""What a separable fit returns: parameters, their covariance and the account of how they were found."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from .._factor import default_rtol
from ._basis import Basis, to_mlx, to_numpy
from ._problem import SeparableProblem
from ._projection import Derivatives, Projection
from ._trust_region import Outcome
from ._types import BasisFunction, Tree


class Evaluations(NamedTuple):
    """How often the basis was evaluated (``basis``) and how often all its derivatives were (``derivatives``)."""

    basis: int
    derivatives: int


class StandardErrors(NamedTuple):
    """Standard errors of the parameters: ``alpha`` and ``linear`` as :class:`VarProResult` has them."""

    alpha: Tree
    linear: mx.array


class Prediction(NamedTuple):
    """A fitted curve: its ``mean`` and the standard error of that mean, both ``(m',)`` or ``(m', k)``."""

    mean: mx.array
    standard_error: mx.array


@dataclass(frozen=True)
class ParameterCovariance:
    r"""The covariance s^2 (F^T F)^-1 of alpha and c, F = [dA c, A] the Jacobian of the full problem, in parts.

    With K = (I - A A^+) dA c = Q_K R_K and T = -A^+ dA c the inverse has the blocks

        alpha: s^2 (K^T K)^-1 = E E^T, E = s R_K^-1,    linear, alpha: T E E^T,    linear: s^2 Z Z^T + T E E^T T^T.

    Attributes:
        variance: s^2.
        alpha_root: E, (p, p), NaN where the data do not determine alpha; zero rows for the alpha held by equal bounds.
        mixed_root: T E, (n, k, p).
        linear_root: s Z for each right-hand side, k arrays (n, r); NaN where the basis lacks rank.
    """

    variance: float
    alpha_root: np.ndarray
    mixed_root: np.ndarray
    linear_root: list[np.ndarray]

    @classmethod
    def of(cls, projection: Projection, d: Derivatives, variance: float, free: np.ndarray, dtype: mx.Dtype):
        """From the projection at the solution and its derivatives; ``free`` (p,) marks the alpha that were fitted."""
        n, k = projection.linear.shape
        if not all(np.isfinite(part).all() for part in d):
            d = Derivatives(*[np.full_like(part, np.nan) for part in d])
        alpha_root = np.zeros((free.size, int(free.sum())))
        alpha_root[free] = inverse_root(d.kaufman[:, free], dtype) * np.sqrt(variance)
        linear_root = [np.zeros(0)] * k
        for f in projection.factors:
            for t in f.columns:
                linear_root[t] = f.z * np.sqrt(variance) if f.z.shape[1] == n else np.full((n, n), np.nan)
        return cls(variance, alpha_root, (d.sensitivity @ alpha_root).reshape(n, k, -1), linear_root)

    def covariance(self) -> np.ndarray:
        """All of it, (p + n k, p + n k): alpha first, then the linear parameters in row-major order."""
        n, k, _ = self.mixed_root.shape
        root = np.vstack([self.alpha_root, self.mixed_root.reshape(n * k, -1)])
        result = root @ root.T
        p = len(self.alpha_root)
        for t, z in enumerate(self.linear_root):
            result[p + t :: k, p + t :: k] += z @ z.T
        return result

    def standard_errors(self) -> tuple[np.ndarray, np.ndarray]:
        """Square roots of the diagonal: of alpha, (p,), and of the linear parameters, (n, k)."""
        linear = np.stack([np.sum(z**2, axis=1) for z in self.linear_root], axis=1)
        return np.linalg.norm(self.alpha_root, axis=1), np.sqrt(np.sum(self.mixed_root**2, axis=2) + linear)

    def of_curve(self, phi: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Standard error (m', k) of Phi c, from ``phi`` (m', n) and its derivatives ``slopes`` = D_j c, (m', k, p)."""
        through_alpha = slopes @ self.alpha_root + np.einsum("mn,nkp->mkp", phi, self.mixed_root)
        through_linear = np.stack([np.sum((phi @ z) ** 2, axis=1) for z in self.linear_root], axis=1)
        return np.sqrt(np.sum(through_alpha**2, axis=2) + through_linear)


def inverse_root(k: np.ndarray, dtype: mx.Dtype) -> np.ndarray:
    """R^-1 with R^T R = K^T K, (p, p); NaN where K (M, p), its columns brought to one length, lacks rank."""
    p = k.shape[1]
    lengths = np.linalg.norm(k, axis=0)
    if p and len(k) >= p and lengths.all() and np.isfinite(lengths).all():
        r = np.linalg.qr(k / lengths, mode="r")
        s = np.linalg.svd(r, compute_uv=False)
        if s[-1] > default_rtol(len(k), p, dtype) * s[0]:
            return np.linalg.solve(r, np.eye(p)) / lengths[:, None]
    return np.full((p, p), np.nan)


@dataclass(frozen=True, eq=False)
class VarProResult:
    """The result of :func:`pinvnn.varpro.varpro`.

    Attributes:
        alpha: the nonlinear parameters, in the tree that was given.
        linear: the linear parameters, ``(n,)`` for ``y`` of shape ``(m,)``, otherwise ``(n, k)``.
        residuals: ``y - Phi(alpha) linear``, unweighted, of the shape of ``y``.
        rss: the (weighted) sum of squared residuals over all right-hand sides, without the penalty.
        steps: trial steps taken.
        converged: whether the last point is a minimum to the tolerance.
        reason: why the iteration ended: a keyword (see docs/varpro.md), a colon and an explanation.
        standard_errors: of alpha and of the linear parameters, shaped as these; NaN where the data do not determine
            them.
        residual_std: square root of rss / (degrees of freedom); NaN without any.
        rank: rank of the (weighted) basis at the solution.
        route: which Jacobian, mode of differentiation and dtype were used.
        evaluations: how often the basis and its derivatives were evaluated.
    """

    alpha: Tree
    linear: mx.array
    residuals: mx.array
    rss: mx.array
    steps: int
    converged: bool
    reason: str
    standard_errors: StandardErrors
    residual_std: mx.array
    rank: int
    route: str
    evaluations: Evaluations
    _parameter_covariance: ParameterCovariance = field(repr=False)
    _basis: Basis = field(repr=False)
    _x: np.ndarray = field(repr=False)

    @cached_property
    def covariance(self) -> mx.array:
        """Covariance of all parameters, ``(p + n k, p + n k)``: alpha as ``tree_flatten`` orders it, then ``linear``
        row by row.

        The linearisation at the solution: residual variance times ``(F^T F + diag(0, l2))^-1``, F the Jacobian of
        ``Phi(alpha) linear`` in all parameters. It takes no notice of bounds, except that an alpha held by equal ones
        has zero rows.
        """
        return to_mlx(self._parameter_covariance.covariance(), self._basis.dtype)

    def predict(self, basis: BasisFunction | None = None, inputs: tuple[Any, ...] = ()) -> Prediction:
        """The fitted curve and its standard error, at other points where a ``basis`` with other rows or other
        ``inputs`` is given.

        Args:
            basis: alpha -> ``(m', n)``; the fitted one by default. A module that holds alpha itself is given again.
            inputs: further arguments of the basis.
        """
        fitted = self._basis
        if basis is None and not inputs:
            inputs = fitted.inputs
        tree = None if fitted.module is not None else self.alpha
        there = Basis(basis or fitted.function, tree, inputs, fitted.dtype)
        phi = to_numpy(there(self._x))
        c = to_numpy(self.linear)
        slopes = np.stack([d @ c.reshape(phi.shape[1], -1) for d in there.tangents(self._x, phi.size)], axis=-1)
        error = self._parameter_covariance.of_curve(phi, slopes)
        mean = phi @ c
        return Prediction(to_mlx(mean, fitted.dtype), to_mlx(error.reshape(mean.shape), fitted.dtype))


def summarise(problem: SeparableProblem, outcome: Outcome, free: np.ndarray) -> VarProResult:
    """The result of a fit that ended at ``outcome``; ``free`` (p,) marks the alpha that were fitted."""
    point, basis, dtype = outcome.point, problem.basis, problem.basis.dtype
    projection: Projection = point.projection
    (m, k), n = problem.y.shape, projection.linear.shape[0]
    rss = float(np.sum(projection.residual[:m] ** 2))
    # The trace of the hat matrix: the rank of the basis without a penalty, less with one.
    linear_freedom = sum(float(np.sum(f.q[:m] ** 2)) * f.columns.size for f in projection.factors)
    freedom = problem.rows * k - int(free.sum()) - linear_freedom
    variance = rss / freedom if freedom > 1e-6 else np.nan
    uncertainty = ParameterCovariance.of(projection, problem.derivatives(point), variance, free, problem.dtype)
    errors = uncertainty.standard_errors()
    linear_shape = (n, *problem.shape[1:])
    kind = "Golub-Pereyra" if problem.full else "Kaufman"
    return VarProResult(
        alpha=basis.tree(point.x),
        linear=to_mlx(projection.linear.reshape(linear_shape), dtype),
        residuals=to_mlx((problem.y - point.phi @ projection.linear).reshape(problem.shape), dtype),
        rss=to_mlx(np.array(rss), dtype),
        steps=outcome.steps,
        converged=outcome.converged,
        reason=outcome.reason,
        standard_errors=StandardErrors(basis.tree(errors[0]), to_mlx(errors[1].reshape(linear_shape), dtype)),
        residual_std=to_mlx(np.sqrt(np.array(variance)), dtype),
        rank=problem.rank(point),
        route=f"{kind} Jacobian by {basis.mode} mode, basis in {str(dtype).split('.')[-1]}",
        evaluations=Evaluations(basis.evaluations, basis.derivatives),
        _parameter_covariance=uncertainty,
        _basis=basis,
        _x=point.x,
    )
