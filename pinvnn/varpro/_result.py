"""What a separable fit returns: parameters, their covariance and the account of how they were found."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from .._mlx import dtypes
from ._basis import Basis, entries, to_mlx, to_numpy
from ._covariance import ParameterCovariance
from ._problem import SeparableProblem
from ._projection import Projection
from ._trust_region import Outcome
from ._types import BasisFunction, Tree, WeightsAre


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
        standard_errors: of alpha and of the linear parameters, shaped as these; NaN for the undetermined ones, 0 for
            alpha held by equal bounds and for linear parameters on a bound.
        undetermined: names of the parameters that the data do not determine, such as ``"alpha[1]"`` or
            ``"linear[0, 2]"``: others could take any value beside them. Empty if there are none.
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
    undetermined: tuple[str, ...]
    residual_std: mx.array
    rank: int
    route: str
    evaluations: Evaluations
    _parameter_covariance: ParameterCovariance = field(repr=False)
    _basis: Basis = field(repr=False)
    _x: np.ndarray = field(repr=False)

    @cached_property
    def covariance(self) -> mx.array:
        """Covariance of all parameters, ``(p + n k, p + n k)``, alpha as ``tree_flatten`` orders it, then ``linear``.

        The latter row by row. Of the linearisation at the solution, the residual variance times
        ``(F^T F + diag(0, l2))^-1``, F the Jacobian of ``Phi(alpha) linear`` in all parameters. It takes no notice of
        bounds, except that an alpha held by equal ones has zero rows.
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


def summarise(problem: SeparableProblem, outcome: Outcome, free: np.ndarray, weights_are: WeightsAre) -> VarProResult:
    """The result of a fit that ended at ``outcome``; ``free`` (p,) marks the alpha that were fitted."""
    point, basis, dtype, unit = outcome.point, problem.basis, problem.basis.dtype, problem.unit
    projection: Projection = point.projection
    (m, k), n = problem.y.shape, projection.linear.shape[0]
    linear, linear_shape = projection.linear * unit, (n, *problem.shape[1:])
    rss = float(np.sum(projection.residual[:m] ** 2))
    root = ParameterCovariance.of(projection, problem.derivatives(point), free, problem.dtype)
    # The trace of the hat matrix: the rank of the basis without a penalty, less with one.
    linear_freedom = sum(float(np.sum(f.q[:m] ** 2)) * f.columns.size for f in projection.factors)
    rows = problem.rows if weights_are != "counts" or problem.weights is None else float(np.sum(problem.weights))
    freedom = rows * k - root.alpha_root.shape[1] - linear_freedom
    nominal = problem.rows * k - int(free.sum()) - linear_freedom
    std = np.sqrt(rss / freedom) if min(freedom, nominal) > 1e-6 else np.nan
    uncertainty = root.scaled(1 / unit if weights_are == "inverse variances" else std, unit)
    errors = uncertainty.standard_errors()
    undetermined = basis.names(uncertainty.alpha_unknown)
    undetermined += entries("linear", uncertainty.linear_unknown.reshape(linear_shape))
    kind = "Golub-Pereyra" if problem.full else "Kaufman"
    rank = problem.rank(point)
    return VarProResult(
        alpha=basis.tree(point.x),
        linear=to_mlx(linear.reshape(linear_shape), dtype),
        residuals=to_mlx((problem.y - point.phi @ linear).reshape(problem.shape), dtype),
        rss=to_mlx(np.array(rss) * unit * unit, dtype),
        steps=outcome.steps,
        converged=outcome.converged,
        reason=outcome.reason + remarks(undetermined, rank, n),
        standard_errors=StandardErrors(basis.tree(errors[0]), to_mlx(errors[1].reshape(linear_shape), dtype)),
        undetermined=undetermined,
        residual_std=to_mlx(np.array(std * unit), dtype),
        rank=rank,
        route=f"{kind} Jacobian by {basis.mode} mode, basis in {dtypes.name(dtype)}",
        evaluations=Evaluations(basis.evaluations, basis.derivatives),
        _parameter_covariance=uncertainty,
        _basis=basis,
        _x=point.x,
    )


def remarks(undetermined: tuple[str, ...], rank: int, n: int) -> str:
    """What a reason adds about parameters and columns."""
    text = ""
    if rank < n:
        text += f"; dependent columns: the basis has rank {rank} of {n}"
    if undetermined:
        names = ", ".join(undetermined[:5]) + (", ..." if len(undetermined) > 5 else "")
        text += f"; undetermined parameter{'s' if len(undetermined) > 1 else ''}: {names}"
    return text
