"""One factorization of a readout problem, and all that is read off it: solution, residuals, leverages, covariance.

Notation: A the centred rows (m x n), D = diag(w), K = A^T D A, R = (K + L)^-1, or K^+ truncated where there is no
penalty; Y = A R, and the leverage h_i = a_i R a_i^T = <y_i, a_i>. Residuals and leverages are summed in float64, since
what follows divides by 1 - h_i.
"""

from functools import cached_property

import mlx.core as mx

from .._factor import RightFactor, inverse_of_ridge, right_factor, solution, solve_value
from .._mlx import ROWS_PER_BLOCK, astype, dtypes, large, on_cpu, same_batch
from .._rules import (
    Kind,
    attach_residual,
    attach_residuals_and_leverages,
    inverse_of,
    inverse_root,
    product,
    solution_of,
)
from ._problem import ReadoutProblem


class FactoredProblem:
    """One factorization of a :class:`ReadoutProblem` in its n x n form, and what is computed from it, on demand.

    Attributes:
        noise: Rounding error to expect in a leverage, ``(...)``. Constant for differentiation.
        rank: The rank of K + L, ``(...)``. Constant for differentiation.
    """

    def __init__(self, p: ReadoutProblem):
        """Of ``p``, whose targets have one penalty in common."""
        k = p.b.shape[-1]
        with large(p.a.dtype):
            b = p.b if p.means is None else mx.concatenate([p.b, mx.ones_like(p.b[..., :1])], axis=-1)
        kind, f, x = _minimum_norm(p, b) if p.l2 is None else _penalized(p, b, p.l2)
        with on_cpu():
            l2 = mx.zeros((1, 1), mx.float64) if p.l2 is None else p.l2
            self._inverse_root, self._kept = inverse_root(kind, f, l2, p.a.shape)
            # K is scaled to a diagonal of about 1, so the inverse of that shows the condition number.
            squares = (self._inverse_root * self._inverse_root) @ self._kept
            cond = mx.max(squares, axis=(-2, -1)) / (f.r * f.r)[..., 0, 0]
            self.noise = mx.stop_gradient(8 * dtypes.eps(mx.float64) * mx.maximum(cond, 1))
            self.rank = mx.sum(f.kept, axis=-1)
            self._x = mx.stop_gradient(x)  # with x_1 as a last column, see below
            state = kind, p.a, p.b, p.w, l2, f, self._x[..., :k]
            self._problem: ReadoutProblem = p
            self._state: tuple[Kind, mx.array, mx.array, mx.array | None, mx.array, RightFactor, mx.array] = state

    @cached_property
    def solution(self):
        """``(..., n, k)``, float64."""
        return solution_of(*self._state)

    @cached_property
    def gram_inverse(self):
        """R, ``(..., n, n)``, float64."""
        kind, a, _, w, l2, f, _ = self._state
        return inverse_of(kind, a, w, l2, f)

    @property
    def rows_times_inverse(self):
        """Y, ``(..., m, n)`` in the dtype of the problem."""
        return product(self._problem.a, self.gram_inverse, self._state[5].r)

    @property
    def residual(self):
        """Unweighted, ``(..., m, k)``, float64."""
        p = self._problem
        with on_cpu():
            q = mx.concatenate([b - a @ self._state[-1] for a, b in _blocks(p)], axis=-2)
            q = q if p.means is None else q - _mean(p, q)
        return attach_residual(p.a, p.b, self.solution, q)

    @cached_property
    def residuals_and_leverages(self):
        """Residuals and, as a last column, leverages without the part of the intercept, ``(..., m, k + 1)``, float64.

        The gradient of both costs little more than that of one.
        """
        with on_cpu():
            u, value = _rows(self._problem, self._inverse_root, self._kept, self._x)
        return attach_residuals_and_leverages(*self._state, self._inverse_root, u, value)


def _minimum_norm(p: ReadoutProblem, b: mx.array) -> tuple[Kind, RightFactor, mx.array]:
    """The kind of R, its factor, and the solution for ``b`` in float64."""
    f, left = right_factor(p.a, p.w, entries=p.entry_dtype)
    return "truncated", f, solve_value(p.a, b, p.w, f, left)


def _penalized(p: ReadoutProblem, b: mx.array, l2: mx.array) -> tuple[Kind, RightFactor, mx.array]:
    """The same with a penalty."""
    route = "feature" if l2.shape[-2] > 1 or p.entry_dtype != mx.float64 else "shared"
    constants, known = inverse_of_ridge(p.a, p.w, l2, route, p.entry_dtype, b)
    x, f = solution(constants, p.a, b, p.w, l2, known), constants.f
    if constants.route == "feature":  # The factor, which has an axis for targets, is of K + L.
        with on_cpu():
            f = RightFactor(f.v[..., 0, :, :], f.s[..., 0, :], f.kept[..., 0, :], f.r[..., 0, :, :])
    return "feature" if constants.route == "feature" else "shared", f, x


# --- Values ---------------------------------------------------------------------------------------
# Rounding leaves means c of A and d of b, which residuals and leverages feel at first order. With the weighted means
# <.> over the rows, and x_1 = R A^T D 1 = sum(w) R c,
#     (b_i - d) - (a_i - c) x = q_i - <q>,  q = b - A x,
#     (a_i - c) R (a_i - c)^T = |u_i|^2 - 2 t_i + <t>,  t = A R c.


def _rows(p: ReadoutProblem, inverse_root, kept, x):
    """U in the dtype of A; residuals and leverages ``(..., m, k + 1)``, summed in float64."""
    k, rows, parts = p.b.shape[-1], [], []
    for a, b in _blocks(p):
        u, ax = a @ inverse_root, a @ x
        rows.append(u.astype(p.a.dtype))
        parts.append((b - ax[..., :k], (u * u) @ kept, ax[..., k:]))
    q, squares, t = (mx.concatenate(list(part), axis=-2) for part in zip(*parts, strict=True))
    if p.means is not None:
        t = t / _total(p)
        q, squares = q - _mean(p, q), squares - 2 * t + _mean(p, t)
    value = mx.concatenate(same_batch(q, squares), axis=-1)
    return mx.stop_gradient(mx.concatenate(rows, axis=-2)), value


def _blocks(p: ReadoutProblem):
    """Rows of A and b in float64, a block after the other."""
    for i in range(0, p.a.shape[-2], ROWS_PER_BLOCK):
        a, b = (v[..., i : i + ROWS_PER_BLOCK, :].astype(mx.float64) for v in (p.a, p.b))
        yield a, b


def _total(p: ReadoutProblem):
    total = p.total_weight[..., None, None]
    return mx.where(total == 0, mx.ones_like(total), total)


def _mean(p: ReadoutProblem, x):
    x = x if p.w is None else astype(p.w, mx.float64)[..., None] * x
    return mx.sum(x, axis=-2, keepdims=True) / _total(p)
