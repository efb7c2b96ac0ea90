"""Residuals and what a row leaves of its own weight, from singular vectors: right also where both are tiny.

With D^(1/2) A = U S V^T over the kept singular values, q = D^(1/2) b, and c_j = l / (s_j^2 + l) for a penalty l that is
the same for all features (0 for none), the weighted residual and the rest of row i are sums of two parts,

    D^(1/2) r = (q - U U^T q) + U (c o U^T q),
    rest_i    = (1 - w_i / sum(w) - |u_i|^2) + sum_j c_j u_ij^2:

what lies outside of the columns of A (and of the intercept), and what the penalty takes from within. The first is a
difference, with an error of eps. If the columns and the intercept span all rows of positive weight it is exactly zero,
as known by counting, and nothing is subtracted: leave-one-out is the ratio of the second parts for any l.

An error of A of eps |A| turns U by eps cond(A), which the rest of a row that alone carries a direction feels at second
order. (A product A W in place of U would have that error at first order.)
"""

from typing import NamedTuple

import mlx.core as mx

from .._factor import RightFactor
from .._mlx import dtypes, on_cpu, same_batch
from ._problem import ReadoutProblem

# Below this multiple of its rounding error, a rest has too few digits for entries of the dtype.
TRUSTED = {mx.float32: 1e6, mx.float64: 1e9}


class RowValues(NamedTuple):
    """Constants, float64 apart from ``u``.

    Attributes:
        u: U = A W in the dtype of A, ``(..., m, n)``.
        residual: Unweighted, ``(..., m, k)``.
        leverage: Without the intercept's part, ``(..., m, 1)``.
        rest: 1 - w_i (h_i + 1 / sum(w)), ``(..., m)``.
        noise: Rounding error to expect in ``rest``, ``(...)``.
        kept: Mask of the singular values that count, ``(..., n)``; unused without singular vectors.
    """

    u: mx.array
    residual: mx.array
    leverage: mx.array
    rest: mx.array
    noise: mx.array
    kept: mx.array

    @property
    def both(self) -> mx.array:
        """Residuals and leverages, ``(..., m, k + 1)``."""
        with on_cpu():
            return mx.concatenate(same_batch(self.residual, self.leverage), axis=-1)


def digits_suffice(values: RowValues, entries: mx.Dtype, least: float = 0.0) -> bool:
    """Whether every rest is far above its rounding error, and above ``least``. Evaluates."""
    with on_cpu():
        limit = mx.maximum(TRUSTED[entries] * values.noise[..., None], least)
        return not mx.any(values.rest <= limit).item()  # NaN is no lack of digits


def row_values(
    p: ReadoutProblem,
    left: mx.array,
    f: RightFactor,
    l2: mx.array | None,
    plain: RowValues | None,
    by_gram: bool = False,
) -> RowValues:
    """The residuals and rests of ``p``.

    Args:
        p: The problem, in float64.
        left: Left singular vectors ``(..., m, n or m)`` of D^(1/2) A.
        f: The right factor.
        l2: The penalty ``(..., 1, 1)`` in float64; None if there is none.
        plain: What was computed from A W: its residuals are taken for rows that leave most of their weight. Or None.
        by_gram: Whether the vectors are those of a Gram matrix, which are turned by eps cond(A)^2.
    """
    m = p.a.shape[-2]
    u, s, kept = left, f.s, f.kept
    if l2 is not None:  # K + L is definite: what counts is whether s is distinct from 0.
        kept = (s > f.s.shape[-1] * dtypes.eps(mx.float64) * s[..., :1]).astype(mx.float64)
    kept = mx.where(mx.isnan(s), s, kept)
    w = mx.ones((m,), mx.float64) if p.w is None else p.w.astype(mx.float64)
    root = mx.sqrt(mx.maximum(w, 0))[..., None]
    weight = mx.sum(w, axis=-1, keepdims=True)
    weight = mx.where(weight == 0, 1, weight)
    u = u * kept[..., None, :]
    if p.means is not None:  # Rounding turns the vectors of small singular values towards the intercept.
        u = u - root * ((root.mT @ u) / weight[..., None])
        norms = mx.sqrt(mx.sum(u * u, axis=-2, keepdims=True))
        u = u / mx.where(norms > 0, norms, 1)
    penalty = mx.zeros((1,), mx.float64) if l2 is None else l2[..., 0] * (f.r * f.r)[..., 0]
    total = s * s + penalty
    c = kept * penalty / mx.where(total == 0, mx.ones_like(total), total)
    share = 0.0 if p.means is None else w / weight
    squares = u * u
    outside = mx.maximum(1 - share - mx.sum(squares, axis=-1), 0)
    rows = mx.sum(w > 0, axis=-1)
    spanned = (rows <= mx.sum(kept, axis=-1) + (p.means is not None))[..., None]
    rest = mx.where(spanned, 0, outside) + (squares @ c[..., None])[..., 0]
    rest = mx.where(mx.isnan(outside), outside, rest)
    rest = mx.where(w > 0, rest, 1 - 0 * w)  # what has no weight leaves nothing behind
    q = root * p.b
    beta = u.mT @ q
    within = u @ (c[..., None] * beta)
    residual = mx.where(spanned[..., None], 0, q - u @ beta) + within
    residual = residual / mx.where(root > 0, root, 1)
    if plain is not None:
        few = mx.logical_and(rest < 0.5, w > 0)[..., None]
        residual = mx.where(few, residual, plain.residual)
    smallest = mx.min(mx.where(kept > 0, s, s[..., :1]), axis=-1)
    cond = mx.sqrt((s[..., 0] ** 2 + penalty[..., 0]) / (smallest**2 + penalty[..., 0]))
    eps = dtypes.eps(mx.float64)
    noise = 8 * eps * cond * cond if by_gram else 16 * eps + (8 * eps * cond) ** 2
    none = mx.zeros((1, 1), mx.float64)
    u, leverage = (none, none) if plain is None else (plain.u, plain.leverage)
    values = u, residual, leverage, rest, noise, kept
    return RowValues(*(mx.stop_gradient(value) for value in values))
