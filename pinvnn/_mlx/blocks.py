"""Large products in float64 on the CPU, by row blocks: no float64 copy of all rows is ever made."""

import mlx.core as mx

from .complex import folded, halves
from .dtypes import real
from .place import on_cpu
from .shapes import same_batch

# Rows per block of a float64 product: small enough that the float64 copy of a block stays in cache.
BLOCK = 1024


def cross(a, b, w=None):
    """``a^H diag(w) b`` accumulated in float64 without a float64 copy of either, stacked ``(..., n or 2n, k)``."""
    return crosses(a, [b], w)[0]


def crosses(a, rights, w=None):
    """:func:`cross` of ``a`` with each of ``rights``, in one pass over ``a``."""
    with on_cpu():
        totals: list[mx.array] = []
        for i in range(0, a.shape[-2], BLOCK):
            left = halves(a[..., i : i + BLOCK, :])
            scale = None if w is None else w[..., i : i + BLOCK, None].astype(mx.float64)
            parts = [left if a is b else halves(b[..., i : i + BLOCK, :]) for b in rights]
            parts = [left.mT @ (right if scale is None else right * scale) for right in parts]
            totals = [total + part for total, part in zip(totals, parts, strict=True)] if i else parts
        return [folded(total) if a.dtype == mx.complex64 else total for total in totals]


def in_basis(a, v, w=None):
    """``a v`` of real ``a`` (which need not be used) and its Gram matrix, weighted, from its rows and not from a's."""
    with on_cpu():
        total, rows = mx.zeros((), mx.float64), []
        for i in range(0, a.shape[-2], BLOCK):
            q = a[..., i : i + BLOCK, :].astype(mx.float64) @ v
            total = total + q.mT @ (q if w is None else q * w[..., i : i + BLOCK, None].astype(mx.float64))
            rows.append(q)
        return rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=-2), total


def times(a, x):
    """``a @ x`` for tall ``a`` (..., m, n) and small stacked ``x``: in float64, then ``a.dtype``."""
    return _by_blocks(a, x)


def residual(a, b, x):
    """``b - a @ x``, likewise: the difference is taken in float64."""
    with on_cpu():
        return _by_blocks(a, -x, b)


def times_and_residual(a, z, b, x, r):
    """``[a z | (b - a x) r]`` (..., m, 2k), likewise, in one pass over ``a``."""
    with on_cpu():
        scaled = b * r.astype(real(b.dtype))
        start = mx.concatenate([mx.zeros_like(scaled), scaled], axis=-1)
        return _by_blocks(a, mx.concatenate(same_batch(z, -x * r), axis=-1), start)


def _by_blocks(a, x, start=None):
    """``start + a @ x``."""
    with on_cpu():
        if a.dtype == mx.complex64:
            re, im = mx.split(x, 2, axis=-2)
            x = mx.concatenate([mx.concatenate([re, im], -1), mx.concatenate([-im, re], -1)], -2)
        blocks = [slice(i, i + BLOCK) for i in range(0, a.shape[-2], BLOCK)]
        rows = [halves(a[..., block, :]) for block in blocks]
        if start is None:
            rows = [left @ x for left in rows]
        else:
            starts = (halves(start[..., block, :]) for block in blocks)
            rows = [mx.addmm(c, left, x) for c, left in zip(starts, rows, strict=True)]
        if a.dtype == mx.complex64:
            pairs = [mx.split(p.astype(mx.float32), 2, axis=-1) for p in rows]
            rows = [re + mx.array(1j, mx.complex64) * im for re, im in pairs]
        rows = [p.astype(a.dtype) for p in rows]
        return rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=-2)
