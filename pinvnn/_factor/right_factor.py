"""Factorizations, forward only: the factors that leave this file are constants for differentiation.

What the rules need of a matrix A (m x n) is the eigen-decomposition of its Gram matrix, A^H A = V diag(s^2) V^H: n x n
and in float64, however tall A is. float32 and complex64 input gets it from a Gram matrix accumulated in float64 over
row blocks, which resolves s down to 1e-8 of the largest; float64 input, which has no wider type, from a singular value
decomposition.
"""

from typing import NamedTuple

import mlx.core as mx

from .._mlx.blocks import cross
from .._mlx.place import on_cpu
from .lapack import eigh, thin_svd
from .rank import cutoff, keep


class Factor(NamedTuple):
    """Right factor of r A, all float64. For complex input the embedded one, with every singular value twice.

    Attributes:
        v: Eigenvectors of the Gram matrix, ``(..., n, n)``; NaN for a matrix that is not finite.
        s: Singular values of ``r A``, descending, ``(..., n)``, the largest between 1/2 and 2 sqrt(n).
        kept: 1.0 where the singular value is kept, 0.0 where it is dropped, ``(..., n)``.
        r: A power of two per matrix, ``(..., 1, 1)``, so that no product of small factors over- or underflows.

    Where all singular values are known to be kept, ``s`` and ``kept`` are empty, ``(..., 0)``, and ``v`` is any matrix
    with V V^T = (r^2 A^T A)^-1 (see ``full_rank.py``).
    """

    v: mx.array
    s: mx.array
    kept: mx.array
    r: mx.array

    @property
    def full(self):
        """Whether all singular values are known to be kept: of the graph, not of the data."""
        return self.kept.shape[-1] == 0


CORES = (2, 1, 1, 2)


def power_of_two(x, dtype):
    """1 / x to the nearest power of two that the real ``dtype`` can hold, 1 where x is 0; scaling by it is exact."""
    largest = 1000 if dtype == mx.float64 else 120
    exponent = mx.round(mx.log2(mx.where(x > 0, x, mx.ones_like(x))))
    return mx.power(mx.array(2.0, mx.float64), -mx.clip(exponent, -largest, largest))


def gram_factor(gram, entry_dtype, shape, rtol=None, atol=None):
    """:class:`Factor` of a stacked float64 Gram matrix ``(..., n or 2n, n)`` of a matrix of ``shape`` (m, n)."""
    with on_cpu():
        copies = gram.shape[-2] // gram.shape[-1]
        gram = whole(gram)
        clean, r, finite = _clean_gram(gram, entry_dtype)
        values, v = eigh((clean + clean.mT) / 2)
        values, v = values[..., ::-1], v[..., ::-1]
        if copies == 2:
            # The two copies differ by rounding; one value for both keeps a pair on one side of the cutoff.
            pairs = mx.mean(values.reshape(*values.shape[:-1], -1, 2), axis=-1, keepdims=True)
            values = mx.broadcast_to(pairs, (*pairs.shape[:-1], 2)).reshape(values.shape)
        s = mx.sqrt(mx.maximum(values, 0))
        return _decide(v, s, r, finite, entry_dtype, shape, rtol, atol)


def whole(gram):
    """A stacked Gram matrix ``(..., 2n, n)`` as the embedded one; a real one as it is."""
    if gram.shape[-2] == gram.shape[-1]:
        return gram
    re, im = mx.split(gram, 2, axis=-2)
    return mx.concatenate([gram, mx.concatenate([-im, re], -2)], -1)


def _clean_gram(gram, dtype):
    """``gram`` scaled to a diagonal of about 1, zero where it is not finite; the r of that scale; which were finite."""
    finite = mx.isfinite(mx.sum(gram, axis=(-2, -1), keepdims=True))
    r = gram_scale(mx.diagonal(gram, axis1=-2, axis2=-1), dtype)
    return mx.where(finite, gram * (r * r), mx.array(0.0, mx.float64)), r, finite


def gram_scale(diagonal, dtype):
    """The power of two r, ``(..., 1, 1)``, that scales a Gram matrix with this ``diagonal`` (..., n) to about 1."""
    size = mx.max(mx.abs(diagonal), axis=-1)[..., None, None]
    return power_of_two(mx.sqrt(mx.where(mx.isfinite(size), size, mx.ones_like(size))), dtype)


def _decide(v, s, r, finite, dtype, shape, rtol, atol):
    limit = cutoff(s[..., 0], shape, dtype, rtol, None if atol is None else atol * r[..., 0, 0])
    kept = keep(s, limit).astype(mx.float64)
    bad = ~finite | mx.isnan(limit)[..., None, None]
    v = mx.where(bad, mx.array(float("nan"), mx.float64), v)
    s = mx.where(bad[..., 0], mx.array(float("nan"), mx.float64), s)
    kept = mx.where(bad[..., 0], mx.zeros_like(kept), kept)
    return Factor(*(mx.stop_gradient(x) for x in (v, s, kept, r)))


def factor(a, w=None, rtol=None, atol=None, method=None, entries=None):
    """Factor ``diag(sqrt(w)) a`` for ``a`` (..., m, n), not empty, by the Gram matrix or (float64's default) by SVD.

    ``method`` is "gram" or "svd"; what else it may be leaves the choice to ``entries``, the dtype whose precision the
    entries carry, where a wider copy of them is passed.

    Returns:
        The :class:`Factor`, and for the method "svd" the left singular vectors ``(..., m, n)`` in float64 (else None).
    """
    shape, entries = a.shape[-2:], entries or a.dtype
    if method not in ("gram", "svd"):
        method = "svd" if entries == mx.float64 else "gram"
    with on_cpu():
        w, rtol, atol = non_negative(w), tolerance(rtol), tolerance(atol)
        if method == "gram":
            return gram_factor(cross(a, a, w), entries, shape, rtol, atol), None
        wide = a.astype(mx.float64)
        if w is not None:
            wide = mx.sqrt(w.astype(mx.float64))[..., None] * wide
        return _svd_factor(wide, entries, rtol, atol)


def non_negative(w):
    """Weights with NaN in place of negative ones; None as it is."""
    return None if w is None else mx.where(w < 0, mx.array(float("nan"), w.dtype), w)


def tolerance(t):
    """A number or an array over the batch, in float64, NaN where it is negative; None as it is."""
    if t is None or isinstance(t, float):
        return t
    t = t.astype(mx.float64)
    return mx.where(t >= 0, t, mx.array(float("nan"), mx.float64))


def _svd_factor(a, dtype, rtol, atol):
    m, n = a.shape[-2:]
    size = mx.max(mx.abs(a), axis=(-2, -1), keepdims=True)
    finite = mx.all(mx.isfinite(a), axis=(-2, -1), keepdims=True)
    r = power_of_two(mx.where(finite, size, mx.ones_like(size)), dtype)
    clean = mx.where(finite, a * r, mx.zeros_like(a))
    if m < n:
        clean = mx.concatenate([clean, mx.zeros((*clean.shape[:-2], n - m, n), clean.dtype)], -2)
    u, s, v = thin_svd(clean)
    left = mx.where(finite, u[..., :m, :], mx.array(float("nan"), mx.float64))
    return _decide(v, s, r, finite, dtype, (m, n), rtol, atol), mx.stop_gradient(left)


def rank_of(a, f: Factor):
    """The rank ``(...)`` that the factor of ``a`` decided, int32."""
    with on_cpu():
        count = mx.sum(f.kept, axis=-1)
        return (count / 2 if a.dtype == mx.complex64 else count).astype(mx.int32)
