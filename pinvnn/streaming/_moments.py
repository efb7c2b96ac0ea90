r"""Centred first and second moments of rows: everything a linear readout needs to know about its data.

Notation: rows (x_i, y_i) of weight w_i, W = sum w_i, means m_x, m_y, and the centred sums of products

    S_xx = sum w_i (x_i - m_x)(x_i - m_x)^T,    S_xy, S_yy likewise.

Two sets of rows a and b are merged without looking at them again (Chan, Golub and LeVeque 1979, Eq. 2.1, there for one
variable), with d = m_b - m_a:

    W = W_a + W_b,    m = m_a + (W_b / W) d,    S = S_a + S_b + (W_a W_b / W) d d^T.

Each sum is taken about a mean of its own, so that nothing cancels when the mean is large against the spread; raw sums
of products lose all digits there. The formula is valid for negative weights as well: merging with -W_b, m_b, -S_b takes
rows away. Without an intercept the "means" are zero and the same formulas add the raw sums.

Everything is a plain differentiable function in float64 on the CPU, whatever the input and the default device: a GPU
has no float64, and float32 products keep a readout only up to a condition number of about a thousand.
"""

from collections.abc import Iterator
from functools import reduce
from math import isfinite, prod
from typing import NamedTuple

import mlx.core as mx

from .._mlx import on_cpu
from ._rows import check_rows

# Numbers in a float64 row block: small enough to stay in cache, large enough that the merges cost nothing beside it.
BLOCK = 2**18


class Moments(NamedTuple):
    """Moments of weighted rows (x, y), all float64 on the CPU. ``n`` input features, ``k`` targets.

    Attributes:
        count: Sum of the weights, which is the number of rows if none were given, ``()``.
        x_mean: Weighted mean of the inputs, ``(n,)``; zero where the moments are not centred.
        y_mean: Weighted mean of the targets, ``(k,)``; likewise.
        xx: Centred sum of products of inputs with inputs, ``(n, n)``.
        xy: Centred sum of products of inputs with targets, ``(n, k)``.
        yy: Centred sum of squares of each target, ``(k,)``. Products between targets are never needed.
    """

    count: mx.array
    x_mean: mx.array
    y_mean: mx.array
    xx: mx.array
    xy: mx.array
    yy: mx.array


def empty_moments(input_dims: int, output_dims: int) -> Moments:
    """Moments of no rows: the neutral element of :func:`merge_moments`."""
    n, k = input_dims, output_dims
    with on_cpu():
        return Moments(*(mx.zeros(shape, mx.float64) for shape in [(), (n,), (k,), (n, n), (n, k), (k,)]))


def moments(x: mx.array, y: mx.array, weights: mx.array | None = None, *, bias: bool = True) -> Moments:
    """Moments of a batch of rows, lazy and differentiable in all of it; for use inside ``mx.compile`` and ``mx.vmap``.

    The rows are turned into float64 block by block. (In a lazy graph MLX may convert many blocks before it multiplies
    the first; :class:`ReadoutStatistics` evaluates each block as it goes and so never holds more than one.)

    Args:
        x: Inputs, ``(..., n)``. All leading dimensions count as rows.
        y: Targets, ``(..., k)``, with the leading dimensions of ``x``.
        weights: Non-negative weights of the rows, ``(...)``; a row of weight 2 counts as given twice. A negative weight
            gives NaN.
        bias: Whether a readout from these moments has an intercept, that is, whether they are centred.

    Raises:
        TypeError: An argument is no array, or complex.
        ValueError: The shapes do not fit together.
    """
    x, y, weights = check_rows("moments", x, y, weights)
    return reduce(merge_moments, block_moments(x, y, weights, bias))


def block_moments(x: mx.array, y: mx.array, weights: mx.array | None, bias: bool) -> Iterator[Moments]:
    """Moments of one row block after the other; merged, they are those of all rows."""
    n, k = x.shape[-1], y.shape[-1]
    step = max(BLOCK // max(n + k, 1), n, 1)  # never fewer rows than columns: merging costs as much as n rows
    m = prod(x.shape[:-1])
    with on_cpu():
        x, y, w = x.reshape(m, n), y.reshape(m, k), None if weights is None else weights.reshape(m)
        if m == 0:
            x, y, w = _one_row_of_weight_zero(x, y, w)
    for i in range(0, max(m, 1), step):
        rows = slice(i, i + step)
        with on_cpu():
            block = _centred(x[rows], y[rows], None if w is None else w[rows], bias)
        yield block


def _one_row_of_weight_zero(x, y, w):
    """Stands for no rows. Its moments are zero and depend on ``x`` like any others.

    On a rank without rows the gradient thus takes part in the reductions that the other ranks wait for. And MLX 0.32's
    sum over no rows does not return if they are transposed, as they may be in a gradient.
    """
    x, y = (mx.concatenate([z, mx.zeros((1, z.shape[1]), z.dtype)]) for z in (x, y))
    zero = mx.zeros((1,))
    return x, y, zero if w is None else mx.concatenate([w, zero])


def _centred(x, y, w, bias):
    """Moments of one block, in two passes: the means first, then products of the centred rows."""
    x, y = x.astype(mx.float64), y.astype(mx.float64)
    if w is not None:
        w = w.astype(mx.float64)[:, None]
        w = mx.where(w < 0, mx.array(float("nan"), mx.float64), w)
    count = mx.array(float(x.shape[0]), mx.float64) if w is None else mx.sum(w)
    x, x_mean = _centre(x, w, count, bias)
    y, y_mean = _centre(y, w, count, bias)
    wx, wy = (x, y) if w is None else (w * x, w * y)
    return Moments(count, x_mean, y_mean, wx.T @ x, wx.T @ y, mx.sum(wy * y, axis=0))


def _centre(x, w, count, bias):
    if not bias:
        return x, mx.zeros(x.shape[1:], mx.float64)
    # Without weights a sum is twice as fast. Not [0], whose gradient is a scatter, which has no forward derivative.
    total = mx.sum(x, axis=0) if w is None else (w.T @ x).reshape(x.shape[1])
    mean = total / or_one(count)
    return x - mean, mean


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of the rows of ``a`` and ``b`` together. Associative to rounding; differentiable."""
    with on_cpu():
        count = a.count + b.count
        dx, dy = b.x_mean - a.x_mean, b.y_mean - a.y_mean
        share = b.count / or_one(count)
        xx, xy, yy = plus_outer(a.xx + b.xx, a.xy + b.xy, a.yy + b.yy, a.count * share, dx, dy)
        return Moments(count, a.x_mean + share * dx, a.y_mean + share * dy, xx, xy, yy)


def plus_outer(xx, xy, yy, scale, dx, dy):
    """Add ``scale`` times the products of the shifts (dx, dy) to centred sums: what moving the centre costs."""
    sx = (scale * dx)[:, None]
    return xx + sx * dx, xy + sx * dy, yy + scale * dy * dy


def or_one(count):
    """``count``, or 1 where it is 0: the means of no rows are then 0 and not NaN, and so are their gradients."""
    return mx.where(count == 0, mx.ones_like(count), count)


def negated(m: Moments) -> Moments:
    """``m`` with all weights negated: merging it takes the rows of ``m`` away."""
    return scaled(m, -1.0)


def scaled(m: Moments, factor: float) -> Moments:
    """``m`` with all weights multiplied by ``factor``."""
    with on_cpu():
        return Moments(factor * m.count, m.x_mean, m.y_mean, factor * m.xx, factor * m.xy, factor * m.yy)


def finite(m: Moments) -> bool:
    """Whether no part holds NaN or Inf. Evaluates ``m``; one value among the rows that is not finite is seen here."""
    with on_cpu():
        total = m.count
        for part in m[1:]:
            total = total + mx.sum(part)  # NaN and Inf survive every sum, whatever else is in it.
        return isfinite(total.item())  # type: ignore[arg-type]
