"""Least squares within bounds where values may be evaluated: block principal pivoting in NumPy, any batch at once."""

import math

import mlx.core as mx
import numpy as np

from .active_set import bounded_free_set
from .bounded_rounds import (
    PATIENCE,
    Problem,
    believed,
    exchange,
    free_part,
    refined,
    scaled,
    snapped,
    solve,
    within,
    wrong,
)

# Problems whose matrices are held together, by numbers.
_NUMBERS_AT_ONCE = 2**21
_REFINEMENTS = 4


def solution_by_numpy(a, b, w, l2, lower, upper) -> tuple[mx.array, mx.array, mx.array | None]:
    """:func:`bounded_solution` of visible arrays. Small MLX operations would take most of the time."""
    exact = a.dtype == mx.float64
    a, b, w, l2, lower, upper = arrays = [None if v is None else np.asarray(v) for v in (a, b, w, l2, lower, upper)]
    with np.errstate(all="ignore"):  # NaN and Inf are arguments like others.
        gram, rhs = _numpy_crosses(a, b, w)
        p = _spread(scaled(np, gram, rhs, b, w, l2, lower, upper))
        several = _has_several_solutions(p, a, l2)
        x, state, solved = _pivot_all(p, np.logical_and(p.good[..., 0], ~several))
        if exact:
            x, holds = _refined(p, state, x, *arrays[:4])
        else:
            holds = believed(np, p, x)
        solved = np.logical_and(solved, holds[..., 0])
        for i in zip(*np.nonzero(np.logical_and(p.good[..., 0], ~solved)), strict=True):
            x[i], state[i] = _one_by_active_set(p, i, *arrays[:4], in_units=bool(several[i]))
        x, state = (x / p.lengths).swapaxes(-1, -2), state.swapaxes(-1, -2)
        x = within(np, x, state, lower, upper)
    shortest = mx.array(several[..., None, :].astype(float), mx.float64) if several.any() else None
    return mx.array(x, mx.float64), mx.array(state.astype(float), mx.float64), shortest


def _spread(p: Problem) -> Problem:
    """All fields of the shape of the solution, as views."""
    batch, n = p.q.shape[:-1], p.q.shape[-1]
    full = {"c": (*batch, n, n), "size": (*batch, 1), "good": (*batch, 1)}
    shapes = (full.get(f, p.q.shape) for f in p._fields)
    return Problem(*(v if v.shape == s else np.broadcast_to(v, s) for v, s in zip(p, shapes, strict=True)))


def _has_several_solutions(p: Problem, a, l2):
    """Which problems ``(..., k)`` have fewer rows than columns, no penalty, and a variable with room around 0.

    Pivoting would end in some vertex of their solutions, which may be as large as the box.
    """
    if a.shape[-2] >= a.shape[-1]:
        return np.zeros(p.q.shape[:-1], bool)
    inside = np.logical_and(p.lower < 0, p.upper > 0).any(axis=-1)
    free = np.broadcast_to((l2 == 0).all(axis=-2), (*l2.shape[:-2], p.q.shape[-2]))
    return np.broadcast_to(np.logical_and(np.logical_and(inside, free), p.good[..., 0]), p.q.shape[:-1])


def _pivot_all(p: Problem, which):
    """Solve the problems ``which`` (..., k): x, state, and which of them are solved; as many at once as memory allows.

    NaN for the others.
    """
    batch, n = p.q.shape[:-1], p.q.shape[-1]
    total, at_once = math.prod(batch), max(1, _NUMBERS_AT_ONCE // (n * n))
    x, state, solved = np.full((total, n), np.nan), np.array(p.start).reshape(total, n), np.zeros(total, bool)
    some = np.flatnonzero(which)
    for i in range(0, len(some), at_once):
        now = some[i : i + at_once]
        if len(now) == total:
            rows = Problem(*(v.reshape(total, *v.shape[len(batch) :]) for v in p))
        else:
            where = np.unravel_index(now, batch)
            rows = Problem(*(v[where] for v in p))
        x[now], state[now], solved[now] = _pivot(rows)
    return x.reshape(p.q.shape), state.reshape(p.q.shape), solved.reshape(batch)


def _refined(p: Problem, state, x, a, b, w, l2):
    """Refine until the steps are of rounding only; also whether the solutions then are some."""
    for _ in range(_REFINEMENTS):
        at = (x / p.lengths).swapaxes(-1, -2)
        slope = _numpy_slope(a, b, w, at) - l2 * at
        x, holds, done = refined(np, _by_lu, p, state, x, slope.swapaxes(-1, -2) / p.lengths)
        if done.all():
            break
    return x, np.logical_and(holds, done)


def _pivot(p: Problem):
    """Solve problems ``(P, n)`` for x and states; the last of the three results says which are solved."""
    total, n = p.q.shape
    x, state, noise, solved = np.empty((total, n)), p.start.copy(), np.zeros((total, 1)), np.zeros(total, bool)
    rest, now, here = np.arange(total), p, p.start
    least, patience = np.full((total, 1), n + 1), np.full((total, 1), PATIENCE)
    for _ in range(3 * n + 20):
        found = solve(np, _by_lu, now, here)
        goal, moves = wrong(np, now, here, *found, found[-1])
        on = moves.any(axis=-1)
        if not on.all():
            gone, which = rest[~on], ~on
            x[gone], gradient, noise[gone] = (v[which] for v in found)
            state[gone] = here[which]
            solved[gone] = (np.abs(gradient * (state[gone] == 0)) <= 64 * noise[gone]).all(axis=-1)
            if len(gone) == len(rest):
                break
            rest, here, goal, moves, least, patience = (v[on] for v in (rest, here, goal, moves, least, patience))
            now = now._replace(**{f: getattr(now, f)[on] for f in ("c", "q", "lower", "upper", "size")})
        here, least, patience = exchange(np, here, goal, moves, least, patience)
    return x, snapped(np, p, state, x, noise), solved


def _by_lu(c, free, rhs):
    c = c if free.all() else free_part(np, c, free)
    try:
        return np.linalg.solve(c, rhs[..., None])[..., 0]
    except np.linalg.LinAlgError:  # some of the matrices are singular
        return np.linalg.solve(c + 1e-13 * np.eye(c.shape[-1]), rhs[..., None])[..., 0]


def _one_by_active_set(p: Problem, at, a, b, w, l2, in_units: bool = False):
    """Solve for x and state of the one problem ``at`` an index over (batch, targets).

    Of several solutions the free variables are the shortest: with columns of length 1, or ``in_units`` of the caller.
    """
    batch, t = p.q.shape[:-2], at[-1]
    m, n, lengths = *a.shape[-2:], p.lengths[at]
    rows = np.broadcast_to(a, (*batch, m, n))[at[:-1]].astype(float)
    rhs = np.broadcast_to(b, (*batch, m, b.shape[-1]))[at[:-1]][:, t].astype(float)
    penalty = np.broadcast_to(l2, (*batch, n, b.shape[-1]))[at[:-1]][:, t]
    if w is not None:
        root = np.sqrt(np.broadcast_to(w, (*batch, m))[at[:-1]].astype(float))
        rows, rhs = root[:, None] * rows, root * rhs
    units = np.ones(n) if in_units else lengths
    rows = np.concatenate([rows, np.diag(np.sqrt(penalty))[penalty > 0]]) / units
    rhs = np.concatenate([rhs, np.zeros(len(rows) - m)])
    if len(rows) > n:
        q, rows = np.linalg.qr(rows)
        rhs = q.T @ rhs
    by = lengths / units
    lower, upper = p.lower[at] / by, p.upper[at] / by
    free, x = bounded_free_set(rows, rhs, lower, upper)
    gradient = rows.T @ (rows @ x - rhs) / by
    movable = lower < upper
    slope = np.where(x > lower, np.maximum(gradient, 0), 0) + np.where(x < upper, np.maximum(-gradient, 0), 0)
    if not (np.where(movable, slope, 0) <= 1e-9 * (p.size[at] + np.abs(x * by).sum())).all():
        x = np.full(n, np.nan)
    return x * by, np.where(free, 0, np.where(x <= lower, -1, 1))


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
