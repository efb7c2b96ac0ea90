"""Residuals and what a row leaves of its own weight, from singular vectors: right also where both are tiny.

With D^(1/2) A = U S V^T over the kept singular values, q = D^(1/2) b, and c_j = l / (s_j^2 + l) for a penalty l that is
the same for all features (0 for none), the weighted residual and the rest of row i are sums of two parts,

    D^(1/2) r = (q - U U^T q) + U (c o U^T q),
    rest_i    = (1 - w_i / sum(w) - |u_i|^2) + sum_j c_j u_ij^2:

what lies outside of the columns of A (and of the intercept), and what the penalty takes from within. The first is a
difference, for the few rows that leave little a sum over the others (:func:`_outside`). If the columns and the
intercept span all rows of positive weight it is exactly zero, as known by counting, and nothing is subtracted:
leave-one-out is the ratio of the second parts for any l.

An error of A of eps |A| turns U by eps cond(A), which the rest of a row that alone carries a direction feels at second
order. (A product A W in place of U would have that error at first order.)
"""

from typing import NamedTuple

import mlx.core as mx

from .._factor import RightFactor, default_rtol
from .._mlx import dtypes, in_float64, on_cpu, same_batch, visible
from .._rules import divisor
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
        doubt: Relative error to expect in leave-one-out of rows that leave little, ``(..., m)``, 0 for the others. Inf
            where other singular values would count for the rank without the row. None without singular vectors.
        kept: Mask of the singular values that count, ``(..., n)``; unused without singular vectors.
    """

    u: mx.array
    residual: mx.array
    leverage: mx.array
    rest: mx.array
    noise: mx.array
    doubt: mx.array | None
    kept: mx.array

    @property
    def both(self) -> mx.array:
        """Residuals and leverages, ``(..., m, k + 1)``."""
        with on_cpu():
            return mx.concatenate(same_batch(self.residual, self.leverage), axis=-1)


def digits_suffice(values: RowValues, entries: mx.Dtype, least: float = 0.0) -> bool | None:
    """Whether every rest is far above its rounding error, and above ``least``; NaN is not. None without values."""
    with on_cpu():
        suffice = mx.all(values.rest > mx.maximum(TRUSTED[entries] * values.noise[..., None], least))
        return bool(suffice.item()) if visible(suffice) else None


def without_intercept(p: ReadoutProblem, u: mx.array) -> tuple[mx.array, mx.array]:
    """Roots of the weights ``(..., m, 1)``, and left singular vectors ``u`` (..., m, n) orthogonal to the intercept.

    Rounding turns the vectors of small singular values towards it.
    """
    w = mx.ones((p.a.shape[-2],), mx.float64) if p.w is None else p.w.astype(mx.float64)
    root = mx.sqrt(mx.maximum(w, 0))[..., None]
    if p.means is None:
        return root, u
    weight = mx.sum(w, axis=-1)[..., None, None]
    u = u - root * ((root.mT @ u) / divisor(weight))
    norms = mx.sqrt(mx.sum(u * u, axis=-2, keepdims=True))
    return root, u / mx.where(norms > 0, norms, 1)


def _outside(
    u: mx.array, share: mx.array | None, q: mx.array, residual: mx.array, noise: mx.array
) -> tuple[mx.array, mx.array]:
    """What columns and intercept leave of each row's own ``(..., m)``, and of the targets ``(..., m, k)``.

    With P the projector on both, these are 1 - P_ii and q_i - (P q)_i: differences, of which little may be left. At
    most n + 1 rows can leave little. For these they are sums over the other rows,

        1 - P_ii = sum_j P_ij^2 / P_ii,    q_i - (P q)_i = (1 - P_ii) q_i - sum_j P_ij q_j,    j != i,

    which have digits as long as the small P_ij are above their rounding error, below which they count as zero.

    Args:
        u: Left singular vectors ``(..., m, n)``, those that count, zero otherwise.
        share: Square root of the intercept's part of P_ii, ``(..., m)``; None without an intercept.
        q: Weighted targets.
        residual: The difference for ``q``.
        noise: Rounding error of P_ij, ``(...)``.
    """
    m, n = u.shape[-2:]
    vectors = u if share is None else mx.concatenate(same_batch(u, share[..., None]), axis=-1)
    rest = mx.maximum(1 - mx.sum(vectors * vectors, axis=-1), 0)
    least = mx.argsort(rest, axis=-1)[..., : min(m, n + 1)]
    # By products with zeros and ones, whose batch dimensions broadcast.
    chosen = (least[..., None] == mx.arange(m)).astype(mx.float64)
    across = (chosen @ vectors) @ vectors.mT
    own = mx.sum(across * chosen, axis=-1, keepdims=True)
    across = mx.where(mx.logical_or(chosen > 0, mx.abs(across) <= noise[..., None, None]), 0, across)
    left = mx.sum(across * across, axis=-1, keepdims=True) / mx.where(own > 0, own, 1)
    few = own > 0.5
    fine = left * (chosen @ q) - across @ q
    back, few = chosen.mT, few.astype(mx.float64)
    known = back @ few
    rest = mx.where(known > 0, back @ (left * few), rest[..., None])[..., 0]
    return rest, mx.where(known > 0, back @ (fine * few), residual)


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
    m, n = p.a.shape[-2:]
    eps = dtypes.eps(mx.float64)
    u, s, kept = left, f.s, f.kept
    rtol = default_rtol(m, n, p.entry_dtype)
    if l2 is not None:  # K + L is definite: what counts is whether s is distinct from 0.
        rtol = s.shape[-1] * eps
        kept = (s > rtol * s[..., :1]).astype(mx.float64)
    kept = mx.where(mx.isnan(s), s, kept)
    w = mx.ones((m,), mx.float64) if p.w is None else p.w.astype(mx.float64)
    weight = divisor(mx.sum(w, axis=-1, keepdims=True))
    root, u = without_intercept(p, u * kept[..., None, :])
    penalty = mx.zeros((1,), mx.float64) if l2 is None else l2[..., 0] * (f.r * f.r)[..., 0]
    total = s * s + penalty
    c = kept * penalty / mx.where(total == 0, mx.ones_like(total), total)
    squares = u * u
    # Features without a penalty beside others have been factored apart.
    cond = mx.maximum(_spread(total, kept, penalty > 0), _spread(total, kept, penalty <= 0))
    noise = eps * (16 + cond)
    q = root * in_float64(p.b)
    of_intercept = None if p.means is None else root[..., 0] / mx.sqrt(weight)
    # Without what the fit explains, a target of a large row is no large one.
    unexplained = q if plain is None else mx.where(mx.isnan(plain.residual), q, root * plain.residual)
    outside, beyond = _outside(u, of_intercept, unexplained, unexplained - u @ (u.mT @ unexplained), noise)
    rows = mx.sum(w > 0, axis=-1)
    spanned = (rows <= mx.sum(kept, axis=-1) + (p.means is not None))[..., None]
    fine = mx.where(spanned, 0, outside), (squares @ c[..., None])[..., 0]
    doubt = _doubt(squares, s, kept, c, fine, spanned, noise)
    # Without the row that the largest singular value is of, the second one decides what counts: of those that may
    # differ from 0 at all, and that the penalty does not exceed by far.
    second = s[..., 1:2] if s.shape[-1] > 1 else mx.zeros_like(s[..., :1])
    possible = mx.arange(s.shape[-1]) < rows[..., None] - (p.means is not None)
    dropped = mx.where(mx.logical_and(possible, kept == 0), s, 0)
    counts = (rtol * s[..., :1]) ** 2 > 1e-6 * penalty
    hidden = mx.any(mx.logical_and(dropped > rtol * second, counts), axis=-1, keepdims=True)
    size = (squares @ (s * s)[..., None])[..., 0] + w / weight * (p.means is not None) * s[..., :1] ** 2
    hides = mx.logical_and(hidden, size > 0.75 * s[..., :1] ** 2)
    doubt = mx.where(hides, mx.array(float("inf"), mx.float64), doubt)
    rest = fine[0] + fine[1]
    rest = mx.where(mx.isnan(outside), outside, rest)
    rest = mx.where(w > 0, rest, 1 - 0 * w)  # what has no weight leaves nothing behind
    doubt = mx.where(w > 0, doubt, 0 * w)
    within = u @ (c[..., None] * (u.mT @ q))
    residual = mx.where(spanned[..., None], 0, beyond) + within
    residual = residual / mx.where(root > 0, root, 1)
    if plain is not None:
        few = mx.logical_and(rest < 0.5, w > 0)[..., None]
        residual = mx.where(few, residual, plain.residual)
    # By an SVD rests of any size have digits: what is noise was left out.
    lost = 8 * eps * cond * cond if by_gram else mx.zeros_like(cond)
    none = mx.zeros((1, 1), mx.float64)
    u, leverage = (none, none) if plain is None else (plain.u, plain.leverage)
    values = u, residual, leverage, rest, lost, doubt, kept
    return RowValues(*(mx.stop_gradient(value) for value in values))


def _spread(squares: mx.array, kept: mx.array, among: mx.array) -> mx.array:
    """Root of the ratio of the largest to the smallest of the ``squares`` (..., n) that are kept, ``(...)``; or 1."""
    counts = mx.logical_and(mx.logical_and(kept > 0, among), squares > 0)
    largest = mx.max(mx.where(counts, squares, 0), axis=-1)
    smallest = mx.min(mx.where(counts, squares, largest[..., None]), axis=-1)
    return mx.sqrt(mx.where(largest > 0, largest / mx.where(largest > 0, smallest, 1), 1))


# By how much rounding errors of singular vectors must grow in a row to be of interest.
_LARGE = 1e2


def _doubt(squares, s, kept, c, parts: tuple[mx.array, mx.array], spanned, noise: mx.array) -> mx.array:
    """``RowValues.doubt``.

    Args:
        squares: u_ij^2.
        s: Singular values.
        kept: Which count.
        c: What the penalty takes from each.
        parts: What is outside of the columns, and what the penalty takes from within, ``(..., m)``.
        spanned: Whether nothing can be outside, ``(..., 1)``.
        noise: Rounding error of u_ij, ``(...)``.
    """
    (outside, within), noise = parts, noise[..., None]
    rest, taken = outside + within, mx.sum(c, axis=-1, keepdims=True)
    # Both parts are sums of squares of numbers that are wrong by about `noise`.
    error = mx.where(spanned, 0, noise * (noise + 2 * mx.sqrt(outside)))
    error = error + noise * (noise * taken + 2 * mx.sqrt(taken * within))
    little = rest * _LARGE**2 < mx.where(spanned, 0, 1) + taken
    doubt = mx.where(little, error / mx.where(rest > 0, rest, 1), 0)
    # A row that alone carries a direction y = sum_j v_j u_ij / s_j leaves nothing, and is judged by y.
    safe = mx.where(kept > 0, s, 1)
    length = mx.sqrt(squares @ (kept / (safe * safe))[..., None])[..., 0]
    smallest = mx.min(mx.where(kept > 0, s, s[..., :1]), axis=-1, keepdims=True)
    growth = 1 / mx.where(length > 0, smallest * length, 1)
    return mx.where(rest > 0, doubt, mx.where(growth > _LARGE, noise * growth, 0))
