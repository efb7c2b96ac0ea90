"""Matrix products without rounding errors on a device that has float32 products at best: by slices of the operands.

Each column of A is scaled by a power of two and cut into digits of eight bits,

    A = sum_i 2^(-8 i) S_i diag(2^e),    |S_i| <= 128 an integer for i = 0, 1, 2; S_3 is the rest, with its fraction.

A product of digits summed over 1024 rows is below 2^24, so that float32 holds it exactly, and TF32 and bfloat16 hold
the operands. The sums of the blocks are integers of 64 bits: exact, in any order. What remains is the rounding of the
rest, 2^-31 of the largest entry of each column, which acts as a perturbation of A: its effect is multiplied by cond(A)
and not by cond(A)^2. (So no pair of slices may be left out of A^T A: the diagonal of S_3^T S_3 is a bias, not noise.)

S. M. Rump, T. Ogita and S. Oishi, Accurate floating-point summation, part I, SIAM J. Sci. Comput. 31 (2008), 189-224;
K. Ozaki, T. Ogita, S. Oishi and S. M. Rump, Error-free transformations of matrix multiplication, Numer. Algorithms 59
(2012), 95-118, doi 10.1007/s11075-011-9478-1.
"""

import mlx.core as mx

from .place import on_cpu

# Bits of a digit, slices of float32 input, and rows of a block: 2 (BITS - 1) + log2 ROWS = 24.
BITS, SLICES, ROWS = 8, 4, 1024
# One slice more for float64 input, whose digits beyond 40 bits are dropped.
_WIDE = SLICES + 1
# Sums of a product are kept in two integers: orders i + j up to 2, and those above, in units of 2^-16 and 2^-48.
_SPLIT = SLICES - 1


def crosses_by_slices(a: mx.array, b: mx.array | None = None) -> list[mx.array]:
    """``a^T a``, and ``a^T b`` if there is a ``b``, as float64 on the CPU; only sums ``(..., n, n or k)`` cross.

    One block of rows is cut at a time, or, where there are more than 20, a twentieth of the rows.

    Args:
        a: ``(..., m, n)``, float32.
        b: ``(..., m, k)``, float32.
    """
    rights = [a] if b is None else [a, b]
    sizes = [_largest(x) for x in rights]
    scales = [_exponent(x) for x in sizes]
    poison = [0 * mx.max(x, axis=-1, keepdims=True) for x in sizes]  # integers would lose NaN and Inf
    sums: list[list[mx.array] | None] = [None for _ in rights]
    (m, n), rows = a.shape[-2:], ROWS
    if m < 16 * n:  # sums of n x n would be large beside the digits
        rows = ROWS // 4
    step = max(1, m // (20 * rows)) * rows
    for i in range(0, m, step):
        blocks = [x[..., i : i + step, :] for x in rights]
        if sums[0] is not None:  # The next block waits for the last one, or the digits of all would lie in memory.
            wait = [_nothing(part) for parts in sums for part in parts or ()]
            blocks = [x + sum(wait) for x in blocks]
        digits = [[_blocks(d, rows) for d in _digits(x, e)] for x, e in zip(blocks, scales, strict=True)]
        for t in range(len(rights)):
            sums[t] = _add_gram(sums[t], digits[0]) if t == 0 else _add_cross(sums[t], digits[0], digits[t])
    with on_cpu():
        out, left = [], _power(scales[0] - BITS + 1)
        for t, (parts, e, nan) in enumerate(zip(sums, scales, poison, strict=True)):
            high, low = (x.astype(mx.float64) for x in parts or ())
            total = high * 2.0 ** -(8 * (_SPLIT - 1)) + low * 2.0 ** -(8 * 2 * (SLICES - 1))
            total = (total + total.mT) / 2 if t == 0 else total
            out.append(total * left.mT * _power(e - BITS + 1) + (poison[0] + nan).astype(mx.float64))
        return out


def product_by_slices(a: mx.array, x: mx.array) -> mx.array:
    """``a x`` for float32 ``a`` (..., m, n) and float64 ``x`` (..., n, k): float64 on the CPU, to which it crosses."""
    n = a.shape[-1]
    scale = _exponent(_largest(a))
    with on_cpu():
        x = x * _power(scale.mT)
        top = mx.max(mx.abs(x), axis=-2, keepdims=True)
        nan = 0 * top
        e = mx.ceil(mx.log2(mx.where(mx.logical_and(top > 0, mx.isfinite(top)), top, 1)))
        x = mx.where(mx.isfinite(x), x, 0) * mx.power(mx.array(2.0, mx.float64), BITS - 1 - e)
        right = []
        for _ in range(_WIDE):
            right.append(mx.round(x).astype(mx.float32))
            x = (x - mx.round(x)) * 2.0**BITS
    spare = 16 - max(n - 1, 1).bit_length()  # n 2^14 2^32 2^spare <= 2^62
    step, rows = max(1, a.shape[-2] // (20 * ROWS)) * ROWS, []
    for i in range(0, a.shape[-2], step):
        block = a[..., i : i + step, :]
        if rows:
            block = block + _nothing(rows[-1])
        rows.append(_row_products(_digits(block, scale), right, n, spare))
    poison = 0 * mx.max(mx.abs(a), axis=-1, keepdims=True)
    with on_cpu():
        total = (rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=-2)).astype(mx.float64)
        unit = mx.power(mx.array(2.0, mx.float64), e + (2 - 2 * BITS - spare - BITS * SLICES))
        return total * unit + poison.astype(mx.float64) + nan


def _row_products(left, right, n, spare):
    """Sum over all pairs of digits that count, int64: those below 2^-40 |A| |x| are left out."""
    total = None
    for i, d in enumerate(left):
        use = _WIDE - i
        for c in range(0, n, ROWS):
            p = d[..., c : c + ROWS] @ mx.concatenate([q[..., c : c + ROWS, :] for q in right[:use]], axis=-1)
            parts = mx.split((p * 2.0**spare).astype(mx.int64), use, axis=-1)
            part = sum((q * 2 ** (BITS * (SLICES - i - j)) for j, q in enumerate(parts)), start=mx.array(0, mx.int64))
            total = part if total is None else total + part
    return total


def _nothing(total):
    """0, but not before the integer ``total`` is there. (``mx.depends`` has no vmap.)"""
    corner = total[..., :1, :1]
    return (corner != corner).astype(mx.float32)


def _largest(a):
    """The largest absolute value of each column, ``(..., 1, n)``, without an array of all of them."""
    return mx.maximum(mx.max(a, axis=-2, keepdims=True), -mx.min(a, axis=-2, keepdims=True))


def _exponent(size):
    """``e`` with ``size < 2^e``, from the bits; 128 for NaN and Inf."""
    return mx.clip((mx.abs(size).view(mx.int32) >> 23) - 126, -120, 128)


def _power(e):
    """``2^e`` in float64, on the CPU."""
    return mx.power(mx.array(2.0, mx.float64), e.astype(mx.float64))


def _float_power(e):
    """``2^e`` for e in [-126, 127], exact on every device."""
    return ((e + 127) << 23).view(mx.float32)


def _digits(a, e):
    """The slices: ``a 2^(7 - e) = sum_i 2^(-8 i) d_i``."""
    half = e // 2
    x, out = a * _float_power(-half) * _float_power(half - e) * 2.0 ** (BITS - 1), []
    for _ in range(SLICES - 1):
        out.append(mx.round(x))
        x = (x - out[-1]) * 2.0**BITS  # exact
    return [*out, x]


def _blocks(x, rows):
    """``x`` (..., m, n) with rows of zeros appended, in blocks: ``(..., m / rows, rows, n)``."""
    if lacking := -x.shape[-2] % rows:
        x = mx.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, lacking), (0, 0)])
    return x.reshape(*x.shape[:-2], -1, rows, x.shape[-1])


def _add_gram(total, d):
    # Half of the pairs, twice: what is made of the total is its symmetric part.
    for i in range(SLICES):
        for j in range(i, SLICES):
            total = _add(total, i + j, d[i], d[j], 1 if i == j else 2)
    return total


def _add_cross(total, left, right):
    for i in range(SLICES):
        for j in range(SLICES):
            total = _add(total, i + j, left[i], right[j], 1)
    return total


def _add(total, order, left, right, times):
    """Add the block sums of ``times left^T right`` to the two integers, when they are there: one product at a time."""
    high = order < _SPLIT
    unit = BITS * ((_SPLIT - 1 if high else 2 * (SLICES - 1)) - order)
    right = right * (times * 2.0**unit)  # exact
    if total is not None:
        right = right + (_nothing(total[0]) + _nothing(total[1]))[..., None, :, :]
    part = (left.mT @ right).astype(mx.int64)
    part = part[..., 0, :, :] if part.shape[-3] == 1 else mx.sum(part, axis=-3)
    if total is None:
        total = [mx.zeros_like(part), mx.zeros_like(part)]
    return [total[0] + part, total[1]] if high else [total[0], total[1] + part]
