"""Residuals b - A x in float64, whatever the dtype of A and the default device, differentiable at every order.

A residual of least squares is orthogonal to A. If it is rounded to float32, or taken of a rounded x, then what A^H
makes of it is no longer zero but noise, which the derivative of x multiplies by the condition number. The functions
here are float64 from end to end and closed under differentiation, with Y = A X:

    product  Y = A X      A_bar = Y_bar X^H,  X_bar = A^H Y_bar
    cross    X = A^H Y    A_bar = Y X_bar^H,  Y_bar = A X_bar

Complex columns X are [Re; Im], complex rows Y are [Re | Im].
"""

import mlx.core as mx

from .._mlx.attach import attach, attach_like
from .._mlx.blocks import cross, times
from .._mlx.centred import Matrix, in_float64
from .._mlx.complex import h, unstack
from .._mlx.matmul import matmul
from .._mlx.place import large, on_cpu
from .._mlx.shapes import total


def exact_residual(a: Matrix, b: Matrix, x: mx.array) -> mx.array:
    """``b - a x`` for stacked float64 ``x`` (..., n or 2n, k): ``(..., m, k)``, or [Re | Im] ``(..., m, 2k)``."""
    with on_cpu():
        return in_float64(b) - exact_product(a, x)


#: ``attach_residual(a, b, x, value)``: the float64 constant ``value`` with the derivatives of b - A x.
attach_residual = attach_like(exact_residual, 3, 2, 2, 2, 2)


def sums_of_squares(rest: mx.array, w: mx.array | None, dtype: mx.Dtype) -> mx.array:
    """``sum_i w_i |r_i|^2`` (..., k) of float64 residuals ``(..., m, k)``, or [Re | Im] if the ``dtype`` is complex."""
    with on_cpu():
        if rest.size == 0:  # MLX may never return from a sum over the zero rows of a transposed array.
            sums = mx.zeros((*rest.shape[:-2], rest.shape[-1]), mx.float64)
        else:
            sums = mx.sum(rest * rest if w is None else w[..., None] * rest * rest, axis=-2)
        if dtype == mx.complex64:
            re, im = mx.split(sums, 2, axis=-1)
            sums = re + im
        return sums


def exact_product(a: Matrix, x: mx.array) -> mx.array:
    """``a x``, likewise."""
    return _product(a, x, times(a, x, rounded=False))


def _exact_cross(a, y):
    return _cross(a, y, cross(a, y))


def _outer(a, y, x):
    """``y x^H`` in the dtype of ``a``."""
    with on_cpu():
        x = unstack(x, a.dtype)
        if a.dtype == mx.complex64:
            re, im = mx.split(y.astype(mx.float32), 2, axis=-1)
            y = re + mx.array(1j, mx.complex64) * im
        y = y.astype(a.dtype)
    with large(a.dtype):
        return matmul(y, h(x))


def _product_jvp(y, tangents, a, x):
    da, dx = tangents[:2]
    with on_cpu():
        parts = [] if dx is None else [exact_product(a, dx)]
        return total(parts if da is None else [*parts, exact_product(da, x)])


def _cross_jvp(x, tangents, a, y):
    da, dy = tangents[:2]
    with on_cpu():
        parts = [] if dy is None else [_exact_cross(a, dy)]
        return total(parts if da is None else [*parts, _exact_cross(da, y)])


_product = attach(lambda y, bar, a, x: (_outer(a, bar, x), _exact_cross(a, bar)), _product_jvp, 2, 2, 2)
_cross = attach(lambda x, bar, a, y: (_outer(a, y, bar), exact_product(a, bar)), _cross_jvp, 2, 2, 2)
