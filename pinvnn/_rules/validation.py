"""Degrees of freedom and generalized cross validation: one definition for layers, streamed statistics and heads.

With M the sum of the weights, c_j = l / (s_j^2 + l) the shrinkage of direction j, and the sums over the rank r of A,

    free = (M - r - [intercept]) + sum_j c_j,    GCV = (1/k) sum_t M RSS_t / free_t^2.

Where rank and intercept take up all rows the first part is zero, and the second has its digits for any penalty. (M less
the trace of the hat matrix is the same, but a difference of numbers of size M.)
"""

import mlx.core as mx

from .._factor.right_factor import RightFactor
from .._mlx.attach import attach_like
from .._mlx.place import on_cpu

# Far above the rounding of a sum of weights, and far below one row.
_ROUNDING = 1e-9


def free_degrees(total: mx.array, rank: mx.array | float, shrinkage: mx.array | float, intercept: bool) -> mx.array:
    """Degrees of freedom that are left, in float64; NaN unless they are positive.

    Args:
        total: Sum of the weights, float64.
        rank: Rank of A.
        shrinkage: sum_j c_j over the directions that the rank counts; 0 without a penalty.
        intercept: Whether there is an intercept.
    """
    with on_cpu():
        rest = total - rank - float(intercept)
        rest = mx.where(mx.abs(rest) <= _ROUNDING * total, mx.zeros_like(rest), rest)
        free = rest + shrinkage
        return mx.where(free > 0, free, mx.array(float("nan"), mx.float64))


def kept_shrinkage(s: mx.array, kept: mx.array, l2: mx.array | float) -> tuple[mx.array, mx.array]:
    """The rank and sum_j c_j ``(...)`` from singular values ``s`` (..., n) and the mask of those that count."""
    with on_cpu():
        total = s * s + l2
        c = kept * l2 / mx.where(total == 0, mx.ones_like(total), total)
        return mx.sum(kept, axis=-1), mx.sum(c, axis=-1)


def gcv_score(total: mx.array, squares: mx.array, free: mx.array) -> mx.array:
    """The score ``(...)`` of weighted sums of squared residuals and degrees of freedom ``(..., 1 or k)``."""
    with on_cpu():
        return mx.mean(total[..., None] * squares / (free * free), axis=-1)


def squares_and_degrees(
    total: mx.array, yy: mx.array, rotated: mx.array, f: RightFactor, l2: mx.array | float, intercept: bool
) -> tuple[mx.array, mx.array]:
    """Sums of squared residuals ``(k,)`` and :func:`free_degrees` of ridge, from centred second moments.

    With the kept directions v_j of S_xx and g_jt = (v_j . S_xy,t)^2 / s_j^2, RSS_t = (S_yy,t - sum_j g_jt) +
    sum_j c_j^2 g_jt; the first part is zero where nothing is left of the rows.

    Args:
        total: Sum of the weights, ``()``.
        yy: Centred sums of squares of the targets, ``(k,)``.
        rotated: V^T S_xy, ``(n, k)``.
        f: The right factor (n, n) that S_xx has as a Gram matrix.
        l2: The penalty: a number, or ``(1,)`` or ``(k,)``.
        intercept: Whether there is an intercept.
    """
    with on_cpu():
        squared = ((f.s / f.r[..., 0]) ** 2)[:, None]
        kept = f.kept[:, None]
        g = mx.where(kept > 0, rotated * rotated / mx.where(kept > 0, squared, 1), 0)
        c = kept * l2 / mx.where(squared + l2 == 0, 1, squared + l2)
        free = free_degrees(total, mx.sum(kept), mx.sum(c, axis=0), intercept)
        rest = total - mx.sum(kept) - float(intercept)
        outside = mx.maximum(yy - mx.sum(g, axis=0), 0)
        outside = mx.where(mx.abs(rest) <= _ROUNDING * total, mx.zeros_like(outside), outside)
        return outside + mx.sum(c * c * g, axis=0), free


_with_values = [attach_like(lambda x: x, 1, (core, core)) for core in range(3)]


def with_value(x: mx.array, value: mx.array, core: int) -> mx.array:
    """The constant ``value``, which has more digits, with the derivatives of ``x``.

    Args:
        x: ``(...)`` with ``core`` dimensions that are no batch, float64.
        value: Of the same shape.
        core: 0, 1 or 2.
    """
    return _with_values[core](x, value)
