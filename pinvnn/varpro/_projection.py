r"""The projected residual and its Jacobian.

Notation: Phi is the basis (m x n), W = diag(weights), L = diag(l2), y one right-hand side, D_j = d Phi / d alpha_j, and

    A = [W^1/2 Phi; L^1/2],   b = [W^1/2 y; 0],   dA_j = [W^1/2 D_j; 0],   c = A^+ b,   r = b - A c = (I - A A^+) b.

With ||r||^2 = min_c sum w (y - Phi c)^2 + sum l2 c^2 the linear parameters c are gone, and at constant rank
(Golub and Pereyra 1973, Eq. 5.4, doi 10.1137/0710036)

    dr_j = -(I - A A^+) dA_j c - (A^+)^T dA_j^T r,           J_j^T r = -(dA_j c)^T r.

Kaufman (1975, doi 10.1007/BF01932995) drops the second term: it lies in the range of A, so J^T r stays the same, and it
is zero where r is. With A = Q Z^-1 in the thin form (Q orthonormal, A^+ = Z Q^T) no m x m matrix is formed: I - A A^+ =
I - Q Q^T, (A^+)^T = Q Z^T.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .._factor import cutoff, keep


@dataclass(frozen=True)
class RangeFactor:
    """A^+ = Z Q^T: ``q`` (M, r) orthonormal, ``z`` (n, r); ``columns`` are the right-hand sides that A serves."""

    q: np.ndarray
    z: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True)
class Projection:
    """The linear parameters eliminated: ``linear`` c (n, k), ``residual`` r (M, k), M = m, or m + n with a penalty."""

    linear: np.ndarray
    residual: np.ndarray
    factors: list[RangeFactor]

    @property
    def rank(self) -> int:
        """Rank of A, the lowest over the right-hand sides."""
        return min(factor.q.shape[1] for factor in self.factors)


def range_factor(a: np.ndarray, dtype: mx.Dtype, columns: np.ndarray) -> RangeFactor:
    """Orthonormal basis of the range of ``a`` (M, n), by QR; singular values are dropped as :func:`pinvnn.lstsq` drops
    them.

    At full rank Z = R^-1, whose error does not depend on the scaling of the columns, as that of V S^-1 does.
    """
    q, r = np.linalg.qr(a)
    u, s, vt = np.linalg.svd(r, full_matrices=False)
    kept = keep(s, cutoff(s[0], a.shape, dtype))
    if kept.all() and r.shape[0] == r.shape[1]:
        return RangeFactor(q, np.linalg.solve(r, np.eye(len(r))), columns)
    return RangeFactor(q @ u[:, kept], vt[kept].T / s[kept], columns)


def project(phi: np.ndarray, b: np.ndarray, penalty: np.ndarray | None, dtype: mx.Dtype) -> Projection:
    """Eliminate the linear parameters.

    Args:
        phi: weighted basis W^1/2 Phi, (m, n).
        b: weighted right-hand sides W^1/2 y, (m, k).
        penalty: square root of l2, (n, k), or None.
        dtype: dtype that ``phi`` was computed in, which decides the rank.
    """
    n, k = phi.shape[1], b.shape[1]
    if penalty is None:
        factors = [range_factor(phi, dtype, np.arange(k))]
    else:
        # Right-hand sides with the same penalty share a factor.
        different, group = np.unique(penalty.T, axis=0, return_inverse=True)
        factors = [
            range_factor(np.vstack([phi, np.diag(root)]), dtype, np.flatnonzero(group.ravel() == g))
            for g, root in enumerate(different)
        ]
        b = np.vstack([b, np.zeros((n, k))])
    linear, residual = np.zeros((n, k)), np.zeros_like(b)
    for f in factors:
        r = b[:, f.columns]
        c = np.zeros((n, f.columns.size))
        for _ in range(2):  # Twice is enough: the second pass removes what rounding left of the range of A.
            t = f.q.T @ r
            r, c = r - f.q @ t, c + f.z @ t
        linear[:, f.columns], residual[:, f.columns] = c, r
    return Projection(linear, residual, factors)


class Derivatives(NamedTuple):
    """First derivatives of a projection.

    Attributes:
        jacobian: d r / d alpha, (M k, p): Golub and Pereyra's, or Kaufman's.
        kaufman: -(I - A A^+) dA_j c, (M k, p), from which the covariance follows.
        sensitivity: -A^+ dA_j c, (n k, p): how the linear parameters of the full problem answer to alpha.
    """

    jacobian: np.ndarray
    kaufman: np.ndarray
    sensitivity: np.ndarray


def differentiate(projection: Projection, tangents: Iterable[np.ndarray], p: int, full: bool) -> Derivatives:
    """Derivatives of a projection from the p weighted derivatives D_j (m, n); Golub-Pereyra's Jacobian if ``full``."""
    c, r = projection.linear, projection.residual
    kaufman, sensitivity = np.zeros((*r.shape, p)), np.zeros((*c.shape, p))
    second = np.zeros((*r.shape, p)) if full else None
    for j, d in enumerate(tangents):
        m = len(d)
        for f in projection.factors:
            dc = d @ c[:, f.columns]
            along = f.q[:m].T @ dc
            kaufman[:, f.columns, j] = f.q @ along
            kaufman[:m, f.columns, j] -= dc
            sensitivity[:, f.columns, j] = -f.z @ along
            if second is not None:
                second[:, f.columns, j] = -f.q @ (f.z.T @ (d.T @ r[:m, f.columns]))
    jacobian = kaufman if second is None else kaufman + second
    return Derivatives(jacobian.reshape(-1, p), kaufman.reshape(-1, p), sensitivity.reshape(-1, p))
