"""Factorizations, forward only: the factors that leave this file are constants for differentiation.

What the rules need of a matrix A (m x n) is the eigen-decomposition of its Gram matrix, A^H A = V diag(s^2) V^H: n x n
and in float64, however tall A is. float32 and complex64 input gets it from a Gram matrix accumulated in float64 over
row blocks, which resolves s down to 1e-8 of the largest; float64 input, which has no wider type, from a singular value
decomposition. A complex matrix X + iY lives in the small problems as [[X, -Y], [Y, X]], since
MLX has no complex128.
"""

from typing import NamedTuple

import mlx.core as mx

from . import _dtypes, _rank
from ._attach import constant
from ._place import CPU, large, on_cpu

# Rows per block of a float64 product: small enough that the float64 copy of a block stays in cache.
BLOCK = 1024


class Factor(NamedTuple):
    """Right factor of r A, all float64. For complex input the embedded one, with every singular value twice.

    Attributes:
        v: Eigenvectors of the Gram matrix, ``(..., n, n)``; NaN for a matrix that is not finite.
        s: Singular values of ``r A``, descending, ``(..., n)``, the largest between 1/2 and 2 sqrt(n).
        kept: 1.0 where the singular value is kept, 0.0 where it is dropped, ``(..., n)``.
        r: A power of two per matrix, ``(..., 1, 1)``, so that no product of small factors over- or underflows.
    """

    v: mx.array
    s: mx.array
    kept: mx.array
    r: mx.array


CORES = (2, 1, 1, 2)


# --- The embedding of complex into real, and the step into float64 --------------------------------


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


# --- Large products in float64, by row blocks -----------------------------------------------------


def cross(a, b, w=None):
    """``a^H diag(w) b`` accumulated in float64 without a float64 copy of either, stacked ``(..., n or 2n, k)``."""
    with on_cpu():
        total = mx.zeros((), mx.float64)
        for i in range(0, a.shape[-2], BLOCK):
            left = _halves(a[..., i : i + BLOCK, :])
            right = left if a is b and w is None else _halves(b[..., i : i + BLOCK, :])
            if w is not None:
                right = right * w[..., i : i + BLOCK, None].astype(mx.float64)
            total = total + _t(left) @ right
        if a.dtype != mx.complex64:
            return total
        (rr, ri), (ir, ii) = (mx.split(half, 2, axis=-1) for half in mx.split(total, 2, axis=-2))
        return mx.concatenate([rr + ii, ri - ir], axis=-2)


def times(a, x, b=None):
    """``a @ x``, or ``b - a @ x``, for tall ``a`` (..., m, n) and small stacked ``x``: in float64, then ``a.dtype``."""
    with on_cpu():
        if a.dtype == mx.complex64:
            re, im = mx.split(x, 2, axis=-2)
            x = mx.concatenate([mx.concatenate([re, im], -1), mx.concatenate([-im, re], -1)], -2)
        starts = range(0, a.shape[-2], BLOCK)
        rows = [_halves(a[..., i : i + BLOCK, :]) @ x for i in starts]
        if b is not None:
            rows = [_halves(b[..., i : i + BLOCK, :]) - row for i, row in zip(starts, rows, strict=True)]
        if a.dtype == mx.complex64:
            pairs = [mx.split(p.astype(mx.float32), 2, axis=-1) for p in rows]
            rows = [re + mx.array(1j, mx.complex64) * im for re, im in pairs]
        rows = [p.astype(a.dtype) for p in rows]
        return rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=-2)


# --- LAPACK ---------------------------------------------------------------------------------------

_eigh = constant(lambda x: mx.linalg.eigh(x, stream=CPU), 2)
_svd_of_transpose = constant(lambda x: mx.linalg.svd(x, stream=CPU), 3)
_cholesky = constant(lambda x: mx.linalg.cholesky(x, stream=CPU), 1)
_tri_inv = constant(lambda x: mx.linalg.tri_inv(x, stream=CPU), 1)


def _svd(a):
    """(u, s, v) of ``a`` by LAPACK, which keeps the digits of badly scaled columns but not of rows.

    MLX hands a row-major matrix to a column-major LAPACK, so that ``a`` itself gets there as its transpose.
    """
    v, s, ut = _svd_of_transpose(_t(a))
    return _t(ut), s, v


def thin_svd(a):
    """Singular values and vectors (u, s, v) of a tall float64 ``a`` (..., m, n) of norm about 1, at the cost of m n^2.

    A V0, with the eigenvectors V0 of the Gram matrix, has columns that are nearly orthogonal. Their Gram matrix, scaled
    to a unit diagonal, is so well conditioned that its Cholesky factor is as good as a QR (Drmac and Veselic 2008, doi
    10.1137/050639193); the SVD of what is left is n x n. A second round makes up for what the first Gram matrix could
    not resolve below 1e-8. Not a QR: MLX has no vmap for it. MLX's own SVD forms an m x m matrix.
    """
    n = a.shape[-1]
    if a.shape[-2] < 4 * n:
        u, s, v = _svd(a)
        return u[..., :n], s, v
    _, v = _eigh(cross(a, a))
    v = v[..., ::-1]
    for shift in (1e-10, 0.0):
        b = a @ v
        gram = _t(b) @ b
        norms = mx.sqrt(mx.diagonal(gram, axis1=-2, axis2=-1))
        unit = 1 / mx.where(norms > 0, norms, mx.ones_like(norms))
        # Columns of rounding noise may be parallel. They come last, so that a shift there reaches no other column.
        noise = norms <= n * _dtypes.eps(mx.float64) * mx.max(norms, axis=-1, keepdims=True)
        ridge = mx.eye(n, dtype=mx.float64) * mx.where(noise, 1e-3, shift)[..., None, :]
        lower = mx.tril(_cholesky(gram * unit[..., None, :] * unit[..., :, None] + ridge))
        u, s, w = _svd(_t(lower) * norms[..., None, :])
        v = v @ w
    return b @ (unit[..., :, None] * (_t(_tri_inv(lower)) @ u)), s, v


def _power_of_two(x, dtype):
    """1 / x to the nearest power of two that the real ``dtype`` can hold, 1 where x is 0; scaling by it is exact."""
    largest = 1000 if dtype == mx.float64 else 120
    exponent = mx.round(mx.log2(mx.where(x > 0, x, mx.ones_like(x))))
    return mx.power(mx.array(2.0, mx.float64), -mx.clip(exponent, -largest, largest))


def gram_factor(gram, entry_dtype, shape, rtol=None, atol=None):
    """:class:`Factor` of a stacked float64 Gram matrix ``(..., n or 2n, n)`` of a matrix of ``shape`` (m, n)."""
    with on_cpu():
        copies = gram.shape[-2] // gram.shape[-1]
        if copies == 2:
            re, im = mx.split(gram, 2, axis=-2)
            gram = mx.concatenate([gram, mx.concatenate([-im, re], -2)], -1)
        clean, r, finite = _clean_gram(gram, entry_dtype)
        values, v = _eigh((clean + _t(clean)) / 2)
        values, v = values[..., ::-1], v[..., ::-1]
        if copies == 2:
            # The two copies differ by rounding; one value for both keeps a pair on one side of the cutoff.
            pairs = mx.mean(values.reshape(*values.shape[:-1], -1, 2), axis=-1, keepdims=True)
            values = mx.broadcast_to(pairs, (*pairs.shape[:-1], 2)).reshape(values.shape)
        s = mx.sqrt(mx.maximum(values, 0))
        return _decide(v, s, r, finite, entry_dtype, shape, rtol, atol)


def _clean_gram(gram, dtype):
    """``gram`` scaled to a diagonal of about 1, zero where it is not finite; the r of that scale; which were finite."""
    size = mx.max(mx.abs(mx.diagonal(gram, axis1=-2, axis2=-1)), axis=-1)[..., None, None]
    finite = mx.all(mx.isfinite(gram), axis=(-2, -1), keepdims=True)
    r = _power_of_two(mx.sqrt(mx.where(finite, size, mx.ones_like(size))), dtype)
    return mx.where(finite, gram * r * r, mx.zeros_like(gram)), r, finite


def cholesky_factor(gram, dtype):
    """:class:`Factor` with V V^T = (r^2 gram)^-1 and s = 1, a tenth of the work of eigenvectors; it knows no rank.

    Returns:
        The factor, with ``kept`` = 0 where the matrix is singular to working precision, and its condition number (...),
        overestimated by up to n^(3/2). MLX's Cholesky returns garbage for an indefinite matrix without an error, which
        shows in its pivots or in the norms of its rows.
    """
    with on_cpu():
        n, eye = gram.shape[-1], mx.eye(gram.shape[-1], dtype=mx.float64)
        clean, r, finite = _clean_gram(gram, dtype)
        lower = mx.tril(_cholesky(mx.where(finite, clean, eye)))
        diagonal = mx.diagonal(mx.where(finite, clean, eye), axis1=-2, axis2=-1)
        pivots = mx.diagonal(lower, axis1=-2, axis2=-1)
        floor = n * _dtypes.eps(mx.float64) * mx.max(diagonal, axis=-1, keepdims=True)
        sound = (pivots > 0) & (pivots**2 > floor) & (mx.abs(mx.sum(lower**2, axis=-1) - diagonal) <= 1e-8 * diagonal)
        definite = mx.all(sound, axis=-1)[..., None, None]
        v = _t(_tri_inv(mx.where(definite, lower, eye)))
        cond = mx.sqrt(mx.sum(clean**2, axis=(-2, -1))) * mx.sum(v**2, axis=(-2, -1))
        kept = mx.broadcast_to((definite & finite)[..., 0].astype(mx.float64), diagonal.shape)
        v = mx.where(finite, v, mx.array(float("nan"), mx.float64))
        return Factor(*map(mx.stop_gradient, (v, mx.ones_like(diagonal), kept, r))), mx.stop_gradient(cond)


def _decide(v, s, r, finite, dtype, shape, rtol, atol):
    limit = _rank.cutoff(s[..., 0], shape, dtype, rtol, None if atol is None else atol * r[..., 0, 0])
    kept = _rank.keep(s, limit).astype(mx.float64)
    bad = ~finite | mx.isnan(limit)[..., None, None]
    v = mx.where(bad, mx.array(float("nan"), mx.float64), v)
    s = mx.where(bad[..., 0], mx.array(float("nan"), mx.float64), s)
    kept = mx.where(bad[..., 0], mx.zeros_like(kept), kept)
    return Factor(*(mx.stop_gradient(x) for x in (v, s, kept, r)))


def factor(a, w=None, rtol=None, atol=None, method=None, entries=None):
    """Factor ``diag(sqrt(w)) a`` for ``a`` (..., m, n), not empty, by the Gram matrix or (float64's default) by SVD.

    ``entries`` is the dtype whose precision the entries carry, where a wider copy of them is passed.

    Returns:
        The :class:`Factor`, and for the method "svd" the left singular vectors ``(..., m, n)`` in float64 (else None).
    """
    shape, entries = a.shape[-2:], entries or a.dtype
    with on_cpu():
        if w is not None:
            w = mx.where(w < 0, mx.array(float("nan"), w.dtype), w)
        rtol, atol = (None if t is None else _tolerance(t) for t in (rtol, atol))
        if (method or ("svd" if entries == mx.float64 else "gram")) == "gram":
            return gram_factor(cross(a, a, w), entries, shape, rtol, atol), None
        wide = a.astype(mx.float64)
        if w is not None:
            wide = mx.sqrt(w.astype(mx.float64))[..., None] * wide
        return _svd_factor(wide, entries, rtol, atol)


def _tolerance(t):
    """A number or an array over the batch, in float64; NaN where it is negative."""
    t = mx.array(t, mx.float64) if isinstance(t, float) else t.astype(mx.float64)
    return mx.where(t >= 0, t, mx.array(float("nan"), mx.float64))


def _svd_factor(a, dtype, rtol, atol):
    m, n = a.shape[-2:]
    size = mx.max(mx.abs(a), axis=(-2, -1), keepdims=True)
    finite = mx.all(mx.isfinite(a), axis=(-2, -1), keepdims=True)
    r = _power_of_two(mx.where(finite, size, mx.ones_like(size)), dtype)
    clean = mx.where(finite, a * r, mx.zeros_like(a))
    if m < n:
        clean = mx.concatenate([clean, mx.zeros((*clean.shape[:-2], n - m, n), clean.dtype)], -2)
    u, s, v = thin_svd(clean)
    left = mx.where(finite, u[..., :m, :], mx.array(float("nan"), mx.float64))
    return _decide(v, s, r, finite, dtype, (m, n), rtol, atol), mx.stop_gradient(left)


# --- Values ---------------------------------------------------------------------------------------


def spectral(f: Factor, d, x):
    """``V diag(d) V^H x`` for ``d`` (..., n)."""
    return f.v @ (d[..., None] * (_t(f.v) @ x))


def reciprocal(f: Factor, power):
    """``s**-power`` for the kept singular values of ``r A``, 0 for the others."""
    on = f.kept > 0
    return mx.where(on, 1 / mx.where(on, f.s, mx.ones_like(f.s)) ** power, mx.zeros_like(f.s))


def left_vectors(a, f: Factor):
    """Left singular vectors ``(..., m, n)`` of the real ``a`` that ``f`` factors, 0 where the singular value is."""
    with on_cpu():
        unit = mx.where(f.s == 0, mx.zeros_like(f.s), 1 / mx.where(f.s == 0, mx.ones_like(f.s), f.s))
        return times(a, spectral_rows(f, unit) * f.r)


def pinv_value(a, f: Factor, left=None):
    """The pseudo-inverse ``(..., n, m)`` of the tall ``a`` that ``f`` factors, by its ``left`` vectors if given."""
    if left is not None:
        with on_cpu():
            right = (spectral_rows(f, reciprocal(f, 1)) * f.r).astype(left.dtype)
        with large(left.dtype):
            return right @ _t(left)
    with on_cpu():
        columns = f.v.shape[-1] // (2 if a.dtype == mx.complex64 else 1)
        inverse = spectral_rows(f, reciprocal(f, 2)) @ _t(f.v[..., :columns, :])
        return h(times(a, inverse * f.r * f.r))


def solve_value(a, b, w, f: Factor, left=None):
    """``pinv(diag(sqrt(w)) a) diag(sqrt(w)) b``, stacked, for the matrix that ``f`` factors."""
    with on_cpu():
        if left is None:
            return spectral(f, reciprocal(f, 2), cross(a, b, w)) * f.r * f.r
        if w is not None:
            b = mx.sqrt(w.astype(mx.float64))[..., None] * b
        return spectral_rows(f, reciprocal(f, 1)) @ (_t(left) @ b) * f.r


def adjoint_value(a, x, f: Factor, left=None):
    """``pinv(a)^H x`` (..., m, k) for the tall ``a`` that ``f`` factors."""
    with on_cpu():
        if left is not None:
            return (left @ (reciprocal(f, 1)[..., None] * (_t(f.v) @ x)) * f.r).astype(a.dtype)
        return times(a, spectral(f, reciprocal(f, 2), stack(x)) * f.r * f.r)


def spectral_rows(f: Factor, d):
    """``V diag(d)``."""
    return f.v * d[..., None, :]
