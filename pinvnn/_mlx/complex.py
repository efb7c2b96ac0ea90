"""Complex matrices as real ones, since MLX has no complex128.

The small problems (n x n, n x k) are solved in float64 on the CPU. There a complex matrix X + iY is the real matrix
[[X, -Y], [Y, X]] ("embedded"), for which products and ^H carry over, and complex columns are [Re; Im] ("stacked").
"""

import mlx.core as mx

from .place import on_cpu


def stack(x: mx.array) -> mx.array:
    """``x`` (..., n, k) in float64, complex ``x`` as [Re; Im], ``(..., 2n, k)``. Differentiable."""
    with on_cpu():
        if x.dtype == mx.complex64:
            x = mx.concatenate([mx.real(x), mx.imag(x)], axis=-2)
        return x.astype(mx.float64)


def unstack(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """Inverse of :func:`stack`, in ``dtype``."""
    with on_cpu():
        if dtype != mx.complex64:
            return x.astype(dtype)
        re, im = mx.split(x.astype(mx.float32), 2, axis=-2)
        return re + mx.array(1j, mx.complex64) * im


def embed(x: mx.array) -> mx.array:
    """``x`` (..., n, k) in float64, complex ``x`` as [[Re, -Im], [Im, Re]], ``(..., 2n, 2k)``."""
    if x.dtype != mx.complex64:
        return stack(x)
    with on_cpu():
        return mx.concatenate([stack(x), stack(x * mx.array(1j, mx.complex64))], axis=-1)


def embed_stacked(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """:func:`embed` of what is stacked."""
    if dtype != mx.complex64:
        return x
    with on_cpu():
        re, im = mx.split(x, 2, axis=-2)
        return mx.concatenate([x, mx.concatenate([-im, re], axis=-2)], axis=-1)


def unembed(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """Inverse of :func:`embed`, in ``dtype``."""
    with on_cpu():
        return unstack(x[..., : x.shape[-1] // 2] if dtype == mx.complex64 else x, dtype)


def real_and_imaginary(x: mx.array) -> mx.array:
    """``x`` (..., m, n) in float64, complex ``x`` as [Re | Im], ``(..., m, 2n)``."""
    if x.dtype == mx.complex64:
        x = mx.concatenate([mx.real(x), mx.imag(x)], axis=-1)
    return x.astype(mx.float64)


def h(x: mx.array) -> mx.array:
    """Conjugate transpose."""
    return mx.conjugate(x.mT) if x.dtype == mx.complex64 else x.mT


def fold(total: mx.array) -> mx.array:
    """X^H Y, stacked, from ``total`` = [Re X | Im X]^T [Re Y | Im Y]."""
    (rr, ri), (ir, ii) = (mx.split(half, 2, axis=-1) for half in mx.split(total, 2, axis=-2))
    return mx.concatenate([rr + ii, ri - ir], axis=-2)
