"""Large products summed in float64 on the CPU, one block of rows at a time: all rows are never copied to float64."""

from collections.abc import Sequence

import mlx.core as mx

from .centred import Centred, Matrix, in_float64
from .complex import fold
from .place import on_cpu
from .shapes import same_batch

# Small enough that the float64 copy of a block stays in cache.
ROWS_PER_BLOCK = 1024


def cross(a: Matrix, b: Matrix, w: mx.array | None = None) -> mx.array:
    """``a^H diag(w) b`` of ``a`` (..., m, n) and ``b`` (..., m, k), stacked float64 ``(..., n or 2n, k)``."""
    return crosses(a, [b], w)[0]


def crosses(a: Matrix, rights: Sequence[Matrix], w: mx.array | None = None) -> list[mx.array]:
    """:func:`cross` of ``a`` with each of ``rights``, in one pass over ``a``."""
    with on_cpu():
        totals: list[mx.array] = []
        for i in range(0, a.shape[-2], ROWS_PER_BLOCK):
            rows = slice(i, i + ROWS_PER_BLOCK)
            left = in_float64(a, rows)
            scale = None if w is None else w[..., rows, None].astype(mx.float64)
            parts = [left if a is b else in_float64(b, rows) for b in rights]
            parts = [left.mT @ (right if scale is None else right * scale) for right in parts]
            totals = [total + part for total, part in zip(totals, parts, strict=True)] if i else parts
        return [fold(total) if a.dtype == mx.complex64 else total for total in totals]


def in_basis(a: mx.array, v: mx.array, w: mx.array | None = None) -> tuple[mx.array, mx.array]:
    """Q = ``a v`` of real ``a`` (..., m, n) in float64, and Q^T diag(w) Q, summed over the rows of Q.

    That sum has the digits that v^T (a^T diag(w) a) v has lost. Q is lazy.
    """
    with on_cpu():
        total, rows = mx.zeros((), mx.float64), []
        for i in range(0, a.shape[-2], ROWS_PER_BLOCK):
            q = a[..., i : i + ROWS_PER_BLOCK, :].astype(mx.float64) @ v
            total = total + q.mT @ (q if w is None else q * w[..., i : i + ROWS_PER_BLOCK, None].astype(mx.float64))
            rows.append(q)
        return rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=-2), total


def times(a: Matrix, x: mx.array, rounded: bool = True) -> mx.array:
    """``a x`` of ``a`` (..., m, n) and stacked float64 ``x`` (..., n or 2n, k), rounded to ``a.dtype`` at the end.

    If it is not rounded, it is float64, complex rows as [Re | Im].
    """
    return _by_blocks(a, x, rounded=rounded)


def residual(a: Matrix, b: Matrix, x: mx.array, rounded: bool = True) -> mx.array:
    """``b - a x``, likewise: the difference is taken in float64."""
    with on_cpu():
        return _by_blocks(a, -x, in_float64(b), rounded)


def times_and_residual(a: Matrix, z: mx.array, b: Matrix, x: mx.array, r: mx.array) -> mx.array:
    """``[a z | (b - a x) r]`` (..., m, 2k), likewise, in one pass over ``a``."""
    with on_cpu():
        wide = in_float64(b)
        scaled = [part * r for part in (mx.split(wide, 2, axis=-1) if b.dtype == mx.complex64 else [wide])]
        start = mx.concatenate([y for part in scaled for y in (mx.zeros_like(part), part)], axis=-1)
        return _by_blocks(a, mx.concatenate(same_batch(z, -x * r), axis=-1), start)


def _by_blocks(a: Matrix, x: mx.array, start: mx.array | None = None, rounded: bool = True) -> mx.array:
    """``start + a @ x`` of float64 ``start``."""
    with on_cpu():
        if a.dtype == mx.complex64:
            re, im = mx.split(x, 2, axis=-2)
            x = mx.concatenate([mx.concatenate([re, im], -1), mx.concatenate([-im, re], -1)], -2)
        shift = None
        if isinstance(a, Centred):  # With float64 sums this has the digits, too, and costs nothing.
            a, shift = a.rows, -(a.mean @ x)
        if start is not None:  # narrow, and so in one piece
            shift = start if shift is None else start + shift
        rows = []
        for i in range(0, a.shape[-2], ROWS_PER_BLOCK):
            block = slice(i, i + ROWS_PER_BLOCK)
            left = in_float64(a, block)
            part = None if shift is None else shift if start is None else shift[..., block, :]
            product = left @ x if part is None else mx.addmm(part, left, x)
            if rounded and a.dtype == mx.complex64:
                re, im = mx.split(product.astype(mx.float32), 2, axis=-1)
                product = re + mx.array(1j, mx.complex64) * im
            rows.append(product.astype(a.dtype) if rounded else product)
        return rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=-2)
