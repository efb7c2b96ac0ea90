"""The factorizations of ``mx.linalg``, batched, as constants, on the CPU: no other device has them."""

import mlx.core as mx

from .._mlx import dtypes
from .._mlx.attach import constant
from .._mlx.blocks import cross
from .._mlx.place import CPU

eigh = constant(lambda x: mx.linalg.eigh(x, stream=CPU), 2)
_svd_of_transpose = constant(lambda x: mx.linalg.svd(x, stream=CPU), 3)
cholesky = constant(lambda x: mx.linalg.cholesky(x, stream=CPU), 1)
tri_inv = constant(lambda x: mx.linalg.tri_inv(x, stream=CPU), 1)


def svd(a: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """(u, s, v) of ``a``, accurate for badly scaled columns (not rows).

    LAPACK is column-major and MLX row-major: passing the transpose makes the columns of ``a`` those that LAPACK sees.
    """
    v, s, ut = _svd_of_transpose(a.mT)
    return ut.mT, s, v


def thin_svd(a: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Singular values and vectors (u, s, v) of a tall float64 ``a`` (..., m, n) of norm about 1, at the cost of m n^2.

    A V0, with the eigenvectors V0 of the Gram matrix, has columns that are nearly orthogonal. Their Gram matrix, scaled
    to a unit diagonal, is so well conditioned that its Cholesky factor is as good as a QR (Drmac and Veselic 2008, doi
    10.1137/050639193); the SVD of what is left is n x n. A second round makes up for what the first Gram matrix could
    not resolve below 1e-8. Not a QR: MLX has no vmap for it. MLX's own SVD forms an m x m matrix.
    """
    n = a.shape[-1]
    if a.shape[-2] < 4 * n:
        u, s, v = svd(a)
        return u[..., :n], s, v
    _, v = eigh(cross(a, a))
    v = v[..., ::-1]
    for shift in (1e-10, 0.0):
        b = a @ v
        gram = b.mT @ b
        norms = mx.sqrt(mx.diagonal(gram, axis1=-2, axis2=-1))
        unit = 1 / mx.where(norms > 0, norms, mx.ones_like(norms))
        # Columns of rounding noise may be parallel. They come last, so that a shift there reaches no other column.
        noise = norms <= n * dtypes.eps(mx.float64) * mx.max(norms, axis=-1, keepdims=True)
        ridge = mx.eye(n, dtype=mx.float64) * mx.where(noise, 1e-3, shift)[..., None, :]
        lower = mx.tril(cholesky(gram * unit[..., None, :] * unit[..., :, None] + ridge))
        u, s, w = svd(lower.mT * norms[..., None, :])
        v = v @ w
    return b @ (unit[..., :, None] * (tri_inv(lower).mT @ u)), s, v
