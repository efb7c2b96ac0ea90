"""Readouts whose weights have bounds. The intercept is free: centred rows leave it out of the problem."""

from collections.abc import Callable
from numbers import Real
from typing import TypeAlias

import mlx.core as mx

from .._mlx import astype, checks, in_float64, on_cpu, rounded
from .._nnls import check_bounds, lsq_linear
from .._types import Bounds
from ._problem import ReadoutProblem

#: A number, None for no bound, or an array ``(1 or n, 1 or k)`` in float64.
Bound: TypeAlias = float | mx.array | None


def checked(name: str, bounds: Bounds | None, n: int, k: int) -> tuple[Bound, Bound] | None:
    """``bounds`` of the weights in the orientation of :func:`pinvnn.lsq_linear`; None where there are none."""
    if bounds is None:
        return None
    lower, upper, _ = check_bounds(name, bounds, n, k, False)
    if max(lower.ndim, upper.ndim) > 2:
        got = f"shapes {lower.shape} and {upper.shape}"
        checks.fail(name, "bounds must have at most 2 dimensions", got, "Use one readout for each pair of bounds.")
    with on_cpu():
        if not mx.all(lower <= upper).item():
            checks.fail(name, "lower must not exceed upper", "an entry where it does", "Exchange the bounds.")

    def kept(given, found: mx.array) -> Bound:
        return None if given is None else float(given) if isinstance(given, Real) else found

    return kept(bounds[0], lower), kept(bounds[1], upper)


def solution(p: ReadoutProblem) -> mx.array:
    """The minimizer within the bounds, ``(..., n, k)`` in the dtype of the problem."""
    assert p.bounds is not None
    return lsq_linear(rounded(p.a), rounded(p.b), p.bounds, l2=0.0 if p.l2 is None else p.l2, weights=p.w)


def smallest_objectives(p: ReadoutProblem) -> mx.array:
    """The objective of each target at the minimizer, ``(..., k)`` in float64.

    Differentiated through the minimizer. To first order that adds nothing: the slope along free weights is 0.
    """
    x = astype(solution(p), mx.float64)
    with on_cpu():
        rest = in_float64(p.b) - in_float64(p.a) @ x
        squares = rest * rest if p.w is None else astype(p.w, mx.float64)[..., None] * rest * rest
        loss = mx.sum(squares, axis=-2)
        return loss if p.l2 is None else loss + mx.sum(p.l2 * x * x, axis=-2)


def of_free_weights(p: ReadoutProblem) -> Callable[[ReadoutProblem], ReadoutProblem]:
    """How a copy of ``p`` becomes the problem, without bounds, of the weights that are free in its solution.

    Weights on their bounds stay there. Each target has free weights of its own, so that the targets become a batch of
    problems ``(..., k, m, 1)``, in which the columns of the held weights are 0.
    """
    x = astype(solution(p), mx.float64)
    with on_cpu():
        on_bound = mx.array(False)
        for bound in p.bounds or ():
            if bound is not None:  # in the dtype of the solution, in which a held weight is its bound
                bound = astype(mx.array(bound, mx.float64), p.a.dtype)
                on_bound = mx.logical_or(on_bound, x == astype(bound, mx.float64))
        free = mx.stop_gradient(mx.where(mx.logical_or(on_bound, mx.isnan(x)), mx.zeros_like(x), mx.ones_like(x)))
        held = mx.where(free > 0, mx.zeros_like(x), x)

    def freed(p: ReadoutProblem) -> ReadoutProblem:
        with on_cpu():
            a, b = in_float64(p.a), in_float64(p.b)
            rows, targets = a[..., None, :, :] * free.mT[..., None, :], (b - a @ held).mT[..., None]
            l2 = p.l2
            if l2 is not None and l2.size > 1:  # a penalty of 0 on a column of zeros would be singular
                l2 = mx.where(free > 0, l2, 1).mT[..., None]
            return p._replace(
                a=astype(rows, p.a.dtype),
                b=astype(targets, p.b.dtype),
                w=None if p.w is None else p.w[..., None, :],
                l2=l2,
                total_weight=p.total_weight[..., None],
                bounds=None,
            )

    return freed
