"""The one place that decides which singular values count."""

import mlx.core as mx

from .._mlx.dtypes import eps


def default_rtol(m: int, n: int, dtype: mx.Dtype) -> float:
    """The documented default cutoff ``min(m, n) * eps``, relative to the largest singular value.

    NumPy and torch use ``max(m, n) * eps``, which exceeds 1 for a float32 matrix of ten million rows. The rounding
    noise that a cutoff must reject does not grow with the long side here: float32 input is accumulated in float64 and
    float64 input is factored by row blocks.
    """
    return min(m, n) * eps(dtype)


def cutoff(s_max, shape: tuple[int, int], dtype: mx.Dtype, rtol=None, atol=None):
    """``max(atol, rtol * s_max)``: what is at or below it is dropped. ``atol`` without ``rtol`` means ``rtol = 0``."""
    if rtol is None:
        rtol = default_rtol(*shape, dtype) if atol is None else 0.0
    floor = s_max * rtol
    return floor if atol is None else mx.maximum(floor, atol)


def keep(s, limit):
    """Mask of the singular values ``s`` (..., n) that are kept; ``limit`` is the cutoff (...).

    ``>`` and not ``>=``: with ``rtol = atol = 0`` an exact zero must be dropped, or the pseudo-inverse divides by it.
    """
    return s > limit[..., None]


def gap(s, kept):
    """Relative distance of the last kept to the first dropped of ``s`` (..., n): what the gradient divides by."""
    last = mx.min(mx.where(kept, s, mx.array(float("inf"), s.dtype)), axis=-1)
    first = mx.max(mx.where(kept, mx.zeros_like(s), s), axis=-1)
    return mx.where(mx.any(kept, axis=-1), (last - first) / last, mx.ones_like(last))
