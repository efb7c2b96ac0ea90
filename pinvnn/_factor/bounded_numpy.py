"""Least squares within bounds where values may be evaluated: block principal pivoting in NumPy, any batch at once."""

import math

import mlx.core as mx
import numpy as np

from .bounded_rounds import (
    PATIENCE,
    Problem,
    all_held,
    believed,
    exchange,
    placed,
    refined,
    scaled,
    snapped,
    solve,
    times,
    within,
    wrong,
)
from .bounded_rows import NUMBERS_AT_ONCE, numpy_crosses, numpy_slope, solve_by_rows

_REFINEMENTS = 4
# Inverses above the first cost a float64 solution more than four of its digits, and above the second nearly all.
_LARGE_INVERSE, _LARGEST_INVERSE = 1e3, 1e12


def solution_by_numpy(a, b, w, l2, lower, upper) -> tuple[mx.array, mx.array, mx.array | None]:
    """:func:`bounded_solution` of visible arrays. Small MLX operations would take most of the time."""
    exact = a.dtype == mx.float64
    few_rows = a.shape[-2] < a.shape[-1]
    a, b, w, l2, lower, upper = arrays = [None if v is None else np.asarray(v) for v in (a, b, w, l2, lower, upper)]
    with np.errstate(all="ignore"):  # NaN and Inf are arguments like others.
        gram, rhs = numpy_crosses(a, b, w)
        p = scaled(np, gram, rhs, b, w, l2, lower, upper)
        state, exact_enough = (all_held(np, p), False) if few_rows else _start(p)
        p = _spread(p)
        several = _has_several_solutions(p, a, l2)
        x, state, solved = _pivot_all(p, state, np.logical_and(p.good[..., 0], ~several))
        if exact and not exact_enough:
            x, holds = _refined(p, state, x, *arrays[:4])
        else:
            holds = believed(np, p, x)
        solved = np.logical_and(solved, holds[..., 0])
        for i in zip(*np.nonzero(np.logical_and(p.good[..., 0], ~solved)), strict=True):
            x[i], state[i] = solve_by_rows(p, i, *arrays[:4], in_units=bool(several[i]))
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


def _start(p: Problem):
    """Which variables may be free; and whether no digits of a float64 solution are in doubt.

    The solutions without bounds, moved into the box, and from there a step down the projected gradient, at whose end
    most variables are where they belong.
    """
    x, well_conditioned = _without_bounds(p)
    x = np.clip(x, p.lower, p.upper)
    downhill = p.q - times(p.c, x)
    step = np.where(np.where(downhill < 0, x > p.lower, x < p.upper), downhill, 0.0)
    square, curvature = (np.sum(step * v, axis=-1, keepdims=True) for v in (step, times(p.c, step)))
    return placed(np, p, x + square / np.where(curvature > 0, curvature, 1.0) * downhill), well_conditioned


def _without_bounds(p: Problem):
    """The solutions without bounds, and whether all of the matrices have small inverses."""
    n, matrices = p.q.shape[-1], p.c.shape[-3]
    q = p.q.reshape(*p.q.shape[:-2], matrices, -1, n)
    probe = np.broadcast_to(_probe(n), (*q.shape[:-2], 1, n))
    x = _lu(p.c, np.concatenate([q, probe], axis=-2).swapaxes(-1, -2)).swapaxes(-1, -2)
    return x[..., :-1, :].reshape(p.q.shape), np.abs(x[..., -1, :]).max() <= _LARGE_INVERSE


def _probe(n: int):
    """A vector whose product with an inverse shows its size (Dixon, SIAM J. Numer. Anal. 20 (1983), 812-814).

    It has some share of every direction: a product of less than 1e3 hides an inverse above 1e12 with probability 1e-8.
    No diagonal block of a positive definite matrix has a larger inverse.
    """
    return np.cos(np.arange(n) ** 2.0)


def _has_several_solutions(p: Problem, a, l2):
    """Which problems ``(..., k)`` have fewer rows than columns, no penalty, and a variable with room around 0.

    Pivoting would end in some vertex of their solutions, which may be as large as the box.
    """
    if a.shape[-2] >= a.shape[-1]:
        return np.zeros(p.q.shape[:-1], bool)
    inside = np.logical_and(p.lower < 0, p.upper > 0).any(axis=-1)
    free = np.broadcast_to((l2 == 0).all(axis=-2), (*l2.shape[:-2], p.q.shape[-2]))
    return np.broadcast_to(np.logical_and(np.logical_and(inside, free), p.good[..., 0]), p.q.shape[:-1])


def _pivot_all(p: Problem, state, which):
    """Solve the problems ``which`` (..., k): x, state, and which of them are solved; as many at once as memory allows.

    NaN for the others.
    """
    batch, n = p.q.shape[:-1], p.q.shape[-1]
    total, at_once = math.prod(batch), _matrices_at_once(n)
    state = np.array(np.broadcast_to(state, p.q.shape)).reshape(total, n)
    x, solved = np.full((total, n), np.nan), np.zeros(total, bool)
    some = np.flatnonzero(which)
    for i in range(0, len(some), at_once):
        now = some[i : i + at_once]
        if len(now) == total:
            rows = Problem(*(v.reshape(total, *v.shape[len(batch) :]) for v in p))
        else:
            where = np.unravel_index(now, batch)
            rows = Problem(*(v[where] for v in p))
        x[now], state[now], solved[now] = _pivot(rows, state[now])
    return x.reshape(p.q.shape), state.reshape(p.q.shape), solved.reshape(batch)


def _refined(p: Problem, state, x, a, b, w, l2):
    """Refine until the steps are of rounding only; also whether the solutions then are some."""
    for _ in range(_REFINEMENTS):
        at = (x / p.lengths).swapaxes(-1, -2)
        slope = numpy_slope(a, b, w, at) - l2 * at
        x, holds, done = refined(np, _some_by_lu, p, state, x, slope.swapaxes(-1, -2) / p.lengths)
        if done.all():
            break
    probe = np.broadcast_to(_probe(x.shape[-1]), x.shape)
    inverse = np.abs(_some_by_lu(p.c, state == 0, probe, np.zeros_like(x)))
    return x, np.logical_and(np.logical_and(holds, done), inverse.max(axis=-1, keepdims=True) <= _LARGEST_INVERSE)


def _pivot(p: Problem, here):
    """Solve problems ``(P, n)`` for x and states; the last of the three results says which are solved."""
    total, n = p.q.shape
    x, state, noise, solved = np.empty((total, n)), here.copy(), np.zeros((total, 1)), np.zeros(total, bool)
    rest, now = np.arange(total), p
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


def _some_by_lu(c, free, q, held):
    """:func:`_by_lu` of any batch, as many matrices at once as memory allows: one of many targets is a view."""
    x, batch, at_once = np.empty_like(q), q.shape[:-1], _matrices_at_once(q.shape[-1])
    for i in range(0, math.prod(batch), at_once):
        now = np.unravel_index(np.arange(i, min(i + at_once, math.prod(batch))), batch)
        x[now] = _by_lu(*(v[now] for v in (c, free, q, held)))
    return x


def _matrices_at_once(n: int) -> int:
    return max(1, NUMBERS_AT_ONCE // (n * n))


def _by_lu(c, free, q, held):
    if not free.all():
        c, q = np.where(free[..., None], c, np.eye(c.shape[-1])), np.where(free, q, held)
    return np.where(free, _lu(c, q[..., None])[..., 0], held)


def _lu(c, q):
    try:
        return np.linalg.solve(c, q)
    except np.linalg.LinAlgError:  # some of the matrices are singular
        return np.linalg.solve(c + 1e-13 * np.eye(c.shape[-1]), q)
