r"""The projected residual and its Jacobian.

Notation: Phi is the basis (m x n), W = diag(weights), L = diag(l2), y one right-hand side, D_j = d Phi / d alpha_j, and

    A = [W^1/2 Phi; L^1/2],   b = [W^1/2 y; 0],   dA_j = [W^1/2 D_j; 0],   c = A^+ b,   r = b - A c = (I - A A^+) b.

With ||r||^2 = min_c sum w (y - Phi c)^2 + sum l2 c^2 the linear parameters c are gone, and at constant rank
(Golub and Pereyra 1973, Eq. 5.4, doi 10.1137/0710036)

    dr_j = -(I - A A^+) dA_j c - (A^+)^T dA_j^T r,           J_j^T r = -(dA_j c)^T r.

Kaufman (1975, doi 10.1007/BF01932995) drops the second term: it lies in the range of A, so J^T r stays the same, and it
is zero where r is. With A = Q Z^-1 in the thin form (Q orthonormal, A^+ = Z Q^T) no m x m matrix is formed: I - A A^+ =
I - Q Q^T, (A^+)^T = Q Z^T. Linear parameters that rest on a bound take part in c, but not in Q and Z.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .._factor import bounded_free_set, cutoff, keep

TINY = {mx.float32: float(np.finfo(np.float32).tiny), mx.float64: float(np.finfo(float).tiny)}
"""Smallest normal numbers."""


@dataclass(frozen=True)
class RangeFactor:
    """A^+ = Z Q^T for the right-hand sides that share a penalty and the linear parameters on bounds.

    Attributes:
        q: orthonormal basis of the range of the free columns of A, (M, r).
        z: (n, r), with zeros for the linear parameters on bounds.
        columns: indices of the right-hand sides.
        free: mask (n,) of the linear parameters that are not on a bound.
        null: combinations of the free columns that vanish, (n, free.sum() - r), in units in which each column of A has
            length 1.
    """

    q: np.ndarray
    z: np.ndarray
    columns: np.ndarray
    free: np.ndarray
    null: np.ndarray


@dataclass(frozen=True)
class Projection:
    """The linear parameters eliminated.

    Attributes:
        linear: c, (n, k).
        residual: r, (M, k), M = m, or m + n with a penalty.
        factors: the factors of A that serve the right-hand sides, each of them once.
        rank: rank of A, the lowest over the right-hand sides; bounds do not matter to it.
        lengths: lengths of the columns of A, (n, k).
    """

    linear: np.ndarray
    residual: np.ndarray
    factors: list[RangeFactor]
    rank: int
    lengths: np.ndarray

    @property
    def deficiency(self) -> int:
        """How many more free columns than their rank there are, the most over the right-hand sides."""
        return max(f.null.shape[1] for f in self.factors)

    @property
    def cancellation(self) -> float:
        """The size of the terms A_j c_j that make up A c: rounding of A changes r by eps times this."""
        return float(np.linalg.norm(np.sum(self.lengths * np.abs(self.linear), axis=0)))


def column_lengths(a: np.ndarray) -> np.ndarray:
    """Euclidean lengths along the first axis; squares neither overflow nor underflow."""
    peak = np.max(np.abs(a), axis=0, initial=0.0)
    return peak * np.linalg.norm(a / np.where(peak > 0, peak, 1.0), axis=0)


def range_factor(
    a: np.ndarray, lengths: np.ndarray, dtype: mx.Dtype, columns: np.ndarray, free: np.ndarray
) -> RangeFactor:
    """Orthonormal basis of the range of the ``free`` columns of ``a`` (M, n), of ``lengths`` (n,), by QR.

    The unit of a column belongs to its coefficient and says nothing of its weight: the columns are brought to one
    length before singular values are dropped as :func:`pinvnn.lstsq` drops them. Where columns are dependent, A^+ b is
    the solution that is shortest in these units. At full rank Z = R^-1, the most accurate form.
    """
    n = len(free)
    # A column whose largest entry is no normal number of the dtype has lost its digits.
    lengths = np.where(lengths > TINY[dtype], lengths, 0.0)
    unit = np.where(lengths > 0, lengths, 1.0)
    peak = np.exp2(np.ceil(np.log2(unit)))  # Exact to divide by; only what is left of the length is rounded.
    scaled = np.where(lengths > 0, a / peak, 0.0)[:, free] / (unit / peak)[free]
    q, r = np.linalg.qr(scaled)
    u, s, vt = np.linalg.svd(r)
    kept = keep(s, cutoff(s[:1].sum(), scaled.shape, dtype)) if s.size else np.zeros(0, bool)
    count = int(kept.sum())
    if count == free.sum():
        z = np.linalg.solve(r, np.eye(count))
    else:
        q, z = q @ u[:, :count], vt[:count].T / s[:count]
    wide, null = np.zeros((n, count)), np.zeros((n, vt.shape[0] - count))
    wide[free] = z / unit[free, None]
    null[free] = vt[count:].T
    return RangeFactor(q, wide, columns, free, null)


def solve(f: RangeFactor, a: np.ndarray, b: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The free linear parameters beside those ``fixed`` (n, k), zero where free: c (n, k) and b - A c (M, k)."""
    c = fixed.copy()
    r = b - a @ fixed if fixed.any() else b
    for _ in range(2):  # Twice is enough: the second pass removes what rounding left of the range of A.
        t = f.q.T @ r
        r, c = r - f.q @ t, c + f.z @ t
    return c, r


def project(
    phi: np.ndarray,
    b: np.ndarray,
    penalty: np.ndarray | None,
    dtype: mx.Dtype,
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
) -> Projection:
    """Eliminate the linear parameters.

    Args:
        phi: weighted basis W^1/2 Phi, (m, n).
        b: weighted right-hand sides W^1/2 y, (m, k).
        penalty: square root of l2, (n, k), or None.
        dtype: dtype that ``phi`` was computed in, which decides the rank.
        bounds: lower and upper bounds of c, (n, k) each, or None.
    """
    n, k = phi.shape[1], b.shape[1]
    group = np.zeros(k, int)
    matrices = [phi]
    if penalty is not None:
        # Right-hand sides with the same penalty share a factor.
        different, group = np.unique(penalty.T, axis=0, return_inverse=True)
        group = group.ravel()
        matrices = [np.vstack([phi, np.diag(root)]) for root in different]
        b = np.vstack([b, np.zeros((n, k))])
    linear, residual, sizes = np.zeros((n, k)), np.zeros_like(b), np.zeros((n, k))
    factors: list[RangeFactor] = []
    rank = n
    for g, a in enumerate(matrices):
        columns = np.flatnonzero(group == g)
        lengths = column_lengths(a)
        sizes[:, columns] = lengths[:, None]
        whole = range_factor(a, lengths, dtype, columns, np.ones(n, bool))
        rank = min(rank, whole.q.shape[1])
        parts = [(whole, np.zeros((n, columns.size)))]
        if bounds is not None:
            parts = within_bounds(whole, a, lengths, b, dtype, *bounds)
        for f, fixed in parts:
            factors.append(f)
            linear[:, f.columns], residual[:, f.columns] = solve(f, a, b[:, f.columns], fixed)
    if bounds is not None:
        linear = np.clip(linear, *bounds)  # For rounding alone.
    return Projection(linear, residual, factors, rank, sizes)


def within_bounds(
    whole: RangeFactor,
    a: np.ndarray,
    lengths: np.ndarray,
    b: np.ndarray,
    dtype: mx.Dtype,
    lower: np.ndarray,
    upper: np.ndarray,
) -> list[tuple[RangeFactor, np.ndarray]]:
    """The factors of the free columns and the parameters on bounds, for the right-hand sides that ``whole`` serves."""
    unit = np.where(lengths > 0, lengths, 1.0)
    scaled = whole.q.T @ (a / unit)
    groups: dict[bytes, tuple[np.ndarray, list[int], list[np.ndarray]]] = {}
    for t in whole.columns:
        ends = lower[:, t] * unit, upper[:, t] * unit
        free, c = bounded_free_set(scaled, whole.q.T @ b[:, t], *ends)
        at_rest = np.where(free, 0.0, np.where(c >= ends[1], upper[:, t], lower[:, t]))
        _, members, values = groups.setdefault(free.tobytes(), (free, [], []))
        members.append(t)
        values.append(at_rest)
    result = []
    for free, members, values in groups.values():
        columns = np.array(members)
        all_free = free.all()
        f = replace(whole, columns=columns) if all_free else range_factor(a, lengths, dtype, columns, free)
        result.append((f, np.stack(values, axis=1)))
    return result


class Derivatives(NamedTuple):
    """First derivatives of a projection.

    Attributes:
        jacobian: d r / d alpha, (M k, p): Golub and Pereyra's, or Kaufman's.
        kaufman: -(I - A A^+) dA_j c, (M k, p), from which the covariance follows.
        sensitivity: -A^+ dA_j c, (n k, p): how the linear parameters of the full problem answer to alpha.
        rounding: lengths of the rounding errors of the columns of ``kaufman`` for a relative rounding error of 1 in the
            basis and its derivatives, (p,).
        rate: the largest relative change of a column of A for a unit change of alpha_j, (p,).
    """

    jacobian: np.ndarray
    kaufman: np.ndarray
    sensitivity: np.ndarray
    rounding: np.ndarray
    rate: np.ndarray


def differentiate(projection: Projection, tangents: Iterable[np.ndarray], p: int, full: bool) -> Derivatives:
    """Derivatives of a projection from the p weighted derivatives D_j (m, n); Golub-Pereyra's Jacobian if ``full``."""
    c, r, lengths = projection.linear, projection.residual, projection.lengths
    kaufman, sensitivity = np.zeros((*r.shape, p)), np.zeros((*c.shape, p))
    second = np.zeros((*r.shape, p)) if full else None
    rounding, rate = np.zeros(p), np.zeros(p)
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
        sizes = column_lengths(d)
        terms = sizes @ np.abs(c) + np.sum(lengths * np.abs(sensitivity[..., j]), axis=0)
        rounding[j] = np.linalg.norm(terms)
        largest = lengths.max(axis=1)
        rate[j] = np.max(sizes[largest > 0] / largest[largest > 0], initial=0.0)
    jacobian = kaufman if second is None else kaufman + second
    flat = [part.reshape(-1, p) for part in (jacobian, kaufman, sensitivity)]
    return Derivatives(flat[0], flat[1], flat[2], rounding, rate)
