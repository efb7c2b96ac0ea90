"""exp, sin and cos that are right to 1e-15 in float64, with gradients of every order.

MLX evaluates its own float64 `exp`, `sin` and `cos` in single precision: they are right to 1e-7 .. 1e-5, and exp(100)
is inf. What MLX does get right to 1e-15 is `power` and `tan`, and the three functions are built from these.
"""

import math
from typing import Any

import mlx.core as mx

_ONE_MINUS_LOG_E = 5.318237706605891e-17
"""1 - log(math.e): the float64 nearest to e is not e, and 700 times its error is 4e-14."""


def exp(x: mx.array) -> mx.array:
    r"""The exponential, right to 1e-15 in float64.

    Use it in place of ``mx.exp`` in a basis that is fitted in float64; in every other dtype it is ``mx.exp``.

    .. math:: e^x = \bar e^x (1 + x (1 - \log \bar e)), \qquad \bar e = \text{the float64 nearest to } e

    Args:
        x: array of any shape and dtype.

    Returns:
        Array of the shape and dtype of ``x``. Differentiable at any order; float64 is computed on the CPU.
    """
    if x.dtype != mx.float64:
        return mx.exp(x)
    with mx.stream(mx.cpu):
        power = mx.power(mx.array(math.e, dtype=mx.float64), x)
        # The clip keeps 0 * inf out of exp(-inf); beyond it the result is 0 or inf anyway.
        return power + power * (mx.clip(x, -750.0, 750.0) * _ONE_MINUS_LOG_E)


def sin(x: mx.array) -> mx.array:
    r"""The sine, right to 1e-15 in float64.

    Use it in place of ``mx.sin`` in a basis that is fitted in float64; in every other dtype it is ``mx.sin``.

    .. math:: \sin x = 2 t / (1 + t^2), \qquad t = \tan(x / 2)

    Args:
        x: array of any shape and dtype.

    Returns:
        Array of the shape and dtype of ``x``. Differentiable at any order; float64 is computed on the CPU.
    """
    return _sin64(x) if x.dtype == mx.float64 else mx.sin(x)


def cos(x: mx.array) -> mx.array:
    r"""The cosine, right to 1e-15 (absolute) in float64.

    Use it in place of ``mx.cos`` in a basis that is fitted in float64; in every other dtype it is ``mx.cos``.

    .. math:: \cos x = (1 - t) (1 + t) / (1 + t^2), \qquad t = \tan(x / 2)

    Args:
        x: array of any shape and dtype.

    Returns:
        Array of the shape and dtype of ``x``. Differentiable at any order; float64 is computed on the CPU.
    """
    return _cos64(x) if x.dtype == mx.float64 else mx.cos(x)


def _half_tangent(x: mx.array) -> mx.array:
    # Stopped: the gradient of tan goes through MLX's own cos, and jvp only asks the rule below if it finds no other way
    # in.
    return mx.tan(0.5 * mx.stop_gradient(x))


def _sin_value(x: mx.array) -> mx.array:
    with mx.stream(mx.cpu):
        t = _half_tangent(x)
        return 2 * t / (1 + t * t)


def _cos_value(x: mx.array) -> mx.array:
    with mx.stream(mx.cpu):
        t = _half_tangent(x)
        return (1 - t) * (1 + t) / (1 + t * t)


def _times(factor: mx.array, derivative: mx.array) -> mx.array:
    with mx.stream(mx.cpu):
        return factor * derivative


def _minus_sin64(x: mx.array) -> mx.array:
    with mx.stream(mx.cpu):
        return -_sin64(x)


_sin64: Any = mx.custom_function(_sin_value)
_cos64: Any = mx.custom_function(_cos_value)
_sin64.vjp(lambda x, cotangent, _: _times(cotangent, _cos64(x)))
_sin64.jvp(lambda x, tangent: _times(tangent, _cos64(x)))
_sin64.vmap(lambda x, axis: (_sin64(x), axis))
_cos64.vjp(lambda x, cotangent, _: _times(cotangent, _minus_sin64(x)))
_cos64.jvp(lambda x, tangent: _times(tangent, _minus_sin64(x)))
_cos64.vmap(lambda x, axis: (_cos64(x), axis))
