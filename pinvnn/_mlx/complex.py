"""Complex matrices as real ones, since MLX has no complex128.

In the small problems X + iY is [[X, -Y], [Y, X]] ("embedded"), and columns are [Re; Im] ("stacked"). Everything here
is float64 on the CPU.
"""

import mlx.core as mx

from .place import on_cpu


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


def halves(x):
    """[Re | Im] of a block of rows, in float64."""
    if x.dtype == mx.complex64:
        x = mx.concatenate([mx.real(x), mx.imag(x)], axis=-1)
    return x.astype(mx.float64)


def h(x):
    """Conjugate transpose."""
    return mx.conjugate(x.mT) if x.dtype == mx.complex64 else x.mT


def folded(total):
    """[Re; Im] of X^H Y from [Re X | Im X]^T [Re Y | Im Y]."""
    (rr, ri), (ir, ii) = (mx.split(half, 2, axis=-1) for half in mx.split(total, 2, axis=-2))
    return mx.concatenate([rr + ii, ri - ir], axis=-2)
