"""Derivative rules of a square matrix whose inverse is at hand: P = A^-1 and x = P b, of every order.

    dP = -P dA P                A_bar = -P^H P_bar P^H
    dx = P (db - dA x)          b_bar = P^H x_bar,   A_bar = -b_bar x^H

The inverse is a constant for x, whose rule calls itself with A^H and P^H.
"""

import mlx.core as mx

from ._attach import attach
from ._blocks import h
from ._place import large, on_cpu


def attach_inverse(a, value):
    """``value`` as the inverse of ``a`` (..., n, n), in the dtype of ``a``."""
    with on_cpu():
        return _inverse(a, value.astype(a.dtype))


def solve_square(a, b, inverse, exact=False):
    """``a^-1 b`` (..., n, k) in the dtype of ``a``, by the float64 constant ``inverse``.

    ``exact``: with a step of refinement, which makes up for what rounding has cost the inverse.
    """
    with on_cpu():
        wide = b.astype(mx.float64)
        x = inverse @ wide
        if exact:
            x = x + inverse @ (wide - a.astype(mx.float64) @ x)
        return _solve(a, b, inverse, x.astype(a.dtype))


def _inverse_vjp(p, bar, a):
    with large(a.dtype):
        return (-(h(p) @ (bar @ h(p))),)


def _inverse_jvp(p, tangents, a):
    with large(a.dtype):
        return -(p @ (tangents[0] @ p))


def _solve_vjp(x, bar, a, b, inverse):
    with on_cpu():
        b_bar = solve_square(h(a), bar, h(inverse))
    with large(a.dtype):
        return -(b_bar @ h(x)), b_bar


def _solve_jvp(x, tangents, a, b, inverse):
    da, db = tangents[:2]
    with large(a.dtype):
        parts = ([] if db is None else [db]) + ([] if da is None else [-(da @ x)])
    return solve_square(a, sum(parts[1:], parts[0]), inverse)


_inverse = attach(_inverse_vjp, _inverse_jvp, (2, 2))
_solve = attach(_solve_vjp, _solve_jvp, (2, 2, 2, 2))
