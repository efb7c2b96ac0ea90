"""The solution of a readout problem and its objective, both differentiable."""

import mlx.core as mx

from .._factorizations import Factorization
from .._lstsq import lstsq
from .._methods import factor_problem, factor_ridge
from .._mlx import Centred, addmm, astype, large, matmul
from .._ridge import ridge
from .._rules import envelope
from . import _bounds
from ._problem import ReadoutProblem


def solve(p: ReadoutProblem):
    """The solution ``(..., n, k)`` in the dtype of the problem."""
    if p.bounds is not None:
        return _bounds.solution(p)
    if isinstance(p.a, Centred):
        return astype(_factored(p).solve(p.b), p.a.dtype)
    if p.l2 is None:
        return lstsq(p.a, p.b, weights=p.w, method=p.method).solution
    return ridge(p.a, p.b, p.l2, weights=p.w, method=p.method)


def _factored(p: ReadoutProblem) -> Factorization:
    if p.l2 is None:
        return factor_problem(p.a, p.w, method=p.method, b=p.b)
    return factor_ridge(p.a, p.w, p.l2, p.method, b=p.b)


def predict(p: ReadoutProblem, x: mx.array) -> mx.array:
    """Predictions ``(..., q, k)`` of the solution for rows ``x`` (..., q, n), in the dtype of the problem."""
    with large(p.a.dtype):
        x, solution = astype(x, p.a.dtype), solve(p)
        if p.means is None:
            return matmul(x, solution)
        x_mean, y_mean = p.means()
        return addmm(y_mean, x - x_mean, solution)


def smallest_objectives(p: ReadoutProblem) -> mx.array:
    """The objective of each target, penalty included, at its minimum over the solution, ``(..., k)`` in float64.

    The truncated solution of minimum norm is no minimizer, so there the gradient is taken through the solution; with a
    penalty it is the envelope's, and nothing is solved for it.
    """
    if p.bounds is not None:
        return _bounds.smallest_objectives(p)
    if p.l2 is None and isinstance(p.a, Centred):
        f = _factored(p)
        return f.residuals(p.b, astype(f.solve(p.b), mx.float64))
    if p.l2 is None or p.a.size == 0 or p.b.size == 0:
        return astype(lstsq(p.a, p.b, weights=p.w, method=p.method).residuals, mx.float64)
    return envelope.smallest_objective(p.a, p.b, p.w, p.l2, p.entry_dtype, p.method)


def rank_and_condition(p: ReadoutProblem) -> tuple[int, float]:
    """Rank of the weighted, centred features, and the ratio of their largest to their smallest counted singular value.

    Both by :func:`pinvnn.lstsq`'s factorization, so that without a penalty they are those of the solution itself. For
    arrays ``(m, n)`` that may be evaluated.
    """
    if p.a.size == 0:
        return 0, 1.0
    with large(p.a.dtype):
        rank, s = factor_problem(p.a, p.w).evaluated_spectrum()
    return int(rank), float(s[0] / s[rank - 1]) if rank else 1.0
