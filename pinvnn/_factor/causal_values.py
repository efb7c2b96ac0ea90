"""Values of the causal solve: M_t^-1 q_t for every position, M_t = sum_{i<=t} D_ti k_i k_i^T + diag(l2).

Between two positions M_t changes by a matrix of full rank (the keys fade, the penalty does not), so that no update of
an inverse is exact: every M_t is factored by itself. The first position of every chunk comes first, then the second of
every chunk, and so on, so that as many matrices are held as there are chunks, and not as there are positions.
"""

import mlx.core as mx

from .._mlx import dtypes
from .._mlx.place import on_cpu
from .lapack import cholesky, tri_inv


def causal_values(k: mx.array, g: mx.array, l2: mx.array, q: mx.array, before: mx.array) -> mx.array:
    """M_t^-1 q_t, float64; NaN where M_t is singular to working precision.

    Args:
        k: ``(..., N, C, n)``: N chunks of C positions.
        g: ``(..., N, C)``.
        l2: ``(..., 1, 1 or n)``.
        q: ``(..., N, C, n)``.
        before: sum_i D_ti k_i k_i^T before each chunk, ``(..., N, n, n)``.

    Returns:
        ``(..., N, C, n)``.
    """
    with on_cpu():
        n, length = k.shape[-1], k.shape[-2]
        penalty = mx.eye(n, dtype=mx.float64) * l2[..., None]
        gram, out = before, []
        for j in range(length):
            row, fade = k[..., j : j + 1, :], g[..., j : j + 1, None]
            if out:  # MLX would otherwise form the matrices of many positions before it factors the first.
                done = out[-1][..., :1]
                fade = mx.where(done == done, fade, fade)
            gram = fade * gram + row.mT * row
            out.append(definite_solve(gram + penalty, q[..., j : j + 1, :].mT).mT)
        return mx.concatenate(out, axis=-2)


def definite_solve(a: mx.array, b: mx.array) -> mx.array:
    """``a^-1 b`` for positive definite float64 ``a``; NaN where it is not, to working precision."""
    n = a.shape[-1]
    lower = mx.tril(cholesky(a))
    # LAPACK stops at a pivot that is not positive, without an error from MLX. Pivots of rounding noise are none either.
    pivots = mx.diagonal(lower, axis1=-2, axis2=-1)
    diagonal = mx.diagonal(a, axis1=-2, axis2=-1)
    good = mx.logical_and(pivots > 0, pivots * pivots > 4 * n * dtypes.eps(mx.float64) * diagonal)
    sound = mx.all(good, axis=-1, keepdims=True)[..., None]
    inverse = tri_inv(mx.where(sound, lower, mx.eye(n, dtype=mx.float64)))  # a pivot of 0 would raise
    x = inverse.mT @ (inverse @ b)
    return mx.where(sound, x, mx.array(float("nan"), mx.float64))
