"""The right factor of a matrix: eigenvectors and eigenvalues of its Gram matrix, and which of them are kept.

A^H A = V diag(s^2) V^H is n x n and held in float64, however tall A (m x n) is. For float32 and complex64 it comes from
a Gram matrix accumulated in float64 over row blocks, which resolves s down to 1e-8 of the largest; for float64, which
has no wider type, from a singular value decomposition. All factors are constants for differentiation: the rules in
``_rules`` say how the results move.
"""

import math
from typing import NamedTuple

import mlx.core as mx

from .._mlx.blocks import cross
from .._mlx.centred import Matrix, in_float64, rounded
from .._mlx.place import on_cpu
from .._mlx.shapes import diagonal
from .._mlx.slices import crosses_by_slices
from .lapack import eigh, thin_svd
from .rank import cutoff, keep


class RightFactor(NamedTuple):
    """The right factor of r A, all float64. Of complex A it is that of the real embedding: every singular value twice.

    Where every singular value is known to be kept, ``s`` and ``kept`` are empty, ``(..., 0)``, and ``v`` is any matrix
    with V V^T = (r^2 A^T A)^-1, such as an inverse Cholesky factor (see ``full_rank.py``).

    Attributes:
        v: Eigenvectors of the Gram matrix, ``(..., n, n)``; NaN for a matrix that is not finite.
        s: Singular values of ``r A``, descending, ``(..., n)``; the largest lies between 1/2 and 2 sqrt(n).
        kept: 1.0 where the singular value is kept, 0.0 where it is dropped, ``(..., n)``.
        r: A power of two for each matrix, about 1 / |A|, ``(..., 1, 1)``: the products of the small factors of r A
            neither over- nor underflow, whatever the scale of A.
    """

    v: mx.array
    s: mx.array
    kept: mx.array
    r: mx.array

    @property
    def cores(self) -> tuple[int, ...]:
        """Trailing dimensions of the fields that are no batch."""
        return 2, 1, 1, 2

    @property
    def scale(self) -> mx.array:
        """The power of two r, ``(..., 1, 1)``."""
        return self.r

    scale_of_gram = scale

    @property
    def full(self) -> bool:
        """Whether all singular values are known to be kept. Read off shapes: no value is evaluated."""
        return self.kept.shape[-1] == 0


def power_of_two(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """The power of two nearest to 1 / x that the real ``dtype`` can hold; 1 where x is 0 or not finite.

    Scaling by it is exact.
    """
    largest = 1000 if dtype == mx.float64 else 120
    usable = mx.logical_and(x > 0, x < math.inf)
    exponent = mx.round(mx.log2(mx.where(usable, x, 1)))
    return mx.power(mx.array(0.5, mx.float64), mx.clip(exponent, -largest, largest))


def right_factor_of_gram(
    gram: mx.array,
    entry_dtype: mx.Dtype,
    shape: tuple[int, ...],
    rtol: mx.array | float | None = None,
    atol: mx.array | float | None = None,
) -> RightFactor:
    """The factor of A from its Gram matrix.

    Args:
        gram: A^H A in float64, ``(..., n, n)`` or, of complex A, stacked, ``(..., 2n, n)``.
        entry_dtype: The dtype of the entries of A, which decides the default cutoff.
        shape: That of A, (m, n).
        rtol: Relative cutoff, or None.
        atol: Absolute cutoff, or None.
    """
    with on_cpu():
        copies = gram.shape[-2] // gram.shape[-1]
        gram = embedded_gram(gram)
        clean, r, finite = _scaled_gram(gram, entry_dtype)
        values, v = eigh((clean + clean.mT) / 2)
        values, v = values[..., ::-1], v[..., ::-1]
        if copies == 2:
            # The two copies of an eigenvalue differ by rounding. Their mean keeps both on one side of the cutoff.
            pairs = mx.mean(values.reshape(*values.shape[:-1], -1, 2), axis=-1, keepdims=True)
            values = mx.broadcast_to(pairs, (*pairs.shape[:-1], 2)).reshape(values.shape)
        s = mx.sqrt(mx.maximum(values, 0))
        return _with_rank(v, s, r, finite, entry_dtype, shape, rtol, atol)


def embedded_gram(gram: mx.array) -> mx.array:
    """The real embedding ``(..., 2n, 2n)`` of a stacked Gram matrix ``(..., 2n, n)``; a real Gram matrix as it is."""
    if gram.shape[-2] == gram.shape[-1]:
        return gram
    re, im = mx.split(gram, 2, axis=-2)
    return mx.concatenate([gram, mx.concatenate([-im, re], -2)], -1)


def _scaled_gram(gram: mx.array, dtype: mx.Dtype) -> tuple[mx.array, mx.array, mx.array]:
    """r^2 ``gram`` with a diagonal of about 1, 0 for matrices that are not finite; r; and which matrices are finite.

    LAPACK must not meet NaN or Inf: MLX would raise for the whole batch.
    """
    finite = mx.isfinite(mx.sum(gram, axis=(-2, -1), keepdims=True))
    r = gram_scale(diagonal(gram), dtype)
    return mx.where(finite, gram * (r * r), mx.array(0.0, mx.float64)), r, finite


def gram_scale(squares: mx.array, dtype: mx.Dtype) -> mx.array:
    """The power of two r, ``(..., 1, 1)``, that scales a Gram matrix with this diagonal ``(..., n)`` to about 1."""
    return power_of_two(mx.sqrt(mx.max(squares, axis=-1, keepdims=True)[..., None]), dtype)


def _with_rank(v, s, r, finite, dtype, shape, rtol, atol) -> RightFactor:
    """The factor with its rank decided; NaN and rank 0 for matrices that are not finite or have a NaN cutoff."""
    limit = cutoff(s[..., 0], shape, dtype, rtol, None if atol is None else atol * r[..., 0, 0])
    kept = keep(s, limit).astype(mx.float64)
    bad = mx.logical_or(~finite, mx.isnan(limit)[..., None, None])
    v = mx.where(bad, mx.array(float("nan"), mx.float64), v)
    s = mx.where(bad[..., 0], mx.array(float("nan"), mx.float64), s)
    kept = mx.where(bad[..., 0], mx.zeros_like(kept), kept)
    return RightFactor(*(mx.stop_gradient(x) for x in (v, s, kept, r)))


def right_factor(
    a: Matrix,
    w: mx.array | None = None,
    rtol: mx.array | float | None = None,
    atol: mx.array | float | None = None,
    method: str | None = None,
    entries: mx.Dtype | None = None,
) -> tuple[RightFactor, mx.array | None]:
    """The right factor of diag(sqrt(w)) A, from the Gram matrix or a singular value decomposition.

    Args:
        a: A, ``(..., m, n)``, not empty.
        w: Weights ``(..., m)``, or None.
        rtol: Relative cutoff, or None.
        atol: Absolute cutoff, or None.
        method: "gram", "svd", or "slices" (the Gram matrix on the default device). Otherwise "svd" if ``entries`` is
            float64, else "gram".
        entries: The dtype that the entries had, if ``a`` has been converted to a wider one.

    Returns:
        The factor, and the left singular vectors ``(..., m, n)`` in float64 if it comes from an SVD, else None.
    """
    shape, entries = a.shape[-2:], entries or a.dtype
    if method == "slices":
        gram = crosses_by_slices(mx.stop_gradient(rounded(a)))[0]
        with on_cpu():
            rtol, atol = tolerance_or_nan(rtol), tolerance_or_nan(atol)
            return right_factor_of_gram(gram, entries, shape, rtol, atol), None
    if method not in ("gram", "svd"):
        method = "svd" if entries == mx.float64 else "gram"
    with on_cpu():
        w, rtol, atol = nan_where_negative(w), tolerance_or_nan(rtol), tolerance_or_nan(atol)
        if method == "gram":
            return right_factor_of_gram(cross(a, a, w), entries, shape, rtol, atol), None
        wide = in_float64(a)
        if w is not None:
            wide = mx.sqrt(w.astype(mx.float64))[..., None] * wide
        return _svd_factor(wide, entries, rtol, atol)


def nan_where_negative(w: mx.array | None) -> mx.array | None:
    """``w`` with NaN in place of negative entries; None stays None."""
    return None if w is None else mx.where(w < 0, mx.array(float("nan"), w.dtype), w)


def tolerance_or_nan(t: mx.array | float | None) -> mx.array | float | None:
    """A tolerance in float64, NaN where an array of them is negative; a checked number and None as they are."""
    if not isinstance(t, mx.array):
        return t
    t = t.astype(mx.float64)
    return mx.where(t >= 0, t, mx.array(float("nan"), mx.float64))


def _svd_factor(a: mx.array, dtype: mx.Dtype, rtol, atol) -> tuple[RightFactor, mx.array]:
    m, n = a.shape[-2:]
    size = mx.max(mx.abs(a), axis=(-2, -1), keepdims=True)
    finite = mx.all(mx.isfinite(a), axis=(-2, -1), keepdims=True)
    r = power_of_two(size, dtype)
    clean = mx.where(finite, a * r, mx.zeros_like(a))
    if m < n:
        clean = mx.concatenate([clean, mx.zeros((*clean.shape[:-2], n - m, n), clean.dtype)], -2)
    u, s, v = thin_svd(clean)
    left = mx.where(finite, u[..., :m, :], mx.array(float("nan"), mx.float64))
    return _with_rank(v, s, r, finite, dtype, (m, n), rtol, atol), mx.stop_gradient(left)


def rank_of(a: Matrix, f: RightFactor) -> mx.array:
    """The rank of ``a``, ``(...)`` int32, according to its factor ``f``."""
    with on_cpu():
        count = mx.sum(f.kept, axis=-1)
        return (count / 2 if a.dtype == mx.complex64 else count).astype(mx.int32)
