"""Values of least squares within bounds, and which variables are held there: constants, float64, on the CPU.

Block principal pivoting (Portugal, Judice and Vicente, Math. Comp. 63 (1994), 625-643; with two bounds: Judice and
Pires, Comput. Oper. Res. 21 (1994), 587-596; Kim and Park, SIAM J. Sci. Comput. 33 (2011), 3261-3281). Each variable is
on its lower bound (-1), free (0) or on its upper bound (1). Solve for the free ones; free ones that leave the box are
held, held ones whose gradient points into the box are freed, all at once. If that lowers the number of wrong variables
in none of three rounds, only the last of them is exchanged (Murty), which cannot cycle. A round is a few operations on
all problems of a batch, and few rounds suffice: Lawson and Hanson's method exchanges one variable a round.

All of it is done on the Gram matrix with columns scaled to length 1, so that units do not matter.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from .._mlx import dtypes
from .._mlx.blocks import cross, crosses, residual
from .._mlx.eager import visible
from .._mlx.place import on_cpu
from .active_set import bounded_free_set
from .full_rank import cholesky_factor, nan_unless
from .lapack import cholesky, tri_inv
from .ridge_values import RidgeInverse
from .right_factor import RightFactor, nan_where_negative

_EPS = dtypes.eps(mx.float64)
# Rounds without progress before variables are exchanged one by one.
_PATIENCE = 3
# Rounds in a graph, where their number is fixed. Random problems of 100 variables take 5 to 10.
_ROUNDS_IN_GRAPH = 24
# Problems whose matrices are held together, by numbers.
_NUMBERS_AT_ONCE = 2**21


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


def bounded_solution(
    a: mx.array, b: mx.array, w: mx.array | None, l2: mx.array, lower: mx.array, upper: mx.array
) -> tuple[mx.array, mx.array]:
    """The minimizer ``(..., n, k)`` in float64, and where each variable is: -1, 0 or 1, of the same shape.

    Where values can be evaluated, a problem that pivoting does not solve is solved by :func:`bounded_free_set`.
    Elsewhere (compile, vmap, GPU) it is NaN. A problem with NaN or Inf, a negative weight or penalty, or bounds out of
    order is NaN.

    Args:
        a: ``(..., m, n)``, real, not empty.
        b: ``(..., m, k)``.
        w: Weights ``(..., m)``, or None.
        l2: ``(..., 1 or n, 1 or k)``, float64.
        lower: ``(..., 1 or n, 1 or k)``, float64.
        upper: Likewise.
    """
    with on_cpu():
        a, b, l2, lower, upper = map(mx.stop_gradient, (a, b, l2, lower, upper))
        w = None if w is None else nan_where_negative(mx.stop_gradient(w))
        if visible(a, b, w, l2, lower, upper):
            return _by_numpy(a, b, w, l2, lower, upper)
        gram, rhs = crosses(a, [a, b], w)
        p = _scaled(mx, gram, rhs, b, w, l2, lower, upper)
        x, state = _in_graph(p)
        x, state = (x / p.lengths).mT, state.mT
        if a.dtype == mx.float64:
            x = _refined(mx, _inverse_in_graph, p, x, state, cross(a, residual(a, b, x), w) - l2 * x)
        return _within(mx, x, state, lower, upper), state


def free_inverse(a: mx.array, w: mx.array | None, l2: mx.array, free: mx.array) -> RidgeInverse:
    """The inverse of the free rows and columns of A^T D A + L_t, zero elsewhere, as one of ridge regression.

    Args:
        a: As in :func:`bounded_solution`.
        w: Likewise.
        l2: Likewise.
        free: 1.0 where a variable is free, else 0.0, ``(..., n, k)``.

    Returns:
        Of route "feature": V V^T is the inverse, and rows of V of held variables are 0. NaN where it is singular.
    """
    with on_cpu():
        a, l2, free = map(mx.stop_gradient, (a, l2, free))
        w = None if w is None else nan_where_negative(mx.stop_gradient(w))
        return RidgeInverse(_free_factor(cross(a, a, w), l2, free, a.dtype), "feature")


def _free_factor(gram, l2, free, entries) -> RightFactor:
    """The full factor of K + L_t within the free rows and columns."""
    n, on = gram.shape[-1], free.mT
    gram = gram[..., None, :, :] + mx.eye(n, dtype=mx.float64) * l2.mT[..., None, :]
    diagonal = mx.diagonal(gram, axis1=-2, axis2=-1)
    largest = mx.max(mx.where(on > 0, diagonal, mx.zeros_like(diagonal)), axis=-1, keepdims=True)
    largest = mx.where(largest > 0, largest, mx.ones_like(largest))
    held = mx.eye(n, dtype=mx.float64) * ((1 - on) * largest)[..., None, :]
    found = cholesky_factor(gram * (on[..., None] * on[..., None, :]) + held, entries)
    f = nan_unless(found.sound, found.right)
    return f._replace(v=mx.stop_gradient(f.v * on[..., None]))


# --- One round, in NumPy or in a graph --------------------------------------------------------------------------------


def _solve(xp, solver: Callable[[Any, Any], Any], p: Problem, state):
    """Solve for x in a state; also half the gradient there, and what rounding may have made of either."""
    free = state == 0
    x = xp.where(state < 0, p.lower, xp.where(state > 0, p.upper, 0.0))
    rhs = xp.where(free, p.q - _times(p.c, x), 0.0)
    x = xp.where(free, solver(_free_part(xp, p.c, free), rhs), x)
    return x, _times(p.c, x) - p.q, 16 * _EPS * (p.size + xp.sum(xp.abs(x), axis=-1, keepdims=True))


def _free_part(xp, c, free):
    """The free rows and columns of ``c``; those of the identity for the others."""
    on = free.astype(xp.float64)
    return c * (on[..., None] * on[..., None, :]) + xp.eye(c.shape[-1], dtype=xp.float64) * (1 - on)[..., None, :]


def _times(c, x):
    return (c @ x[..., None])[..., 0]


def _wrong(xp, p: Problem, state, x, gradient, noise):
    """Which variables are below, above, or held against their gradient."""
    free, movable = state == 0, p.lower < p.upper
    below = xp.logical_and(free, x < p.lower - noise)
    above = xp.logical_and(free, x > p.upper + noise)
    inward = xp.logical_or(xp.logical_and(state < 0, gradient < -noise), xp.logical_and(state > 0, gradient > noise))
    return below, above, xp.logical_and(movable, inward)


def _exchange(xp, state, wrong, least, patience):
    """The next state, the least number of wrong variables so far, and the rounds left in which it may not fall."""
    below, above, inward = wrong
    any_of = xp.logical_or(xp.logical_or(below, above), inward)
    count = xp.sum(any_of.astype(xp.int32), axis=-1, keepdims=True)
    patience = xp.where(count < least, _PATIENCE, patience - 1)
    index = xp.arange(state.shape[-1], dtype=xp.int32)
    last = xp.max(xp.where(any_of, index, -1), axis=-1, keepdims=True)
    change = xp.logical_and(any_of, xp.logical_or(patience >= 0, index == last))
    return xp.where(change, xp.where(below, -1, xp.where(above, 1, 0)), state), xp.minimum(count, least), patience


def _snapped(xp, p: Problem, state, x, noise):
    """The state in which a free variable that is on a bound but for rounding is held there."""
    free = state == 0
    low = xp.logical_and(free, x <= p.lower + noise)
    high = xp.logical_and(free, x >= p.upper - noise)
    return xp.where(low, -1, xp.where(high, 1, state))


# --- In a graph -------------------------------------------------------------------------------------------------------


def _in_graph(p: Problem) -> tuple[mx.array, mx.array]:
    shape = p.q.shape
    state = mx.broadcast_to(p.start, shape)
    least = mx.full((*shape[:-1], 1), shape[-1] + 1, mx.int32)
    patience = mx.full((*shape[:-1], 1), _PATIENCE, mx.int32)
    for _ in range(_ROUNDS_IN_GRAPH):
        wrong = _wrong(mx, p, state, *_solve(mx, _definite, p, state))
        state, least, patience = _exchange(mx, state, wrong, least, patience)
    x, gradient, noise = _solve(mx, _definite, p, state)
    unbalanced = mx.logical_and(state == 0, mx.logical_not(mx.abs(gradient) <= 64 * noise))
    wrong = [*_wrong(mx, p, state, x, gradient, noise), unbalanced]
    solved = mx.logical_not(mx.any(mx.stack(wrong), axis=(0, -1)))[..., None]
    state = _snapped(mx, p, state, x, noise)
    return mx.where(mx.logical_and(solved, p.good), x, mx.array(float("nan"), mx.float64)), state


def _definite(c, rhs):
    """``c^-1 rhs``. A singular ``c`` gives any numbers: the gradient shows it."""
    eye = mx.eye(c.shape[-1], dtype=mx.float64)
    lower = mx.tril(cholesky(c + 1e-13 * eye))
    pivots = mx.diagonal(lower, axis1=-2, axis2=-1)
    v = tri_inv(lower + eye * (pivots == 0)[..., None]).mT  # MLX raises for an inverse with a pivot of 0
    x = _times(v, _times(v.mT, rhs))
    for _ in range(2):  # of iterative refinement, for what was added to the diagonal
        x = x + _times(v, _times(v.mT, rhs - _times(c, x)))
    return x


# --- In NumPy ---------------------------------------------------------------------------------------------------------


def _by_numpy(a, b, w, l2, lower, upper) -> tuple[mx.array, mx.array]:
    """:func:`bounded_solution` of visible arrays. Small MLX operations would take most of the time."""
    import numpy as np

    exact = a.dtype == mx.float64
    a, b, w, l2, lower, upper = arrays = [None if v is None else np.asarray(v) for v in (a, b, w, l2, lower, upper)]
    with np.errstate(all="ignore"):  # NaN and Inf are arguments like others.
        gram, rhs = _numpy_crosses(a, b, w)
        p = _scaled(np, gram, rhs, b, w, l2, lower, upper)
        x, state = _pivot_all(p, *arrays[:4])
        x, state = (x / p.lengths).swapaxes(-1, -2), state.swapaxes(-1, -2)
        if exact:
            x = _refined(np, _inverse_in_numpy, p, x, state, _numpy_slope(a, b, w, x) - l2 * x)
        x = _within(np, x, state, lower, upper)
    return mx.array(x, mx.float64), mx.array(state, mx.int32)


def _pivot_all(p: Problem, a, b, w, l2):
    """Solve all problems for x and states, as many at once as memory allows; NaN where there is no solution."""
    import numpy as np

    batch, n = p.q.shape[:-1], p.q.shape[-1]
    full = {"c": (*batch, n, n), "size": (*batch, 1), "good": (*batch, 1)}
    # Views: nothing is copied before problems are picked out.
    p = Problem(*(np.broadcast_to(v, full.get(f, (*batch, n))) for f, v in p._asdict().items()))
    total, at_once = math.prod(batch), max(1, _NUMBERS_AT_ONCE // (n * n))
    x, state = np.full((total, n), np.nan), np.array(p.start).reshape(total, n)
    unsolved = []
    for i in range(0, total, at_once):
        which = np.arange(i, min(i + at_once, total))
        where = np.unravel_index(which, batch)
        good = p.good[where][:, 0]
        which, where = which[good], tuple(axis[good] for axis in where)
        x[which], state[which], solved = _pivot(Problem(*(field[where] for field in p)))
        unsolved += list(which[~solved])
    for i in unsolved:
        x[i], state[i] = _one_by_active_set(p, np.unravel_index(i, batch), a, b, w, l2)
    return x.reshape(p.q.shape), state.reshape(p.q.shape)


def _pivot(p: Problem):
    """Solve problems ``(P, n)`` for x and states; the last of the three results says which are solved."""
    import numpy as np

    total, n = p.q.shape
    x, gradient, noise = np.zeros((total, n)), np.zeros((total, n)), np.zeros((total, 1))
    state, solved = p.start.copy(), np.zeros(total, bool)
    rest, now, here = np.arange(total), p, p.start
    least, patience = np.full((total, 1), n + 1), np.full((total, 1), _PATIENCE)
    for _ in range(3 * n + 20):
        found = _solve(np, _by_lu, now, here)
        wrong = _wrong(np, now, here, *found)
        on = (wrong[0] | wrong[1] | wrong[2]).any(axis=-1)
        if not on.all():
            gone = rest[~on]
            solved[gone], state[gone] = True, here[~on]
            for all_of, some in zip((x, gradient, noise), found, strict=True):
                all_of[gone] = some[~on]
            if not on.any():
                break
            rest, now, here = rest[on], Problem(*(f[on] for f in now)), here[on]
            wrong, least, patience = [v[on] for v in wrong], least[on], patience[on]
        here, least, patience = _exchange(np, here, wrong, least, patience)
    solved &= (np.abs(np.where(state == 0, gradient, 0)) <= 64 * noise).all(axis=-1)
    return x, _snapped(np, p, state, x, noise), solved


def _by_lu(c, rhs):
    import numpy as np

    try:
        return np.linalg.solve(c, rhs[..., None])[..., 0]
    except np.linalg.LinAlgError:  # some of the matrices are singular
        return np.linalg.solve(c + 1e-13 * np.eye(c.shape[-1]), rhs[..., None])[..., 0]


def _one_by_active_set(p: Problem, at, a, b, w, l2):
    """Solve for x and state of the one problem ``at`` an index over (batch, targets)."""
    import numpy as np

    batch, t = p.q.shape[:-2], at[-1]
    m, n, lengths = *a.shape[-2:], p.lengths[at]
    rows = np.broadcast_to(a, (*batch, m, n))[at[:-1]].astype(float)
    rhs = np.broadcast_to(b, (*batch, m, b.shape[-1]))[at[:-1]][:, t].astype(float)
    penalty = np.broadcast_to(l2, (*batch, n, b.shape[-1]))[at[:-1]][:, t]
    if w is not None:
        root = np.sqrt(np.broadcast_to(w, (*batch, m))[at[:-1]].astype(float))
        rows, rhs = root[:, None] * rows, root * rhs
    rows = np.concatenate([rows, np.diag(np.sqrt(penalty))[penalty > 0]]) / lengths
    rhs = np.concatenate([rhs, np.zeros(len(rows) - m)])
    if len(rows) > n:
        q, rows = np.linalg.qr(rows)
        rhs = q.T @ rhs
    lower, upper = p.lower[at], p.upper[at]
    free, x = bounded_free_set(rows, rhs, lower, upper)
    gradient = rows.T @ (rows @ x - rhs)
    movable = lower < upper
    slope = np.where(x > lower, np.maximum(gradient, 0), 0) + np.where(x < upper, np.maximum(-gradient, 0), 0)
    if not (np.where(movable, slope, 0) <= 1e-9 * (p.size[at] + np.abs(x).sum())).all():
        x = np.full(n, np.nan)
    return x, np.where(free, 0, np.where(x <= lower, -1, 1))


def _numpy_crosses(a, b, w):
    """A^T D A and A^T D b by NumPy, whose BLAS is the faster one on Linux; by blocks of rows."""
    m = a.shape[-2]
    step = max(1, _NUMBERS_AT_ONCE * m // (a.size + b.size))
    gram, rhs = 0.0, 0.0
    for i in range(0, m, step):
        rows = slice(i, i + step)
        left, right = (v[..., rows, :].astype(float, copy=False) for v in (a, b))
        weighted = left if w is None else w[..., rows, None] * left
        weighted = weighted.swapaxes(-1, -2)
        gram, rhs = gram + weighted @ left, rhs + weighted @ right
    return gram, rhs


def _numpy_slope(a, b, w, x):
    """A^T D (b - A x) of float64 arrays."""
    rest = b - a @ x
    return a.swapaxes(-1, -2) @ (rest if w is None else w[..., None] * rest)


# --- Before and after -------------------------------------------------------------------------------------------------


def _scaled(xp, gram, rhs, b, w, l2, lower, upper) -> Problem:
    n, eye = gram.shape[-1], xp.eye(gram.shape[-1], dtype=xp.float64)
    zero, one, nan = (xp.array(v, xp.float64) for v in (0.0, 1.0, math.nan))
    l2, rhs, lower, upper = (xp.swapaxes(v, -1, -2) for v in (xp.where(l2 < 0, nan, l2), rhs, lower, upper))
    gram = gram[..., None, :, :] + eye * l2[..., None, :]
    diagonal = xp.diagonal(gram, axis1=-2, axis2=-1)
    lengths = xp.sqrt(xp.where(diagonal > 0, diagonal, one))
    c, q = gram / lengths[..., None] / lengths[..., None, :], rhs / lengths
    c = c * (1 - eye) + eye  # of a column of zeros, too: its variable is then 0, or what bound is nearest
    # At least |D^(1/2) b|, without a copy of b in float64.
    m = b.shape[-2]
    total = xp.array(float(m), xp.float64) if w is None else xp.sum(w.astype(xp.float64), axis=-1)[..., None]
    size = (xp.sqrt(total) * xp.max(xp.abs(b), axis=-2).astype(xp.float64))[..., None]
    ordered = xp.logical_and(lower <= upper, xp.logical_and(lower < math.inf, upper > -math.inf))
    whole = xp.broadcast_shapes(q.shape, lower.shape, upper.shape, (*c.shape[:-2], n), (*size.shape[:-1], n))
    ordered = xp.all(xp.broadcast_to(ordered, whole), axis=-1, keepdims=True)
    finite = xp.isfinite(xp.sum(c, axis=(-2, -1))[..., None] + xp.sum(q + lengths, axis=-1, keepdims=True) + size)
    good = xp.logical_and(ordered, finite)
    # By itself, so that one matrix may stay one for all targets.
    c = xp.where(xp.isfinite(xp.sum(c, axis=(-2, -1), keepdims=True)), c, eye)
    q, size = xp.where(good, q, zero), xp.where(good, size, zero)
    lower, upper = xp.where(good, lower * lengths, zero), xp.where(good, upper * lengths, one)
    low, free, high = (xp.array(v, xp.int32) for v in (-1, 0, 1))
    start = xp.where(lower == upper, low, free)
    if m < n:  # All columns together are singular: begin with none.
        start = xp.where(xp.isfinite(lower), low, xp.where(xp.isfinite(upper), high, free))
    lower, upper, q, start = (xp.broadcast_to(v, whole) for v in (lower, upper, q, start))
    return Problem(c, q, lower, upper, size, good, lengths, start)


def _refined(xp, inverse: Callable[[Any], Any], p: Problem, x, state, slope):
    """The minimizer ``x`` moved by Newton's step for the free variables, where ``inverse`` has one.

    Iterative refinement, by half the negative gradient ``slope`` at ``x``: forming the Gram matrix has lost digits.
    """
    free, lengths = xp.swapaxes(state == 0, -1, -2), p.lengths
    slope = xp.where(free, xp.swapaxes(slope, -1, -2) / lengths, 0.0)
    step = xp.swapaxes(_times(inverse(_free_part(xp, p.c, free)), slope) / lengths, -1, -2)
    return x + xp.where(xp.isfinite(step), step, 0.0)


def _inverse_in_graph(c):
    """The inverse of definite ``c``, NaN for a singular one."""
    found = cholesky_factor(c, mx.float64)
    f = nan_unless(found.sound, found.right)
    return (f.v @ f.v.mT) * (f.r * f.r)


def _inverse_in_numpy(c):
    """:func:`_inverse_in_graph` of a NumPy array."""
    import numpy as np

    n = c.shape[-1]
    try:
        inverse = np.linalg.inv(c)
    except np.linalg.LinAlgError:  # some of the matrices are singular, and will be seen to be
        inverse = np.linalg.inv(c + 1e-15 * np.eye(n))
    loss = np.trace(inverse, axis1=-2, axis2=-1)  # The diagonal of c is 1.
    sound = (np.diagonal(inverse, axis1=-2, axis2=-1) > 0).all(axis=-1) & (loss <= min(1 / (n * _EPS), 1e14))
    return np.where(sound[..., None, None], inverse, np.nan)


def _within(xp, x, state, lower, upper):
    """``x`` with its held variables exactly on their bounds and none outside; NaN stays NaN."""
    held = xp.where(state < 0, lower, upper)
    return xp.where(xp.isnan(x), x, xp.where(state == 0, xp.minimum(xp.maximum(x, lower), upper), held))
