"""Matrices in twice the precision of float64, for references that judge float64 results.

A matrix is an unevaluated sum ``hi + lo`` of float64 arrays, and its products are made of exact float64 products of
slices, so that BLAS does the work: K. Ozaki, T. Ogita, S. Oishi, S. M. Rump, Error-free transformations of matrix
multiplication, Numer. Algorithms 59 (2012), Algorithm 3, doi 10.1007/s11075-011-9478-1.
"""

from __future__ import annotations

import numpy as np

_BLOCK = 2048  # products are made block by block: short sums leave more bits to a slice, small blocks stay in the cache
_LEVELS = 5  # slices i, j with i + j < _LEVELS are multiplied: about 90 bits


class Exact:
    """``hi + lo`` with ``lo`` below the last bit of ``hi``; knows ``+``, ``-``, ``@``, ``.mT`` as arrays do."""

    __array_ufunc__ = None  # ndarray + Exact asks Exact

    def __init__(self, hi, lo=None):
        self.hi = np.asarray(hi, np.float64)
        self.lo = np.zeros_like(self.hi) if lo is None else lo

    @classmethod
    def of(cls, value):
        """From float32, float64 or long double."""
        value = np.asarray(value)
        hi = value.astype(np.float64)
        return cls(hi, (value - hi).astype(np.float64) if value.dtype == np.longdouble else None)

    @property
    def mT(self):
        return Exact(self.hi.mT, self.lo.mT)

    @property
    def shape(self):
        return self.hi.shape

    def __neg__(self):
        return Exact(-self.hi, -self.lo)

    def __add__(self, other):
        hi, error = _two_sum(self.hi, other.hi)
        return Exact(*_quick_two_sum(hi, error + (self.lo + other.lo)))

    def __sub__(self, other):
        return self + -other

    def __getitem__(self, key):
        return Exact(self.hi[key], self.lo[key])

    def __matmul__(self, other):
        rows = [np.concatenate(row, axis=-1) for row in self._blocks(other)]
        return Exact(*np.concatenate(rows, axis=-2))

    def _blocks(self, other):
        """The blocks of ``self @ other``, each an array (2, ...) of hi and lo, row by row."""
        for i in _ranges(self.shape[-2]):
            row = []
            for j in _ranges(other.shape[-1]):
                parts = [_product(self[..., i, k], other[..., k, j]) for k in _ranges(self.shape[-1])]
                total = sum(parts[1:], start=parts[0])
                row.append(np.stack([total.hi, total.lo]))
            yield row


def inverse(a: Exact) -> Exact:
    """Inverse of a matrix of condition below 1e13, by Newton's iteration from the float64 inverse."""
    identity = Exact(np.broadcast_to(np.eye(a.shape[-1]), a.shape))
    x = Exact(np.linalg.inv(a.hi))
    for _ in range(3):
        rest = (identity - a @ x).hi
        x = x + Exact(x.hi @ rest)
        if np.max(np.abs(rest)) < 1e-12:  # its square is below the last bit
            break
    return x


def _ranges(length):
    return [slice(start, start + _BLOCK) for start in range(0, length, _BLOCK)]


def _two_sum(a, b):
    """Sum and its exact rounding error (Knuth)."""
    total = a + b
    c = total - a
    return total, (a - (total - c)) + (b - c)


def _quick_two_sum(a, b):
    """The same where ``|a| >= |b|`` (Dekker)."""
    total = a + b
    return total, b - (total - a)


def _product(a: Exact, b: Exact) -> Exact:
    inner = a.shape[-1]
    left, right = _slices(a, -1, inner), _slices(b, -2, inner)
    total = Exact(np.zeros(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) + (a.shape[-2], b.shape[-1])))
    for i, x in enumerate(left):
        for y in right[:_LEVELS - i]:
            total = total + Exact(x @ y)
    return total


def _slices(a: Exact, axis, inner):
    """``a`` as a sum of arrays of so few bits that sums of ``inner`` products of two of them are exact in float64."""
    dropped = int(np.ceil((53 + np.log2(inner)) / 2))
    rest, lo = a.hi, a.lo
    parts = []
    while len(parts) < _LEVELS and np.any(rest):
        largest = np.max(np.abs(rest), axis=axis, keepdims=True)
        exponent = np.ceil(np.log2(np.where(largest > 0, largest, 1)))
        shift = np.ldexp(0.75, (exponent + dropped).astype(int) + 1)
        part = (rest + shift) - shift
        parts.append(part)
        rest, lo = _quick_two_sum(rest - part, lo)
    return parts
