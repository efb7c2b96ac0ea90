"""Which singular values are kept: the only place that decides a rank."""

from typing import Any

import mlx.core as mx

from .._mlx.dtypes import eps


def default_rtol(m: int, n: int, dtype: mx.Dtype) -> float:
    """The documented default cutoff ``min(m, n) * eps``, relative to the largest singular value.

    NumPy and torch use ``max(m, n) * eps``, which exceeds 1 for a float32 matrix of ten million rows. The rounding
    noise that a cutoff must reject does not grow with the long side here: float32 input is accumulated in float64 and
    float64 input is factored by row blocks.
    """
    return min(m, n) * eps(dtype)


def cutoff(
    s_max: Any,
    shape: tuple[int, ...],
    dtype: mx.Dtype,
    rtol: mx.array | float | None = None,
    atol: mx.array | float | None = None,
) -> Any:
    """``max(atol, rtol * s_max)``, ``(...)``: singular values at or below it are dropped.

    ``atol`` without ``rtol`` means ``rtol = 0``; neither means :func:`default_rtol` of ``shape`` (m, n) and ``dtype``.
    """
    if rtol is None:
        rtol = default_rtol(shape[-2], shape[-1], dtype) if atol is None else 0.0
    floor = s_max * rtol
    return floor if atol is None else mx.maximum(floor, atol)


def keep(s: Any, limit: Any) -> Any:
    """Mask of the singular values ``s`` (..., n) that are kept; ``limit`` is the cutoff (...). Arrays of MLX or NumPy.

    ``>`` and not ``>=``: with ``rtol = atol = 0`` an exact zero must be dropped, or the pseudo-inverse divides by it.
    """
    return s > limit[..., None]


def gap(s: mx.array, kept: mx.array) -> mx.array:
    """``(s_r - s_{r+1}) / s_r`` of the last kept and the first dropped of ``s`` (..., n); 1 at rank 0."""
    last = mx.min(mx.where(kept, s, mx.array(float("inf"), s.dtype)), axis=-1)
    first = mx.max(mx.where(kept, mx.zeros_like(s), s), axis=-1)
    return mx.where(mx.any(kept, axis=-1), (last - first) / last, mx.ones_like(last))
