"""exp, sin and cos that are right to 1e-15 in float64, with gradients of every order.

MLX evaluates its own float64 `exp`, `sin` and `cos` in single precision: they are right to 1e-7 .. 1e-5, and exp(100)
is inf. What MLX does get right to 1e-15 is `power` and `tan`, and the three functions are built from these.
"""

import math
from collections.abc import Callable
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
    return _wide(_exp64, x) if x.dtype == mx.float64 else mx.exp(x)


def sin(x: mx.array) -> mx.array:
    r"""The sine, right to 1e-15 in float64.

    Use it in place of ``mx.sin`` in a basis that is fitted in float64; in every other dtype it is ``mx.sin``.

    .. math:: \sin x = 2 t / (1 + t^2), \qquad t = \tan(x / 2)

    Args:
        x: array of any shape and dtype.

    Returns:
        Array of the shape and dtype of ``x``. Differentiable at any order; float64 is computed on the CPU.
    """
    return _wide(_sin64, x) if x.dtype == mx.float64 else mx.sin(x)


def cos(x: mx.array) -> mx.array:
    r"""The cosine, right to 1e-15 (absolute) in float64.

    Use it in place of ``mx.cos`` in a basis that is fitted in float64; in every other dtype it is ``mx.cos``.

    .. math:: \cos x = (1 - t) (1 + t) / (1 + t^2), \qquad t = \tan(x / 2)

    Args:
        x: array of any shape and dtype.

    Returns:
        Array of the shape and dtype of ``x``. Differentiable at any order; float64 is computed on the CPU.
    """
    return _wide(_cos64, x) if x.dtype == mx.float64 else mx.cos(x)


# Each function has a rule of its own: the gradient of tan goes through MLX's cos, and the third derivative of power is
# wrong (MLX 0.32). The argument is stopped, as a forward-mode product asks the rule only if it finds no other way in.


def _exp_value(x: mx.array) -> mx.array:
    x = mx.stop_gradient(x)
    power = mx.power(mx.array(math.e, dtype=mx.float64), x)
    # The clip keeps 0 * inf out of exp(-inf); beyond it the result is 0 or inf anyway.
    return power + power * (mx.clip(x, -750.0, 750.0) * _ONE_MINUS_LOG_E)


def _sin_value(x: mx.array) -> mx.array:
    t = mx.tan(0.5 * mx.stop_gradient(x))
    return 2 * t / (1 + t * t)


def _cos_value(x: mx.array) -> mx.array:
    t = mx.tan(0.5 * mx.stop_gradient(x))
    return (1 - t) * (1 + t) / (1 + t * t)


def _wide(fn: Callable, *arrays: mx.array) -> mx.array:
    """A function of float64 arrays on the CPU, the only place for them."""
    with mx.stream(mx.cpu):
        return fn(*arrays)


def _with_rule(value: Callable, derivative: Callable) -> Any:
    """``value`` with the elementwise ``derivative``, a function of x that has a rule itself."""
    fn: Any = mx.custom_function(lambda x: _wide(value, x))
    fn.vjp(lambda x, cotangent, _: _wide(lambda: cotangent * derivative(x)))
    fn.jvp(lambda x, tangent: _wide(lambda: tangent * derivative(x)))
    fn.vmap(lambda x, axis: (_wide(fn, x), axis))
    return fn


_exp64 = _with_rule(_exp_value, lambda x: _exp64(x))
_sin64 = _with_rule(_sin_value, lambda x: _cos64(x))
_cos64 = _with_rule(_cos_value, lambda x: -_sin64(x))
