"""The solution of a readout problem and its objective, both differentiable."""

import mlx.core as mx

from .._lstsq import lstsq
from .._mlx import large
from .._ridge import ridge
from .._rules import envelope
from ._problem import ReadoutProblem


def solve(p: ReadoutProblem):
    """The solution ``(..., n, k)`` in the dtype of the problem."""
    if p.l2 is None:
        return lstsq(p.a, p.b, weights=p.w).solution
    return ridge(p.a, p.b, p.l2, weights=p.w)


def smallest_objective(p: ReadoutProblem):
    """The objective, penalty included, at its minimum over the solution, ``(...)``.

    The truncated solution of minimum norm is no minimizer, so there the gradient is taken through the solution; with a
    penalty it is the envelope's, and nothing is solved for it.
    """
    if p.l2 is None or p.a.size == 0 or p.b.size == 0:
        residuals = lstsq(p.a, p.b, weights=p.w).residuals
        with large(residuals.dtype):
            return mx.sum(residuals, axis=-1)
    return envelope.smallest_objective(p.a, p.b, p.w, p.l2, p.entry_dtype)
