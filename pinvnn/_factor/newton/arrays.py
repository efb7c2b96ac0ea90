"""What the algorithms need of an array library, for NumPy and for MLX graphs alike: float64, on the CPU."""

import math
from typing import Any

import mlx.core as mx

from ..lapack import cholesky, eigh, thin_svd, tri_inv
from ..right_factor import power_of_two


class NumPy:
    """Visible values: as many steps as it takes."""

    adaptive = True

    def __init__(self):
        import numpy as np  # here, since it takes longer to import than all of MLX

        self.np = np

    def __getattr__(self, name):
        return getattr(self.np, name)

    @staticmethod
    def thin(a, u):
        """``a @ u`` for ``u`` of few columns. Each is contiguous in the result, which makes sums over them fast."""
        return (u.swapaxes(-1, -2) @ a.swapaxes(-1, -2)).swapaxes(-1, -2)

    def sizes(self, a, w):
        """Weighted sums of squares of the columns, ``(..., N)``."""
        return self.np.einsum("...i,...ij,...ij->...j", w, a, a)

    def cholesky(self, k):
        """Lower Cholesky factor; NaN where there is none."""
        try:
            return self.np.linalg.cholesky(k)
        except self.np.linalg.LinAlgError:
            return self.np.full_like(k, math.nan) if k.ndim == 2 else self.np.stack([self.cholesky(one) for one in k])

    def solve(self, k, b):
        """``k^-1 b`` of positive definite ``k``; NaN where it is singular."""
        try:
            return self.np.linalg.solve(k, b)
        except self.np.linalg.LinAlgError:
            if k.ndim == 2:
                return self.np.full_like(b, math.nan)
            return self.np.stack([self.solve(*one) for one in zip(k, b, strict=True)])

    def eigenpairs(self, k):
        """Eigenvalues and eigenvectors of symmetric ``k``; NaN where it is not finite."""
        finite = self.np.isfinite(k).all(axis=(-2, -1), keepdims=True)
        values, vectors = self.np.linalg.eigh(self.np.where(finite, k, 0.0))
        return self.np.where(finite[..., 0], values, math.nan), vectors

    def left_factor(self, a):
        """Orthonormal columns Q and a square R with ``a`` = Q R, for tall finite ``a``."""
        q, s, vt = self.np.linalg.svd(a, full_matrices=False)
        return q, s[..., :, None] * vt


class Graph:
    """MLX arrays in a graph, on the CPU stream of the caller."""

    adaptive = False

    def __getattr__(self, name):
        return getattr(mx, name)

    @staticmethod
    def exp(x):
        """MLX's own float64 exp is right to 1e-7 only; its power is right to rounding."""
        return mx.power(mx.array(math.e, mx.float64), x)

    @staticmethod
    def argmax(x, axis, keepdims=False):
        """Constant, since MLX's jvp refuses indices that are traced."""
        return mx.argmax(mx.stop_gradient(x), axis=axis, keepdims=keepdims)

    @staticmethod
    def thin(a, u):
        """``a @ u``."""
        return a @ u

    @staticmethod
    def sizes(a, w):
        """Weighted sums of squares of the columns, ``(..., N)``."""
        return mx.sum(w[..., None] * a * a, axis=-2)

    @staticmethod
    def cholesky(k):
        """Lower Cholesky factor; garbage where there is none."""
        return mx.tril(cholesky(k))

    @staticmethod
    def solve(k, b):
        """``k^-1 b`` of positive definite ``k``."""
        inverse = tri_inv(Graph.cholesky(k))
        return inverse.mT @ (inverse @ b)

    @staticmethod
    def eigenpairs(k):
        """Eigenvalues and eigenvectors of symmetric ``k``; NaN where it is not finite."""
        finite = mx.isfinite(mx.sum(mx.abs(k), axis=(-2, -1), keepdims=True))
        # The product with 1, since mx.compile fails if stopped copies of one element-wise result are in use.
        values, vectors = eigh(mx.where(finite, k, mx.zeros_like(k)) @ mx.eye(k.shape[-1], dtype=mx.float64))
        return mx.where(finite[..., 0], values, mx.array(math.nan, mx.float64)), vectors

    @staticmethod
    def left_factor(a):
        """Orthonormal columns Q and a square R with ``a`` = Q R, for tall finite ``a``."""
        r = power_of_two(mx.max(mx.abs(a), axis=(-2, -1), keepdims=True), mx.float64)
        q, s, v = thin_svd(a * r)
        return q, s[..., :, None] * v.mT / r


def transposed(x: Any) -> Any:
    """The last two axes exchanged."""
    return x.swapaxes(-1, -2)
