"""float64 inside: complex matrices as real ones, and large products by row blocks without a float64 copy of the rows.

A complex matrix X + iY enters the small problems as [[X, -Y], [Y, X]] ("embedded"), columns as [Re; Im] ("stacked"),
since MLX has no complex128. Everything here is float64 on the CPU.
"""

import mlx.core as mx

from ._dtypes import real
from ._place import on_cpu

# Rows per block of a float64 product: small enough that the float64 copy of a block stays in cache.
BLOCK = 1024


def stack(x):
    """Columns ``(..., n, k)`` as float64, complex ones as [Re; Im], ``(..., 2n, k)``. Differentiable."""
    with on_cpu():
        if x.dtype == mx.complex64:
            x = mx.concatenate([mx.real(x), mx.imag(x)], axis=-2)
        return x.astype(mx.float64)


def unstack(x, dtype):
    """Inverse of :func:`stack`."""
    with on_cpu():
        if dtype != mx.complex64:
            return x.astype(dtype)
        re, im = mx.split(x.astype(mx.float32), 2, axis=-2)
        return re + mx.array(1j, mx.complex64) * im


def embed(x):
    """A matrix ``(..., n, k)`` as a float64 one, [[Re, -Im], [Im, Re]] if complex: products and ^H carry over."""
    if x.dtype != mx.complex64:
        return stack(x)
    with on_cpu():
        return mx.concatenate([stack(x), stack(x * mx.array(1j, mx.complex64))], axis=-1)


def unembed(x, dtype):
    """Inverse of :func:`embed`."""
    with on_cpu():
        return unstack(x[..., : x.shape[-1] // 2] if dtype == mx.complex64 else x, dtype)


def _halves(x):
    """[Re | Im] of a block of rows, in float64."""
    if x.dtype == mx.complex64:
        x = mx.concatenate([mx.real(x), mx.imag(x)], axis=-1)
    return x.astype(mx.float64)


def _t(x):
    return mx.swapaxes(x, -1, -2)


def h(x):
    """Conjugate transpose."""
    return mx.conjugate(_t(x)) if x.dtype == mx.complex64 else _t(x)


# --- Large products, by row blocks ----------------------------------------------------------------


def cross(a, b, w=None):
    """``a^H diag(w) b`` accumulated in float64 without a float64 copy of either, stacked ``(..., n or 2n, k)``."""
    return crosses(a, [b], w)[0]


def crosses(a, rights, w=None):
    """:func:`cross` of ``a`` with each of ``rights``, in one pass over ``a``."""
    with on_cpu():
        totals: list[mx.array] = []
        for i in range(0, a.shape[-2], BLOCK):
            left = _halves(a[..., i : i + BLOCK, :])
            scale = None if w is None else w[..., i : i + BLOCK, None].astype(mx.float64)
            parts = [left if a is b else _halves(b[..., i : i + BLOCK, :]) for b in rights]
            parts = [_t(left) @ (right if scale is None else right * scale) for right in parts]
            totals = [total + part for total, part in zip(totals, parts, strict=True)] if i else parts
        return [_folded(total) if a.dtype == mx.complex64 else total for total in totals]


def _folded(total):
    """[Re; Im] of X^H Y from [Re X | Im X]^T [Re Y | Im Y]."""
    (rr, ri), (ir, ii) = (mx.split(half, 2, axis=-1) for half in mx.split(total, 2, axis=-2))
    return mx.concatenate([rr + ii, ri - ir], axis=-2)


def in_basis(a, v, w=None):
    """``a v`` of real ``a`` (which need not be used) and its Gram matrix, weighted, from its rows and not from a's."""
    with on_cpu():
        total, rows = mx.zeros((), mx.float64), []
        for i in range(0, a.shape[-2], BLOCK):
            q = a[..., i : i + BLOCK, :].astype(mx.float64) @ v
            total = total + _t(q) @ (q if w is None else q * w[..., i : i + BLOCK, None].astype(mx.float64))
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
        rows = [_halves(a[..., block, :]) for block in blocks]
        if start is None:
            rows = [left @ x for left in rows]
        else:
            halves = (_halves(start[..., block, :]) for block in blocks)
            rows = [mx.addmm(c, left, x) for c, left in zip(halves, rows, strict=True)]
        if a.dtype == mx.complex64:
            pairs = [mx.split(p.astype(mx.float32), 2, axis=-1) for p in rows]
            rows = [re + mx.array(1j, mx.complex64) * im for re, im in pairs]
        rows = [p.astype(a.dtype) for p in rows]
        return rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=-2)


def same_batch(*arrays):
    """The arrays, broadcast over their batch dimensions."""
    batch = mx.broadcast_shapes(*(x.shape[:-2] for x in arrays))
    return [mx.broadcast_to(x, (*batch, *x.shape[-2:])) for x in arrays]
