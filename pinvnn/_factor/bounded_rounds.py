"""One round of block principal pivoting, and what is done before and after: see ``bounded_values.py``.

Each function takes the module of its arrays, NumPy or MLX, as ``xp``.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from .._mlx import dtypes

EPS = dtypes.eps(mx.float64)
# Rounds without progress before variables are exchanged one by one.
PATIENCE = 3


class Problem(NamedTuple):
    """Problems with columns of length 1, one for each target: least x^T C x / 2 - q^T x within the bounds.

    Attributes:
        c: ``(..., 1 or k, n, n)``, of diagonal 1.
        q: ``(..., k, n)``.
        lower: ``(..., k, n)``.
        upper: ``(..., k, n)``.
        size: The size of the right-hand side, ``(..., k, 1)``: what rounding is relative to.
        good: Whether all numbers are finite and the bounds are in order, ``(..., k, 1)``.
        lengths: Of the columns, ``(..., 1 or k, n)``.
        start: ``(..., k, n)``: -1, 0, 1.
    """

    c: Any
    q: Any
    lower: Any
    upper: Any
    size: Any
    good: Any
    lengths: Any
    start: Any


def scaled(xp, gram, rhs, b, w, l2, lower, upper) -> Problem:
    n, eye = gram.shape[-1], xp.eye(gram.shape[-1], dtype=xp.float64)
    zero, one, nan = (xp.array(v, xp.float64) for v in (0.0, 1.0, math.nan))
    l2, rhs, lower, upper = (xp.swapaxes(v, -1, -2) for v in (xp.where(l2 < 0, nan, l2), rhs, lower, upper))
    gram = gram[..., None, :, :]
    diagonal = xp.diagonal(gram, axis1=-2, axis2=-1) + l2
    lengths = xp.sqrt(xp.where(diagonal == 0, one, diagonal))
    short = 1 / lengths
    c, q = gram * (short[..., None] * short[..., None, :]), rhs * short
    # At least |D^(1/2) b|, without a copy of b in float64.
    m = b.shape[-2]
    total = xp.array(float(m), xp.float64) if w is None else xp.sum(w.astype(xp.float64), axis=-1)[..., None]
    size = (xp.sqrt(total) * xp.max(xp.abs(b), axis=-2).astype(xp.float64))[..., None]
    ordered = xp.logical_and(lower <= upper, xp.logical_and(lower < math.inf, upper > -math.inf))
    whole = xp.broadcast_shapes(q.shape, lower.shape, upper.shape, (*c.shape[:-2], n), (*size.shape[:-1], n))
    ordered = xp.all(xp.broadcast_to(ordered, whole), axis=-1, keepdims=True)
    sums = xp.sum(c, axis=(-2, -1), keepdims=True)
    good = xp.logical_and(ordered, xp.isfinite(sums[..., 0] + xp.sum(q + lengths, axis=-1, keepdims=True) + size))
    # The diagonal, of a column of zeros, too: its variable is then 0, or what bound is nearest. Matrices that are not
    # finite by themselves, so that one may stay one for all targets.
    c = xp.where(xp.logical_or(eye > 0, xp.logical_not(xp.isfinite(sums))), eye, c)
    q, size = xp.where(good, q, zero), xp.where(good, size, zero)
    lower, upper = xp.where(good, lower * lengths, zero), xp.where(good, upper * lengths, one)
    low, free, high = (xp.array(v, xp.int32) for v in (-1, 0, 1))
    start = xp.where(lower == upper, low, free)
    if m < n:  # All columns together are singular: begin with none.
        start = xp.where(xp.isfinite(lower), low, xp.where(xp.isfinite(upper), high, free))
    lower, upper, q, start = (xp.broadcast_to(v, whole) for v in (lower, upper, q, start))
    return Problem(c, q, lower, upper, size, good, lengths, start)


def solve(xp, solver: Callable[[Any, Any], Any], p: Problem, state):
    """Solve for x in a state; also half the gradient there, and what rounding may have made of either."""
    free = state == 0
    x = xp.where(state < 0, p.lower, xp.where(state > 0, p.upper, 0.0))
    rhs = xp.where(free, p.q - times(p.c, x), 0.0)
    x = xp.where(free, solver(free_part(xp, p.c, free), rhs), x)
    return x, times(p.c, x) - p.q, 16 * EPS * (p.size + xp.sum(xp.abs(x), axis=-1, keepdims=True))


def free_part(xp, c, free):
    """The free rows and columns of ``c``, whose diagonal is 1; those of the identity for the others."""
    return xp.where(xp.logical_and(free[..., None], free[..., None, :]), c, xp.eye(c.shape[-1], dtype=xp.float64))


def times(c, x):
    return (c @ x[..., None])[..., 0]


def wrong(xp, p: Problem, state, x, gradient, noise):
    """Which variables are below, above, or held against their gradient."""
    free, movable = state == 0, p.lower < p.upper
    below = xp.logical_and(free, x < p.lower - noise)
    above = xp.logical_and(free, x > p.upper + noise)
    inward = xp.logical_or(xp.logical_and(state < 0, gradient < -noise), xp.logical_and(state > 0, gradient > noise))
    return below, above, xp.logical_and(movable, inward)


def exchange(xp, state, found, least, patience):
    """The next state, the least number of wrong variables so far, and the rounds left in which it may not fall."""
    below, above, inward = found
    any_of = xp.logical_or(xp.logical_or(below, above), inward)
    count = xp.sum(any_of.astype(xp.int32), axis=-1, keepdims=True)
    patience = xp.where(count < least, PATIENCE, patience - 1)
    index = xp.arange(state.shape[-1], dtype=xp.int32)
    last = xp.max(xp.where(any_of, index, -1), axis=-1, keepdims=True)
    change = xp.logical_and(any_of, xp.logical_or(patience >= 0, index == last))
    return xp.where(change, xp.where(below, -1, xp.where(above, 1, 0)), state), xp.minimum(count, least), patience


def snapped(xp, p: Problem, state, x, noise):
    """The state in which a free variable that is on a bound but for rounding is held there."""
    free = state == 0
    low = xp.logical_and(free, x <= p.lower + noise)
    high = xp.logical_and(free, x >= p.upper - noise)
    return xp.where(low, -1, xp.where(high, 1, state))


def refined(xp, solver: Callable[[Any, Any], Any], p: Problem, x, state, slope):
    """The minimizer ``x`` moved by Newton's step for the free variables, NaN by ``solver`` where there is none.

    Iterative refinement, by half the negative gradient ``slope`` at ``x``: forming the Gram matrix has lost digits.
    """
    free, lengths = xp.swapaxes(state == 0, -1, -2), p.lengths
    slope = xp.where(free, xp.swapaxes(slope, -1, -2) / lengths, 0.0)
    step = xp.swapaxes(solver(free_part(xp, p.c, free), slope) / lengths, -1, -2)
    return x + xp.where(xp.isfinite(step), step, 0.0)


def within(xp, x, state, lower, upper):
    """``x`` with its held variables exactly on their bounds and none outside; NaN stays NaN."""
    held = xp.where(state < 0, lower, upper)
    return xp.where(xp.isnan(x), x, xp.where(state == 0, xp.minimum(xp.maximum(x, lower), upper), held))
