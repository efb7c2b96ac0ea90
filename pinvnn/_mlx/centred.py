"""Rows about their mean, without a rounding: the difference is taken in float64, block by block.

Centred rows that are rounded to float32 are those of another problem, and the condition number multiplies what lies
between: at 1e4 a gradient keeps four digits.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import mlx.core as mx

from .complex import real_and_imaginary
from .place import large, on_cpu


class Centred(NamedTuple):
    """The matrix ``rows - mean``; it stands where a float32 matrix does, for all that :func:`in_float64` reads.

    Attributes:
        rows: ``(..., m, n)``, float32, as they were given. Their derivative is that of the matrix.
        mean: ``(..., 1, n)``, float64, constant.
    """

    rows: mx.array
    mean: mx.array

    @property
    def cores(self) -> tuple[int, int]:
        """Trailing dimensions of the fields that are no batch."""
        return 2, 2

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    @property
    def ndim(self) -> int:
        return self.rows.ndim

    @property
    def size(self) -> int:
        return self.rows.size

    @property
    def dtype(self) -> mx.Dtype:
        return self.rows.dtype


#: A matrix ``(..., m, n)``; in annotations, what may be either.
Matrix: TypeAlias = mx.array | Centred


def in_float64(a: Matrix, rows: slice | None = None) -> mx.array:
    """The ``rows`` of ``a``, or all of them, in float64, complex ones as [Re | Im]. Differentiable."""
    with on_cpu():
        if isinstance(a, Centred):
            return in_float64(a.rows, rows) - a.mean
        return real_and_imaginary(a if rows is None else a[..., rows, :])


def rounded(a: Matrix) -> mx.array:
    """``a`` as an array of its dtype. Differentiable."""
    if not isinstance(a, Centred):
        return a
    with on_cpu():
        mean = a.mean.astype(a.dtype)
    with large(a.dtype):
        return a.rows - mean


def with_batch(a: Matrix, batch: tuple[int, ...]) -> Matrix:
    """``a`` broadcast to ``(*batch, m, n)``."""
    return each(a, lambda x: mx.broadcast_to(x, (*batch, *x.shape[-2:])))


def each(a: Matrix, change: Callable[[mx.array], mx.array]) -> Matrix:
    """``change`` of an array, or of both fields: of batch dimensions and columns."""
    return Centred(change(a.rows), change(a.mean)) if isinstance(a, Centred) else change(a)
