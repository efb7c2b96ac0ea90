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
# A solution this many times as large as the right-hand side is not believed: its columns nearly cancel, and what the
# rounding of the Gram matrix adds to the residual grows with it.
_LARGEST = 2.0**11
# What may be left to gain in the residual of a float64 solution, relative to the right-hand side.
_LEFT = 1e-9
# The longest step of refinement, relative to the solution: a longer one is of a matrix that has lost all digits.
_LONGEST = 0.1

# solver(c, free, q, held): where not free, x is ``held``; the other rows of ``c x = q`` hold.
Solver = Callable[[Any, Any, Any, Any], Any]


class Problem(NamedTuple):
    """Problems with columns of length 1, one for each target: least x^T C x / 2 - q^T x within the bounds.

    Attributes:
        c: ``(..., 1 or k, n, n)``, of diagonal 1.
        q: ``(..., k, n)``: the shape of the solution.
        lower: ``(..., 1 or k, 1 or n)``.
        upper: Likewise.
        size: The size of the right-hand side, ``(..., 1 or k, 1)``: what rounding is relative to.
        good: Whether all numbers are finite and the bounds are in order, ``(..., k, 1)``.
        lengths: Of the columns, ``(..., 1 or k, n)``.
    """

    c: Any
    q: Any
    lower: Any
    upper: Any
    size: Any
    good: Any
    lengths: Any


def scaled(xp, gram, rhs, b, w, l2, lower, upper) -> Problem:
    eye = xp.eye(gram.shape[-1], dtype=xp.float64)
    zero, one, nan = (xp.array(v, xp.float64) for v in (0.0, 1.0, math.nan))
    l2, rhs, lower, upper = (xp.swapaxes(v, -1, -2) for v in (xp.where(l2 < 0, nan, l2), rhs, lower, upper))
    gram = gram[..., None, :, :]
    diagonal = xp.diagonal(gram, axis1=-2, axis2=-1) + l2
    lengths = xp.sqrt(xp.where(diagonal == 0, one, diagonal))
    short = 1 / lengths
    # At least |D^(1/2) b|, without a copy of b in float64.
    total = xp.array(float(b.shape[-2]), xp.float64) if w is None else xp.sum(w.astype(xp.float64), axis=-1)[..., None]
    size = (xp.sqrt(total) * xp.max(xp.abs(b), axis=-2).astype(xp.float64))[..., None]
    ordered = xp.logical_and(lower <= upper, xp.logical_and(lower < math.inf, upper > -math.inf))
    ordered = xp.all(ordered, axis=-1, keepdims=True)
    # A column that is not finite has no finite length, and with finite lengths all of C is finite.
    finite = xp.isfinite(xp.sum(lengths, axis=-1, keepdims=True))
    q = rhs * short
    good = xp.logical_and(xp.logical_and(ordered, finite), xp.isfinite(xp.sum(q, axis=-1, keepdims=True) + size))
    # The diagonal, of a column of zeros, too: its variable is then 0, or what bound is nearest. Matrices that are not
    # finite by themselves, so that one may stay one for all targets.
    c = gram * short[..., None] * short[..., None, :]
    c = xp.where(xp.logical_or(eye > 0, xp.logical_not(finite)[..., None]), eye, c)
    lower, upper = xp.where(good, lower * lengths, zero), xp.where(good, upper * lengths, one)
    whole = xp.broadcast_shapes(q.shape, lower.shape)
    q = xp.broadcast_to(xp.where(good, q, zero), whole)
    return Problem(c, q, lower, upper, xp.where(good, size, zero), good, lengths)


def placed(xp, p: Problem, x):
    """Where variables at ``x`` are: -1, below the box, 0, within it, or 1, above; -1 where the bounds are equal."""
    low, free, high = (xp.array(v, xp.int32) for v in (-1, 0, 1))
    state = xp.where(x > p.upper, high, xp.where(x < p.lower, low, free))
    return xp.where(p.lower == p.upper, low, state)


def all_held(xp, p: Problem):
    """Every variable on one of its bounds, if it has any: where to begin with fewer rows than columns.

    All of the columns would be dependent.
    """
    low, free, high = (xp.array(v, xp.int32) for v in (-1, 0, 1))
    return xp.where(xp.isfinite(p.lower), low, xp.where(xp.isfinite(p.upper), high, free))


def solve(xp, solver: Solver, p: Problem, state):
    """Solve for x in a state; also half the gradient there, and what rounding may have made of either."""
    x = solver(p.c, state == 0, p.q, xp.where(state < 0, p.lower, xp.where(state > 0, p.upper, 0.0)))
    return x, times(p.c, x) - p.q, 16 * EPS * (p.size + xp.sum(xp.abs(x), axis=-1, keepdims=True))


def times(c, x):
    return (c @ x[..., None])[..., 0]


def wrong(xp, p: Problem, state, x, gradient, noise, of_gradient):
    """Where variables should be moved to, if not where they are: -1, 0 or 1; and which variables these are."""
    free = state == 0
    below, above = xp.logical_and(free, x < p.lower - noise), xp.logical_and(free, x > p.upper + noise)
    # The gradient pushes a held variable off its bound, unless the other bound is the same.
    inward = xp.logical_and(state * gradient > of_gradient, p.lower < p.upper)
    goal = above.astype(xp.int32) - below.astype(xp.int32)
    return goal, xp.logical_or(goal != 0, inward)


def exchange(xp, state, goal, moves, least, patience):
    """The next state, the least number of wrong variables so far, and the rounds left in which it may not fall."""
    count = xp.sum(moves, axis=-1, keepdims=True)
    patience = xp.where(count < least, PATIENCE, patience - 1)
    change = moves
    if xp is mx or (patience < 0).any():
        index = xp.arange(state.shape[-1], dtype=xp.int32)
        last = xp.max(xp.where(moves, index, -1), axis=-1, keepdims=True)
        change = xp.logical_and(moves, xp.logical_or(patience >= 0, index == last))
    return xp.where(change, goal, state), xp.minimum(count, least), patience


def snapped(xp, p: Problem, state, x, noise):
    """The state in which a free variable that is on a bound but for rounding is held there."""
    free = state == 0
    low = xp.logical_and(free, x <= p.lower + noise)
    high = xp.logical_and(free, x >= p.upper - noise)
    return xp.where(low, -1, xp.where(high, 1, state))


def believed(xp, p: Problem, x, largest: float = _LARGEST):
    """Whether a solution can be taken from the Gram matrix, ``(..., k, 1)``."""
    return xp.sum(xp.abs(x), axis=-1, keepdims=True) <= largest * p.size


def refined(xp, solver: Solver, p: Problem, state, x, rest):
    """A step of iterative refinement of a float64 solution.

    Forming the Gram matrix has lost digits of the solution, and with them it was decided which variables are free. So
    Newton's step is taken with ``rest``, half the negative gradient from the rows, and the conditions are looked at
    again.

    Returns:
        ``x``; whether all conditions hold there, ``(..., k, 1)``; whether the step was of rounding only, likewise.
    """
    step = solver(p.c, state == 0, rest, xp.zeros_like(rest))
    gain = xp.sqrt(xp.abs(xp.sum(rest * step, axis=-1, keepdims=True)))
    length, size = (xp.sum(xp.abs(v), axis=-1, keepdims=True) for v in (step, x))
    step = xp.where(length <= _LONGEST * size, step, 0.0)
    x, noise = x + step, 64 * EPS * (p.size + size)
    _, moves = wrong(xp, p, state, x, times(p.c, step) - rest, noise + _LEFT * p.size, noise)
    holds = xp.logical_and(gain <= _LEFT * p.size, xp.logical_not(xp.any(moves, axis=-1, keepdims=True)))
    return x, xp.logical_and(holds, believed(xp, p, x)), length <= 1e-8 * size


def within(xp, x, state, lower, upper):
    """``x`` with its held variables exactly on their bounds and none outside; NaN stays NaN."""
    held = xp.where(state < 0, lower, upper)
    return xp.where(xp.isnan(x), x, xp.where(state == 0, xp.minimum(xp.maximum(x, lower), upper), held))
