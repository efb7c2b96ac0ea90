"""Values of least squares within bounds, and which variables are held there: constants, float64, on the CPU.

Block principal pivoting (Portugal, Judice and Vicente, Math. Comp. 63 (1994), 625-643; with two bounds: Judice and
Pires, Comput. Oper. Res. 21 (1994), 587-596; Kim and Park, SIAM J. Sci. Comput. 33 (2011), 3261-3281). Each variable is
on its lower bound (-1), free (0) or on its upper bound (1). Solve for the free ones; free ones that leave the box are
held, held ones whose gradient points into the box are freed, all at once. If that lowers the number of wrong variables
in none of three rounds, only the last of them is exchanged (Murty), which cannot cycle. A round is a few operations on
all problems of a batch, and few rounds suffice: Lawson and Hanson's method exchanges one variable a round.

All of it is done on the Gram matrix with columns scaled to length 1, so that units do not matter.
"""

import mlx.core as mx

from .._mlx.blocks import cross, crosses, residual
from .._mlx.eager import visible
from .._mlx.place import on_cpu
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
from .full_rank import cholesky_factor, nan_unless
from .lapack import cholesky, tri_inv
from .ridge_values import RidgeInverse
from .right_factor import RightFactor, nan_where_negative

# Rounds in a graph, where their number is fixed. Random problems of 100 variables take 5 to 10.
_ROUNDS_IN_GRAPH = 24
_REFINEMENTS_IN_GRAPH = 2
# Not all that is doubted elsewhere (there it is solved by the rows) can be NaN: at a condition of 1e4 it may be right.
_LARGEST_FLOAT32 = 2.0**16


def bounded_solution(
    a: mx.array, b: mx.array, w: mx.array | None, l2: mx.array, lower: mx.array, upper: mx.array
) -> tuple[mx.array, mx.array, mx.array | None]:
    """The minimizer ``(..., n, k)`` in float64, and where each variable is: -1.0, 0.0 or 1.0, of the same shape.

    Third, where ``(..., 1, k)`` the free variables are the shortest of several solutions (1.0 or 0.0), None if nowhere.

    Where values can be evaluated, a problem that pivoting does not solve is solved by :func:`bounded_free_set`.
    Elsewhere (compile, vmap) it is NaN. A problem with NaN or Inf, a negative weight or penalty, or bounds out of
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
        w = None if w is None else nan_where_negative(mx.stop_gradient(w))
        if visible(a, b, w, l2, lower, upper):
            from .bounded_numpy import solution_by_numpy  # here: NumPy takes longer to import than all of MLX

            return solution_by_numpy(a, b, w, l2, lower, upper)
        a, b, l2, lower, upper = map(mx.stop_gradient, (a, b, l2, lower, upper))
        gram, rhs = crosses(a, [a, b], w)
        p = scaled(mx, gram, rhs, b, w, l2, lower, upper)
        x, state, solved = _in_graph(p, all_held(mx, p) if a.shape[-2] < a.shape[-1] else placed(mx, p, p.q))
        if a.dtype == mx.float64:
            for _ in range(_REFINEMENTS_IN_GRAPH):
                x, holds, _ = refined(mx, _definite, p, state, x, _slope(p, a, b, w, l2, x))
        else:
            holds = believed(mx, p, x, _LARGEST_FLOAT32)
        solved = mx.logical_and(mx.logical_and(solved, holds), p.good)
        x = mx.where(solved, x / p.lengths, mx.array(float("nan"), mx.float64)).mT
        return within(mx, x, state.mT, lower, upper), state.mT.astype(mx.float64), None


def _slope(p: Problem, a, b, w, l2, x):
    """Half the negative gradient at ``x``, ``(..., k, n)``, from the rows."""
    x = (x / p.lengths).mT
    return (cross(a, residual(a, b, x), w) - l2 * x).mT / p.lengths


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


def _in_graph(p: Problem, state: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """The solutions, their states, and which of them are some, from a state ``(..., 1 or k, 1 or n)``."""
    shape = p.q.shape
    state = mx.broadcast_to(state, shape)
    least = mx.full((*shape[:-1], 1), shape[-1] + 1, mx.int32)
    patience = mx.full((*shape[:-1], 1), PATIENCE, mx.int32)
    for _ in range(_ROUNDS_IN_GRAPH):
        x, gradient, noise = solve(mx, _definite, p, state)
        goal, moves = wrong(mx, p, state, x, gradient, noise, noise)
        state, least, patience = exchange(mx, state, goal, moves, least, patience)
    x, gradient, noise = solve(mx, _definite, p, state)
    _, moves = wrong(mx, p, state, x, gradient, noise, noise)
    unbalanced = mx.logical_and(state == 0, mx.logical_not(mx.abs(gradient) <= 64 * noise))
    solved = mx.logical_not(mx.any(mx.logical_or(moves, unbalanced), axis=-1, keepdims=True))
    return x, snapped(mx, p, state, x, noise), solved


def _definite(c, free, q, held):
    """A singular ``c`` gives any numbers: the gradient shows it."""
    eye = mx.eye(c.shape[-1], dtype=mx.float64)
    rhs = mx.where(free, q - times(c, held), mx.zeros_like(q))
    c = mx.where(mx.logical_and(free[..., None], free[..., None, :]), c, eye)
    lower = mx.tril(cholesky(c + 1e-13 * eye))
    pivots = mx.diagonal(lower, axis1=-2, axis2=-1)
    v = tri_inv(lower + eye * (pivots == 0)[..., None]).mT  # MLX raises for an inverse with a pivot of 0
    x = times(v, times(v.mT, rhs))
    for _ in range(2):  # of iterative refinement, for what was added to the diagonal
        x = x + times(v, times(v.mT, rhs - times(c, x)))
    return mx.where(free, x, held)
