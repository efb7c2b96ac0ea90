"""Derivatives of the weighted mean of rows, and of what the mean leaves of them.

With W = sum_i w_i, mean = sum_i w_i x_i / W and d_i = x_i - mean,

    mean:  x_bar_i = w_i mean_bar / W,  w_bar_i = <d_i, mean_bar> / W,  dmean = (sum_i w_i dx_i + sum_i dw_i d_i) / W
    d:     x_bar = d_bar,  mean_bar = -sum_i d_bar_i.

By hand, since MLX would form an array of the size of x for each step.
"""

import mlx.core as mx

from .._mlx.attach import attach
from .._mlx.place import on_cpu
from .._mlx.shapes import total


def weighted_mean(x: mx.array, w: mx.array | None) -> mx.array:
    """The mean ``(..., 1, n)`` of the rows of ``x`` (..., m, n) with weights ``(..., m)``, or None for weights of 1.

    0 where the weights sum to 0: a solution is 0 then, where there is one.
    """
    if w is None:
        return mx.sum(x, axis=-2, keepdims=True) / max(x.shape[-2], 1)
    return mx.sum(w[..., None] * x, axis=-2, keepdims=True) / divisor(mx.sum(w, axis=-1))[..., None, None]


def divisor(weight: mx.array) -> mx.array:
    """A sum of weights, 1 in place of 0."""
    return mx.where(weight == 0, 1, weight)


def with_derivative_of_deviations(x: mx.array, w: mx.array | None) -> tuple[mx.array, mx.array]:
    """``x`` with the derivative of x less its mean, and zeros ``(..., 1, n)`` with that of the mean; on the CPU."""
    with on_cpu():
        batch = x.shape[:-2] if w is None else mx.broadcast_shapes(x.shape[:-2], w.shape[:-1])
        mean = _mean(x, w, mx.zeros((*batch, 1, x.shape[-1]), x.dtype))
        whole = x if w is None else mx.broadcast_to(x, (*batch, *x.shape[-2:]))
        return _deviations(x, mean, whole), mean


def _mean_vjp(_, bar, x, w):
    if w is None:
        return mx.broadcast_to(bar / x.shape[-2], (*bar.shape[:-2], *x.shape[-2:])), None
    bar = bar / divisor(mx.sum(w, axis=-1))[..., None, None]
    return w[..., None] * bar, mx.sum((x - weighted_mean(x, w)) * bar, axis=-1)


def _mean_jvp(_, tangents, x, w):
    dx, dw = tangents
    parts = [] if dx is None else [weighted_mean(dx, w)]
    if dw is not None:
        moved = mx.sum(dw[..., None] * (x - weighted_mean(x, w)), axis=-2, keepdims=True)
        parts.append(moved / divisor(mx.sum(w, axis=-1))[..., None, None])
    return total(parts)


def _deviations_vjp(_, bar, x, mean):
    return bar, -mx.sum(bar, axis=-2, keepdims=True)


def _deviations_jvp(out, tangents, x, mean):
    dx, dmean = tangents
    parts = [] if dx is None else [dx]
    parts += [] if dmean is None else [mx.broadcast_to(-dmean, out.shape)]
    return total(parts)


_mean = attach(_mean_vjp, _mean_jvp, 2, 1, 2)
_deviations = attach(_deviations_vjp, _deviations_jvp, 2, 2, 2)
