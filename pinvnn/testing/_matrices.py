"""Matrices whose singular values are known."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np


def random_matrix(
    shape: Sequence[int],
    rank: int | None = None,
    cond: float | None = None,
    dtype: mx.Dtype = mx.float32,
    seed: int = 0,
) -> mx.array:
    """A random matrix of given rank and condition, the same for the same seed.

    Args:
        shape (tuple(int)): ``(..., m, n)``; the matrices of a batch are drawn independently.
        rank (int): Number of non-zero singular values. Default: ``min(m, n)``.
        cond (float): Ratio of the largest to the smallest non-zero singular value; the singular values are then spaced
            geometrically from 1 down to 1 / cond. Default: the matrix is Gaussian, or for a lower ``rank`` the product
            of two Gaussian matrices, and its singular values are random.
        dtype (Dtype): A floating or complex dtype. The matrix is formed in double precision and rounded once, so that
            its zero singular values are about eps times the largest. Default: ``float32``.
        seed (int): Seed of a generator of its own; no global random state is read or changed. Default: ``0``.

    Returns:
        array: Of shape ``shape`` and ``dtype``.

    Raises:
        TypeError: ``dtype`` is neither floating nor complex.
        ValueError: ``shape`` has less than two dimensions, ``rank`` does not fit it, or ``cond`` is below 1.

    Example:
        >>> import mlx.core as mx
        >>> from pinvnn.testing import random_matrix
        >>> a = random_matrix((5, 3), rank=2, cond=10)
        >>> mx.linalg.svd(a, compute_uv=False, stream=mx.cpu).round(4)
        array([1, 0.1, 0], dtype=float32)
    """
    shape = tuple(shape)
    _validate(shape, rank, cond, dtype)
    *batch, m, n = shape
    rank = min(m, n) if rank is None else rank
    rng = np.random.default_rng(seed)

    def gaussian(*last: int) -> np.ndarray:
        x = rng.normal(size=(*batch, *last))
        return x + 1j * rng.normal(size=x.shape) if dtype == mx.complex64 else x

    if cond is not None:
        u, v = np.linalg.qr(gaussian(m, rank))[0], np.linalg.qr(gaussian(n, rank))[0]
        a = u * np.geomspace(1.0, 1.0 / cond, rank) @ np.conj(np.swapaxes(v, -1, -2))
    elif rank < min(m, n):
        a = gaussian(m, rank) @ gaussian(rank, n) / np.sqrt(max(rank, 1))
    else:
        a = gaussian(m, n)
    # Half dtypes are unknown to the conversion from float64; float64 exists on the CPU only.
    return mx.array(a, dtype=mx.float64).astype(dtype, stream=mx.cpu) if not np.iscomplexobj(a) else mx.array(a, dtype)


def _validate(shape: tuple[int, ...], rank: int | None, cond: float | None, dtype: mx.Dtype) -> None:
    where = "[pinvnn.testing.random_matrix]"
    if not isinstance(dtype, mx.Dtype) or not mx.issubdtype(dtype, mx.inexact):
        raise TypeError(f"{where} dtype must be floating or complex, but got {dtype}. Pass mx.float64, say.")
    if len(shape) < 2:
        raise ValueError(f"{where} shape must have two dimensions or more, but got {shape}. Pass (m, n).")
    most = min(shape[-2:])
    if rank is not None and not 0 <= rank <= most:
        raise ValueError(f"{where} rank must be 0 to {most} for shape {shape}, but got {rank}. Take a smaller one.")
    if cond is not None and not cond >= 1:
        raise ValueError(f"{where} cond must be 1 or more, but got {cond}. Pass the inverse, or None for any.")
