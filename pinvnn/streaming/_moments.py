r"""Centred first and second moments of rows: everything a linear readout needs to know about its data.

Notation: rows (x_i, y_i) of weight w_i, W = sum w_i, means m_x, m_y, and the centred sums of products

    S_xx = sum w_i (x_i - m_x)(x_i - m_x)^T,    S_xy, S_yy likewise.

Two sets of rows a and b are merged without looking at them again (Chan, Golub and LeVeque 1979, Eq. 2.1, there for one
variable), with d = m_b - m_a:

    W = W_a + W_b,    m = m_a + (W_b / W) d,    S = S_a + S_b + (W_a W_b / W) d d^T.

Each sum is taken about its own mean, so that nothing cancels if the mean is large against the spread; raw sums of
products would lose all digits. The formula holds for negative weights, too: to merge -W_b, m_b, -S_b is to remove the
rows b. Without an intercept the means are set to zero, and the same formulas add the raw sums.

Everything is a plain differentiable function in float64 on the CPU, whatever the input and the default device: a GPU
has no float64, and float32 products keep a readout only up to a condition number of about a thousand.
"""

from collections.abc import Iterator
from functools import cache, reduce
from math import isfinite, prod
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .._mlx import attach_like, on_cpu
from .._types import ArrayLike
from ._rows import check_rows
from ._values import moments_value

# Numbers in a float64 row block: small enough to stay in cache, large enough that the merges cost nothing beside it.
BLOCK = 2**18


class Moments(NamedTuple):
    """Moments of weighted rows (x, y) with n input features and k targets: arrays in float64 on the CPU.

    Attributes:
        count: Sum of the weights, which is the number of rows if none were given, ``()``.
        x_mean: Weighted mean of the inputs, ``(n,)``; zeros without an intercept, whose moments are not centred.
        y_mean: Weighted mean of the targets, ``(k,)``; likewise.
        xx: Centred sum of products of inputs with inputs, ``(n, n)``.
        xy: Centred sum of products of inputs with targets, ``(n, k)``.
        yy: Centred sum of squares of each target, ``(k,)``. No method needs products between targets.
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


def moments(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None, *, bias: bool = True) -> Moments:
    """Moments of a batch of rows: lazy, differentiable in every argument, usable in ``mx.compile`` and ``mx.vmap``.

    The rows are converted to float64 block by block. In a lazy graph MLX may convert many blocks before it multiplies
    the first; :class:`ReadoutStatistics` evaluates block after block, and holds only one in float64 at a time.

    Args:
        x: Inputs, ``(..., n)``. All leading dimensions count as rows.
        y: Targets, ``(..., k)``, with the leading dimensions of ``x``; or ``(...)`` for a single target.
        weights: Non-negative weights of the rows, ``(...)``, or None. Weight 2 equals the row given twice; a row of
            weight 0 takes no part, whatever it holds; a negative weight gives NaN.
        bias: Whether a readout from these moments has an intercept, that is, whether they are centred.

    Returns:
        The moments of all rows.

    Raises:
        TypeError: If an argument is not array-like, or complex.
        ValueError: If the shapes do not fit together.
    """
    x, y, weights = check_rows("moments", x, y, weights)
    return reduce(merge_moments, block_moments(x, y, weights, bias))


def block_moments(x: mx.array, y: mx.array, weights: mx.array | None, bias: bool) -> Iterator[Moments]:
    """Moments of each row block in turn. Merged, they are those of all rows."""
    x, y, w = _flat(x, y, weights)
    step = _rows_in_block(x, y)
    for i in range(0, x.shape[0], step):
        rows = slice(i, i + step)
        with on_cpu():
            block = _centred(x[rows], y[rows], None if w is None else w[rows], bias)
        yield block


def attached_moments(x: mx.array, y: mx.array, weights: mx.array | None, bias: bool) -> Moments:
    """As :func:`moments`, of arrays that have been checked and can be evaluated: the values are those of NumPy."""
    x, y, w = _flat(x, y, weights)
    value = moments_value(x, y, w, bias, _rows_in_block(x, y))
    rows = (x, y) if w is None else (x, y, w)
    with on_cpu():
        xx = _attached(w is not None, bias, True)(*rows, mx.array(value.pop(3), mx.float64))
        flat = mx.array(np.concatenate([part.reshape(-1) for part in value]), mx.float64)
        flat = _attached(w is not None, bias, False)(*rows, flat)
        parts = mx.split(flat, np.cumsum([part.size for part in value])[:-1].tolist())
        count, x_mean, y_mean, xy, yy = (p.reshape(like.shape) for p, like in zip(parts, value, strict=True))
        return Moments(count, x_mean, y_mean, xx, xy, yy)


@cache
def _attached(weighted: bool, bias: bool, of_xx: bool):
    """Attaches their derivative to the values of xx, the large one, or of all other moments, one after the other."""

    def plain(x, y, w=None):
        m = reduce(merge_moments, block_moments(x, y, w, bias))
        with on_cpu():
            return m.xx if of_xx else mx.concatenate([part.reshape(-1) for part in (*m[:3], *m[4:])])

    return attach_like(plain, 2 + weighted, 2, 2, *[1] * weighted, 1 + of_xx)


def _rows_in_block(x, y):
    """Never fewer rows than columns: merging costs as much as n rows."""
    return max(BLOCK // max(x.shape[1] + y.shape[1], 1), x.shape[1], 1)


def _flat(x, y, w):
    """Rows and weights with one leading dimension, at least one row."""
    m = prod(x.shape[:-1])
    with on_cpu():
        x, y, w = x.reshape(m, x.shape[-1]), y.reshape(m, y.shape[-1]), None if w is None else w.reshape(m)
        return (x, y, w) if m else _one_row_of_weight_zero(x, y, w)


def _one_row_of_weight_zero(x, y, w):
    """``x``, ``y`` and ``w`` without rows, with one row of weight 0 appended.

    Its moments are zero, but depend on ``x``: on a rank without rows the gradient then takes part in the reductions for
    which the other ranks wait. Besides, MLX 0.32 may not return from a sum over no rows of a transposed array, which a
    gradient may contain.
    """
    x, y = (mx.concatenate([z, mx.zeros((1, z.shape[1]), z.dtype)]) for z in (x, y))
    zero = mx.zeros((1,))
    return x, y, zero if w is None else mx.concatenate([w, zero])


def _centred(x, y, w, bias):
    """Moments of one block, in two passes: the means first, then products of the centred rows."""
    x, y = x.astype(mx.float64), y.astype(mx.float64)
    if w is not None:
        w = w.astype(mx.float64)[:, None]
        # A row of weight 0 takes no part, even if it holds NaN. Its finite values stay, for the gradient by its weight.
        x, y = (mx.where(mx.logical_and(w == 0, ~mx.isfinite(z)), mx.zeros_like(z), z) for z in (x, y))
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
    """Moments of the rows of ``a`` and ``b`` together: Chan, Golub and LeVeque's update. Differentiable.

    Args:
        a: Moments of some rows.
        b: Moments of others, with as many features and targets.

    Returns:
        Moments of all of them. The order of merges changes rounding errors only.
    """
    with on_cpu():
        count = a.count + b.count
        dx, dy = b.x_mean - a.x_mean, b.y_mean - a.y_mean
        share = b.count / or_one(count)
        xx, xy, yy = plus_outer(a.xx + b.xx, a.xy + b.xy, a.yy + b.yy, a.count * share, dx, dy)
        return Moments(count, a.x_mean + share * dx, a.y_mean + share * dy, xx, xy, yy)


def plus_outer(xx, xy, yy, scale, dx, dy):
    """Centred sums plus ``scale`` times the products of the shifts (dx, dy), as a change of the centre demands."""
    sx = (scale * dx)[:, None]
    return xx + sx * dx, xy + sx * dy, yy + scale * dy * dy


def or_one(count):
    """``count``, or 1 if it is 0, as a divisor: means of no rows, and their gradients, are then 0 and not NaN."""
    return mx.where(count == 0, mx.ones_like(count), count)


def negated(m: Moments) -> Moments:
    """``m`` with all weights negated: to merge it is to remove the rows of ``m``."""
    return scaled(m, -1.0)


def scaled(m: Moments, factor: float) -> Moments:
    """``m`` with all weights multiplied by ``factor``."""
    with on_cpu():
        return Moments(factor * m.count, m.x_mean, m.y_mean, factor * m.xx, factor * m.xy, factor * m.yy)


def finite(m: Moments) -> bool:
    """Whether no part holds NaN or Inf. Evaluates ``m``. One NaN or Inf among the rows is enough for False."""
    with on_cpu():
        total = m.count
        for part in m[1:]:
            total = total + mx.sum(part)  # NaN and Inf survive every sum, whatever else is in it.
        return isfinite(total.item())  # type: ignore[arg-type]
