"""One factorization of a readout problem, and all that is read off it: solution, residuals, leverages, covariance.

Notation: A the centred rows (m x n), D = diag(w), K = A^T D A, R = (K + L)^-1, or K^+ truncated where there is no
penalty; Y = A R, and the leverage h_i = a_i R a_i^T = <y_i, a_i>. Residuals and leverages are summed in float64, since
what follows divides by 1 - h_i.
"""

from typing import NamedTuple

import mlx.core as mx

from .. import _dtypes
from .._attach import attach_like
from .._factor import BLOCK, Factor, factor, solve_value
from .._place import astype, large, on_cpu
from .._products import product
from .._ridge import _inverse
from .._ridge_values import Inverse, solution
from ._problem import Problem
from ._row_rules import attach_rows, inverse_of, root, solution_of


class Fit(NamedTuple):
    """Read off one factorization of a :class:`Problem` in its n x n form; what is not used is not computed.

    Attributes:
        solution: ``(..., n, k)`` in the dtype of the problem.
        residual: Unweighted, ``(..., m, k)``, float64.
        judged: Residuals and, as a last column, leverages without the part of the intercept, ``(..., m, k + 1)``,
            float64. The gradient of both costs little more than that of one.
        rows: Y, ``(..., m, n)`` in the dtype of the problem.
        inverse: R, ``(..., n, n)``, float64.
        rank: Of K + L, ``(...)``. No gradient.
        noise: Rounding error to expect in a leverage, ``(...)``. No gradient.
    """

    solution: mx.array
    residual: mx.array
    judged: mx.array
    rows: mx.array
    inverse: mx.array
    rank: mx.array
    noise: mx.array


def fit(p: Problem) -> Fit:
    """Fit ``p``, whose targets have one penalty in common."""
    with large(p.a.dtype):
        w = mx.ones((1,), p.a.dtype) if p.w is None else p.w
        b = p.b if p.means is None else mx.concatenate([p.b, mx.ones_like(p.b[..., :1])], axis=-1)
    kind, f, x = _minimum_norm(p, b) if p.l2 is None else _penalized(p, b, p.l2)
    with on_cpu():
        x = mx.stop_gradient(x)
        x, of_ones = x[..., : p.b.shape[-1]], x[..., p.b.shape[-1] :]
        l2 = mx.zeros((1, 1), mx.float64) if p.l2 is None else p.l2
        half = mx.stop_gradient(root(kind, f, l2, p.a.shape))
        kept = f.kept[..., None, :] if kind == "truncated" else None
        # K is scaled to a diagonal of about 1, so the inverse of that shows the condition number.
        squares = half * half if kept is None else half * half * kept
        cond = mx.max(mx.sum(squares, axis=-1), axis=-1) / (f.r * f.r)[..., 0, 0]
        noise = 8 * _dtypes.eps(mx.float64) * mx.maximum(cond, 1)
        rank, rest = mx.sum(f.kept, axis=-1), _residuals(p, x)
        u, judged = _rows(p, half, kept, x, of_ones)
    solution, r = solution_of(kind, p.a, p.b, w, l2, f, x), inverse_of(kind, p.a, w, l2, f)
    return Fit(
        solution=solution,
        residual=_residual(p.a, p.b, solution, rest),
        judged=attach_rows(kind, p.a, p.b, w, l2, f, x, half, u, judged),
        rows=product(p.a, r, f.r),
        inverse=r,
        rank=rank,
        noise=noise,
    )


def _minimum_norm(p: Problem, b):
    """The kind of R, its factor, and the solution for ``b`` in float64."""
    f, left = factor(p.a, p.w, entries=p.entries)
    return "truncated", f, solve_value(p.a, b, p.w, f, left)


def _penalized(p: Problem, b, l2):
    kind = "feature" if l2.shape[-2] > 1 or p.entries != mx.float64 else "shared"
    constants, left = _inverse(p.a, p.w, l2, kind, p.entries)
    x, f = solution(constants, p.a, b, p.w, l2, left), constants.f
    if kind == "feature":  # The factor, which has an axis for targets, is of K + L.
        with on_cpu():
            f = Factor(f.v[..., 0, :, :], f.s[..., 0, :], f.kept[..., 0, :], f.r[..., 0, :, :])
    return kind, f, x


# --- Values ---------------------------------------------------------------------------------------
# Rounding leaves means c of A and d of b, which residuals and leverages feel at first order. With the weighted means
# <.> over the rows, and x_1 = R A^T D 1 / sum(w) = R c,
#     (b_i - d) - (a_i - c) x = q_i - <q>,  q = b - A x,       (a_i - c) R (a_i - c)^T = |u_i|^2 - 2 t_i + <t>,  t = A x_1.


def _rows(p: Problem, half, kept, x, of_ones):
    """U in the dtype of A; residuals and leverages ``(..., m, k + 1)``, summed in float64."""
    n, k, rows, parts = p.a.shape[-1], p.b.shape[-1], [], []
    for wide, b in _blocks(p, mx.concatenate(_alike(half, x, of_ones), axis=-1)):
        u, ax, t = wide[..., :n], wide[..., n : n + k], wide[..., n + k :]
        rows.append(u.astype(p.a.dtype))
        squares = mx.sum(u * u if kept is None else u * u * kept, axis=-1, keepdims=True)
        parts.append(mx.concatenate([b - ax, squares, t], axis=-1))
    parts = mx.concatenate(parts, axis=-2)
    if p.means is not None:
        q, squares, t = parts[..., :k], parts[..., k : k + 1], parts[..., k + 1 :] / _total(p)
        parts = mx.concatenate([q - _mean(p, q), squares - 2 * t + _mean(p, t)], axis=-1)
    return mx.stop_gradient(mx.concatenate(rows, axis=-2)), parts


def _residuals(p: Problem, x):
    """Residuals alone."""
    q = mx.concatenate([b - ax for ax, b in _blocks(p, x)], axis=-2)
    return q if p.means is None else q - _mean(p, q)


def _blocks(p: Problem, x):
    """A x and b in float64, a block of rows after the other."""
    for i in range(0, p.a.shape[-2], BLOCK):
        a, b = (v[..., i : i + BLOCK, :].astype(mx.float64) for v in (p.a, p.b))
        yield a @ x, b


def _alike(*arrays):
    """With the same batch dimensions."""
    batch = mx.broadcast_shapes(*(x.shape[:-2] for x in arrays))
    return [mx.broadcast_to(x, (*batch, *x.shape[-2:])) for x in arrays]


def _total(p: Problem):
    total = p.total[..., None, None]
    return mx.where(total == 0, mx.ones_like(total), total)


def _mean(p: Problem, x):
    x = x if p.w is None else astype(p.w, mx.float64)[..., None] * x
    return mx.sum(x, axis=-2, keepdims=True) / _total(p)


def _plain_residual(a, b, x):
    with large(a.dtype):
        return astype(b - a @ x, mx.float64)


_residual = attach_like(_plain_residual, 3, (2, 2, 2, 2))
