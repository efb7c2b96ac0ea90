"""Derivative rules of square matrices that are inverted: P = A^-1 and x = P b.

    dP = -P dA P                A_bar = -P^H P_bar P^H
    dx = P (db - dA x)          b_bar = P^H x_bar,   A_bar = -b_bar x^H

P is a constant of the rule for x, which calls itself with A^H and P^H.
"""

import mlx.core as mx

from .._mlx.attach import attach
from .._mlx.complex import h
from .._mlx.matmul import matmul
from .._mlx.place import large, on_cpu
from .._mlx.shapes import total


def attach_inverse(a: mx.array, value: mx.array) -> mx.array:
    """``a^-1`` (..., n, n) with its derivative, in the dtype of ``a``; ``value`` is its float64 value."""
    with on_cpu():
        return _inverse(a, value.astype(a.dtype))


def attach_square_solve(a: mx.array, b: mx.array, inverse: mx.array, value: mx.array) -> mx.array:
    """``a^-1 b`` (..., n, k) with its derivative, in the dtype of ``a``; ``inverse`` is a float64 constant."""
    with on_cpu():
        return _solve(a, b, inverse, value.astype(a.dtype))


def _apply(a, b, inverse):
    with on_cpu():
        return attach_square_solve(a, b, inverse, inverse @ b.astype(mx.float64))


def _inverse_vjp(p, bar, a):
    with large(a.dtype):
        return (-matmul(h(p), matmul(bar, h(p))),)


def _inverse_jvp(p, tangents, a):
    with large(a.dtype):
        return -matmul(p, matmul(tangents[0], p))


def _solve_vjp(x, bar, a, b, inverse):
    with on_cpu():
        b_bar = _apply(h(a), bar, h(inverse))
    with large(a.dtype):
        return -matmul(b_bar, h(x)), b_bar


def _solve_jvp(x, tangents, a, b, inverse):
    da, db = tangents[:2]
    with large(a.dtype):
        parts = ([] if db is None else [db]) + ([] if da is None else [-matmul(da, x)])
    return _apply(a, total(parts), inverse)


_inverse = attach(_inverse_vjp, _inverse_jvp, 2, 2)
_solve = attach(_solve_vjp, _solve_jvp, 2, 2, 2, 2)
