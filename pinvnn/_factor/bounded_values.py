"""Values of least squares within bounds, and which variables are held there: constants, float64, on the CPU.

Block principal pivoting (Portugal, Judice and Vicente, Math. Comp. 63 (1994), 625-643; with two bounds: Judice and
Pires, Comput. Oper. Res. 21 (1994), 587-596; Kim and Park, SIAM J. Sci. Comput. 33 (2011), 3261-3281). Each variable is
on its lower bound (-1), free (0) or on its upper bound (1). Solve for the free ones; free ones that leave the box are
held, held ones whose gradient points into the box are freed, all at once. If that lowers the number of wrong variables
in none of three rounds, only the last of them is exchanged (Murty), which cannot cycle. A round is a few operations on
all problems of a batch, and few rounds suffice: Lawson and Hanson's method exchanges one variable a round.

All of it is done on the Gram matrix with columns scaled to length 1, so that units do not matter.
"""

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
        eager = visible(a, b, w, l2, lower, upper)
        gram, rhs = _numpy_crosses(a, b, w) if eager else crosses(a, [a, b], w)
        p = _scaled(gram, rhs, a, b, w, l2, lower, upper)
        x, state = _by_numpy(p, a, b, w, l2) if eager else _in_graph(p)
        x = (x / p.lengths).mT
        if a.dtype == mx.float64:  # A step of iterative refinement: forming the Gram matrix has lost digits.
            slope = _numpy_slope(a, b, w, x) if eager else cross(a, residual(a, b, x), w)
            x = _refined(x, slope - l2 * x, gram, l2, (state == 0).mT)
        return _within(x, state.mT, lower, upper), state.mT


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


def _on_bounds(xp, p: Problem, state):
    return xp.where(state < 0, p.lower, xp.where(state > 0, p.upper, xp.zeros_like(p.q)))


def _solve(xp, solver: Callable[[Any, Any], Any], p: Problem, state):
    """Solve for x in a state; also half the gradient there, and what rounding may have made of either."""
    free = state == 0
    on = xp.where(free, xp.ones_like(p.q), xp.zeros_like(p.q))
    x = _on_bounds(xp, p, state)
    rhs = on * (p.q - _times(p.c, x))
    eye = xp.eye(x.shape[-1], dtype=xp.float64)
    x = xp.where(free, solver(p.c * (on[..., None] * on[..., None, :]) + eye * (1 - on)[..., None, :], rhs), x)
    return x, _times(p.c, x) - p.q, 16 * _EPS * (p.size + xp.sum(xp.abs(x), axis=-1, keepdims=True))


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
    patience = xp.where(count < least, xp.full_like(count, _PATIENCE), patience - 1)
    index = xp.broadcast_to(xp.arange(state.shape[-1], dtype=xp.int32), state.shape)
    last = xp.max(xp.where(any_of, index, xp.full_like(index, -1)), axis=-1, keepdims=True)
    change = xp.logical_and(any_of, xp.logical_or(patience >= 0, index == last))
    to = xp.where(below, xp.full_like(state, -1), xp.where(above, xp.ones_like(state), xp.zeros_like(state)))
    return xp.where(change, to, state), xp.minimum(count, least), patience


def _snapped(xp, p: Problem, state, x, noise):
    """The state in which a free variable that is on a bound but for rounding is held there."""
    free = state == 0
    low = xp.logical_and(free, x <= p.lower + noise)
    high = xp.logical_and(free, x >= p.upper - noise)
    return xp.where(low, xp.full_like(state, -1), xp.where(high, xp.ones_like(state), state))


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


def _by_numpy(p: Problem, a, b, w, l2) -> tuple[mx.array, mx.array]:
    import numpy as np

    batch, n = p.q.shape[:-1], p.q.shape[-1]
    mx.eval(p)
    full = {"c": (*batch, n, n), "size": (*batch, 1), "good": (*batch, 1)}
    # Views: nothing is copied before problems are picked out.
    p = Problem(*(np.broadcast_to(np.asarray(v), full.get(f, (*batch, n))) for f, v in p._asdict().items()))
    total, at_once = int(np.prod(batch)), max(1, _NUMBERS_AT_ONCE // (n * n))
    x, state = np.full((total, n), np.nan), np.array(p.start).reshape(total, n)
    unsolved = []
    for i in range(0, total, at_once):
        which = np.arange(i, min(i + at_once, total))
        where = np.unravel_index(which, batch)
        good = p.good[where][:, 0]
        which, where = which[good], tuple(axis[good] for axis in where)
        part = Problem(*(field[where] for field in p))
        x[which], state[which], solved = _pivot(part)
        unsolved += list(which[~solved])
    if unsolved:
        arrays = [None if v is None else np.asarray(v) for v in (a, b, w, l2)]
        for i in unsolved:
            x[i], state[i] = _one_by_active_set(p, np.unravel_index(i, batch), *arrays)
    return mx.array(x.reshape(p.q.shape), mx.float64), mx.array(state.reshape(p.q.shape))


def _pivot(p: Problem):
    """Solve problems ``(P, n)`` for x and states; the last of the three results says which are solved."""
    import numpy as np

    total, n = p.q.shape
    x, state, solved = np.zeros((total, n)), p.start.copy(), np.zeros(total, bool)
    rest, now = np.arange(total), p
    least, patience = np.full((total, 1), n + 1), np.full((total, 1), _PATIENCE)
    for _ in range(3 * n + 20):
        if not rest.size:
            break
        found, gradient, noise = _solve(np, _by_lu, now, state[rest])
        wrong = _wrong(np, now, state[rest], found, gradient, noise)
        done = ~np.logical_or(np.logical_or(wrong[0], wrong[1]), wrong[2]).any(axis=-1)
        if done.any():
            on, gone = ~done, rest[done]
            x[gone] = found[done]
            balanced = np.abs(np.where(state[gone] == 0, gradient[done], 0)) <= 64 * noise[done]
            solved[gone] = balanced.all(axis=-1)
            state[gone] = _snapped(np, Problem(*(f[done] for f in now)), state[gone], found[done], noise[done])
            rest, now, wrong = rest[on], Problem(*(f[on] for f in now)), [v[on] for v in wrong]
            least, patience = least[on], patience[on]
        state[rest], least, patience = _exchange(np, state[rest], wrong, least, patience)
    return x, state, solved


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


def _numpy_crosses(a, b, w) -> tuple[mx.array, mx.array]:
    """A^T D A and A^T D b by NumPy, whose BLAS is the faster one on Linux; by blocks of rows."""
    import numpy as np

    a, b = np.asarray(a), np.asarray(b)
    w = None if w is None else np.asarray(w)
    m = a.shape[-2]
    step = max(1, _NUMBERS_AT_ONCE * m // (a.size + b.size))
    gram, rhs = 0.0, 0.0
    for i in range(0, m, step):
        rows = slice(i, i + step)
        left, right = (v[..., rows, :].astype(float) for v in (a, b))
        weighted = left if w is None else w[..., rows, None] * left
        weighted = weighted.swapaxes(-1, -2)
        gram, rhs = gram + weighted @ left, rhs + weighted @ right
    return mx.array(gram, mx.float64), mx.array(rhs, mx.float64)


def _numpy_slope(a, b, w, x) -> mx.array:
    """A^T D (b - A x) of float64 arrays."""
    import numpy as np

    a, b, x = (np.asarray(v) for v in (a, b, x))
    rest = b - a @ x
    rest = rest if w is None else np.asarray(w)[..., None] * rest
    return mx.array(a.swapaxes(-1, -2) @ rest, mx.float64)


# --- Before and after -------------------------------------------------------------------------------------------------


def _scaled(gram, rhs, a, b, w, l2, lower, upper) -> Problem:
    n, eye = gram.shape[-1], mx.eye(gram.shape[-1], dtype=mx.float64)
    nan = mx.array(float("nan"), mx.float64)
    l2 = mx.where(l2 < 0, nan, l2).mT
    gram = gram[..., None, :, :] + eye * l2[..., None, :]
    diagonal = mx.diagonal(gram, axis1=-2, axis2=-1)
    lengths = mx.sqrt(mx.where(diagonal > 0, diagonal, mx.ones_like(diagonal)))
    c, q = gram / lengths[..., None] / lengths[..., None, :], rhs.mT / lengths
    c = c * (1 - eye) + eye  # of a column of zeros, too: its variable is then 0, or what bound is nearest
    # At least |D^(1/2) b|, without a copy of b in float64.
    total = mx.array(float(b.shape[-2]), mx.float64) if w is None else mx.sum(w.astype(mx.float64), axis=-1)[..., None]
    size = (mx.sqrt(total) * mx.max(mx.abs(b), axis=-2).astype(mx.float64))[..., None]
    lower, upper = lower.mT, upper.mT
    ordered = mx.logical_and(lower <= upper, mx.logical_and(lower < float("inf"), upper > -float("inf")))
    whole = mx.broadcast_shapes(q.shape, lower.shape, upper.shape, (*c.shape[:-2], n), (*size.shape[:-1], n))
    ordered = mx.all(mx.broadcast_to(ordered, whole), axis=-1, keepdims=True)
    finite = mx.isfinite(mx.sum(c, axis=(-2, -1))[..., None] + mx.sum(q + lengths, axis=-1, keepdims=True) + size)
    good = mx.logical_and(ordered, finite)
    zero, one = mx.array(0.0, mx.float64), mx.array(1.0, mx.float64)
    # By itself, so that one matrix may stay one for all targets.
    c = mx.where(mx.isfinite(mx.sum(c, axis=(-2, -1), keepdims=True)), c, eye)
    q, size = mx.where(good, q, zero), mx.where(good, size, zero)
    lower, upper = mx.where(good, lower * lengths, zero), mx.where(good, upper * lengths, one)
    minus, none = mx.array(-1, mx.int32), mx.array(0, mx.int32)
    start = mx.where(lower == upper, minus, none)
    if a.shape[-2] < n:  # All columns together are singular: begin with none.
        far = mx.where(mx.isfinite(upper), mx.array(1, mx.int32), none)
        start = mx.where(mx.isfinite(lower), minus, far)
    lower, upper, q, start = (mx.broadcast_to(v, whole) for v in (lower, upper, q, start))
    return Problem(c, q, lower, upper, size, good, lengths, start)


def _refined(x, gradient, gram, l2, is_free):
    """The minimizer ``x`` moved by Newton's step for the free variables, where there is one."""
    free = mx.where(is_free, mx.ones_like(x), mx.zeros_like(x))
    f = _free_factor(gram, l2, free, mx.float64)
    step = _times(f.v, _times(f.v.mT, (gradient * free).mT)).mT * (f.r[..., 0].mT ** 2)
    return mx.where(mx.isfinite(step), x + step, x)


def _within(x, state, lower, upper):
    """``x`` with its held variables exactly on their bounds and none outside; NaN stays NaN."""
    inside = mx.minimum(mx.maximum(x, lower), upper)
    held = mx.where(state < 0, lower, upper)
    return mx.where(mx.isnan(x), x, mx.where(state == 0, inside, held))
