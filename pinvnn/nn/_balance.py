"""Weights that balance classes: for all rows, and anew for the rows that stay when one of them is left out.

Everything is float64 on the CPU. A row whose label is no class keeps its weight, so that its target of NaN shows.
"""

import mlx.core as mx

from .._mlx import astype, on_cpu


def class_factors(counts: mx.array) -> mx.array:
    """Factors ``(..., c)`` that make the totals ``counts`` (..., c) of all classes equal: their sum over c each.

    0 for a class without rows.
    """
    seen = counts > 0
    total = mx.sum(counts, axis=-1, keepdims=True)
    return mx.where(seen, total / mx.where(seen, counts * counts.shape[-1], 1), 0)


def row_factors(of_class: mx.array, hot: mx.array) -> mx.array:
    """The factors ``(..., g, c)`` of classes for rows with one-hot labels ``(..., m, c)``: ``(..., g, m)``."""
    known = mx.any(hot, axis=-1)[..., None, :]
    return mx.where(known, of_class @ astype(hot, mx.float64).mT, 1)


def balancing(hot: mx.array, weights: mx.array | None) -> mx.array:
    """The factor of each row, ``(..., m)``: all classes then have the same total weight, and the total stays."""
    with on_cpu():
        counts = astype(hot, mx.float64)
        if weights is not None:
            counts = astype(weights, mx.float64)[..., None] * counts
        return row_factors(class_factors(mx.sum(counts, axis=-2, keepdims=True)), hot)[..., 0, :]


def without_one_of_a_class(hot: mx.array) -> mx.array:
    """Balanced weights of the rows when any one row of class g is left out, ``(..., g = c, m)``, for rows of weight 1.

    They depend on its class alone. All rows of that class have them, the row itself, too: for the fit without it its
    own weight is of no importance. It is 0 for the only row of its class.
    """
    with on_cpu():
        counts = mx.sum(astype(hot, mx.float64), axis=-2, keepdims=True)
        counts = mx.maximum(counts - mx.eye(hot.shape[-1], dtype=mx.float64), 0)
        return row_factors(class_factors(counts), hot)


def without_each(hot: mx.array, weights: mx.array | None, unit: bool = False) -> mx.array:
    """Balanced weights of the rows when row g is left out, ``(..., g = m, m)``.

    Args:
        hot: One-hot labels, ``(..., m, c)``.
        weights: ``(..., m)``, or None.
        unit: Whether weight 1 is taken from the row, or all that it has, if that is less; otherwise the whole row is.
    """
    with on_cpu():
        w = mx.ones(hot.shape[-2:-1], mx.float64) if weights is None else astype(weights, mx.float64)
        taken = mx.minimum(w, 1) if unit else w
        kept = w[..., None, :] - mx.eye(w.shape[-1], dtype=mx.float64) * taken[..., None, :]
        return kept * row_factors(class_factors(kept @ astype(hot, mx.float64)), hot)


def of_own_class(x: mx.array, hot: mx.array) -> mx.array:
    """For each row ``x`` (..., c, m, k) of its own class, ``(..., m, k)``; NaN where its label is no class."""
    with on_cpu():
        chosen = hot.mT[..., None]
        out = mx.sum(mx.where(chosen, x, mx.zeros_like(x)), axis=-3)
        return mx.where(mx.any(hot, axis=-1, keepdims=True), out, mx.array(float("nan"), x.dtype))
