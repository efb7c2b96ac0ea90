"""One factorization of a readout problem, and all that is computed from it: solution, residuals, leverages, covariance.

Notation: A the centred rows (m x n), D = diag(w), K = A^T D A, R = (K + L)^-1, or K^+ truncated where there is no
penalty; Y = A R, and the leverage h_i = a_i R a_i^T = <y_i, a_i>. Leave-one-out divides by what a row leaves of its own
weight, rest_i = 1 - w_i (h_i + 1 / sum(w)), which may be tiny. It is summed in float64 and, where rows are few, without
a subtraction, see ``_row_values.py``.
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import mlx.core as mx

from .._factor import (
    RidgeInverse,
    RightFactor,
    SolutionHints,
    full_rank,
    full_rank_solve_value,
    in_range,
    inverse_of_ridge,
    right_factor,
    solution,
    solve_value,
)
from .._mlx import Matrix, astype, by_row_blocks, dtypes, each, in_float64, on_cpu, same_batch, visible
from .._rules import (
    Kind,
    attach_residual,
    attach_residuals_and_leverages,
    attach_rest,
    divisor,
    free_degrees,
    inverse_of,
    inverse_root,
    kept_shrinkage,
    product,
    solution_of,
    with_value,
)
from ._problem import ReadoutProblem
from ._row_values import RowValues, digits_suffice, row_values, without_intercept

# Rows that leave less than this have too few digits in float32, in which their derivatives are computed; and without
# them, others might count for the rank.
LITTLE = 1e-3


class FactoredProblem:
    """One factorization of a :class:`ReadoutProblem` in its n x n form, and what is computed from it, on demand.

    Attributes:
        noise: Rounding error to expect in ``rest``, ``(...)``. Constant for differentiation.
        rank: The rank of K + L, ``(...)``. Constant for differentiation.
        by_vectors: Whether left singular vectors are known, which give small values of ``rest`` their digits.
        certified: Whether the values showed that the rank is full, so that no row alone carries a direction.
    """

    def __init__(self, p: ReadoutProblem, careful: bool = False) -> None:
        """Factor ``p``, whose targets have one penalty in common.

        Args:
            p: The problem.
            careful: Take singular vectors, of a problem in float64, which costs a few times as much. Otherwise they are
                taken only where rows are few and values cannot be evaluated: see :func:`factored`.
        """
        few = p.a.dtype == mx.float64 and p.a.shape[-2] <= 2 * p.a.shape[-1] and p.method == "auto"
        self.careful = careful or (few and not visible(p.a))
        kind, f, x, left, squares = self._minimum_norm(p) if p.l2 is None else self._penalized(p, p.l2)
        with on_cpu():
            # Diagonal of K, ``(..., n)``, by a V that has singular vectors where it was not formed.
            if squares is None:
                scaled = f.v * f.s[..., None, :] / f.r
                squares = mx.sum(scaled * scaled, axis=-1)
            self._squares: mx.array = squares
            l2 = mx.zeros((1, 1), mx.float64) if p.l2 is None else p.l2
            self._inverse_root, self._kept = inverse_root(kind, f, l2, p.a.shape)
            self.rank = mx.array(float(p.a.shape[-1]), mx.float64) if f.full else mx.sum(f.kept, axis=-1)
            self._left = left
            if kind != "feature":
                self._left_factor = f
            state = kind, p.a, p.b, p.w, l2, f, mx.stop_gradient(x)
            self.problem: ReadoutProblem = p
            self._state: tuple[Kind, Matrix, Matrix, mx.array | None, mx.array, RightFactor, mx.array] = state

    def _minimum_norm(self, p: ReadoutProblem):
        """The kind of R, its factor, the solution in float64, left singular vectors or None, and the diagonal of K."""
        entries = p.entry_dtype
        tall = p.a.shape[-2] >= p.a.shape[-1] and (p.a.dtype == entries or p.method == "cholesky")
        known = full_rank(p.a, None, None, p.w, p.b, p.method, entries) if tall and not self.careful else None
        self.certified = known is not None
        if known is not None:
            return "feature", known.right, full_rank_solve_value(p.a, p.b, p.w, known), None, known.squares
        method = "svd" if p.a.dtype == mx.float64 else None
        f, left = right_factor(p.a, p.w, method=method, entries=entries)
        return "truncated", f, solve_value(p.a, p.b, p.w, f, left), left, None

    def _penalized(self, p: ReadoutProblem, l2: mx.array):
        """The same with a penalty."""
        self.certified = False
        by_feature = l2.shape[-2] > 1
        if self.careful and not by_feature:
            f, left = right_factor(p.a, p.w, method="svd", entries=p.entry_dtype)
            constants = RidgeInverse(in_range(f, l2), "shared")
            return "shared", constants.f, solution(constants, p.a, p.b, p.w, l2, SolutionHints(left)), left, None
        by_cholesky = by_feature or p.entry_dtype != mx.float64 or p.method == "cholesky"
        route = "feature" if by_cholesky else "shared"
        constants, known = inverse_of_ridge(p.a, p.w, l2, route, p.entry_dtype, p.b, p.method)
        x, f = solution(constants, p.a, p.b, p.w, l2, known), constants.f
        if constants.route == "shared":
            return "shared", f, x, known.left, None
        with on_cpu():  # The factor, which has an axis for targets, is of K + L.
            f = RightFactor(f.v[..., 0, :, :], f.s[..., 0, :], f.kept[..., 0, :], f.r[..., 0, :, :])
            if not self.careful:
                return "feature", f, x, None, known.squares
            self._left_factor, self._unpenalized, left = vectors_by_feature(p, l2)
        return "feature", f, x, left, known.squares

    @property
    def by_vectors(self) -> bool:
        return self._left is not None

    @cached_property
    def digits_suffice(self) -> bool | None:
        """Whether ``rest`` has digits enough in every row, so that none of them alone carries a direction.

        None where values cannot be evaluated, and with singular vectors, which give small values their digits.
        """
        p = self.problem
        little = p.a.dtype == mx.float32 or p.l2 is None
        return None if self.by_vectors else digits_suffice(self.values, p.entry_dtype, LITTLE if little else 0.0)

    @property
    def trusted(self) -> bool:
        """Whether nothing shows that digits are missing. A promise that does not hold stays NaN."""
        if self.digits_suffice is not False:
            return True
        with on_cpu():
            return self.problem.method == "cholesky" and bool(mx.any(mx.isnan(self.values.rest)).item())

    @cached_property
    def solution(self) -> mx.array:
        """``(..., n, k)``, float64."""
        return solution_of(*self._state)

    @cached_property
    def gram_inverse(self) -> mx.array:
        """R, ``(..., n, n)``, float64."""
        kind, a, _, w, l2, f, _ = self._state
        return inverse_of(kind, a, w, l2, f)

    @property
    def rows_times_inverse_and_solution(self) -> tuple[mx.array, mx.array]:
        """Y, ``(..., m, n)``, and the solution, ``(..., n, k)``, in float64; by left singular vectors if there are any.

        Of a large row that alone carries a direction, A R has lost what is left of it in rounding.
        """
        y, x = astype(product(self.problem.a, self.gram_inverse, self._state[5].r), mx.float64), self.solution
        if self._left is None:
            return y, x
        p, f, kind = self.problem, self._left_factor, self._state[0]
        with on_cpu():
            l2 = mx.zeros((1, 1), mx.float64) if p.l2 is None else p.l2
            scale = mx.ones((1, 1), mx.float64)
            if kind == "feature":  # A L^(-1/2) was factored.
                scale, l2 = _inverse_root_of(l2), mx.ones((1, 1), mx.float64)
            total = f.s * f.s + l2[..., 0] * (f.r * f.r)[..., 0]
            on = mx.logical_and(total > 0, f.kept > 0) if kind == "truncated" else total > 0
            d = mx.where(on, f.s / mx.where(on, total, 1), 0)[..., None] * f.r
            root, u = without_intercept(p, self._left)
            fine_y = (u @ (d * f.v.mT)) * scale.mT / mx.where(root > 0, root, 1)
            fine_x = scale * (f.v @ (d * (u.mT @ (root * in_float64(p.b)))))
            return with_value(y, mx.where(root > 0, fine_y, y), 2), with_value(x, fine_x, 2)

    @property
    def fine_solution(self) -> mx.array:
        """:attr:`solution`, by left singular vectors where they are known of all features. Not inside graphs."""
        l2 = self.problem.l2
        by_vectors = self.by_vectors and (l2 is None or visible(l2) and not mx.any(l2 <= 0).item())
        return self.rows_times_inverse_and_solution[1] if by_vectors else self.solution

    @property
    def residual(self) -> mx.array:
        """Unweighted, ``(..., m, k)``, float64."""
        p = self.problem
        return attach_residual(p.a, p.b, self.solution, self.values.residual)

    @cached_property
    def residual_and_rest(self) -> tuple[mx.array, mx.array]:
        """Unweighted residuals ``(..., m, k)``, and what is left of each row's weight ``(..., m)``, in float64.

        The gradient of both costs little more than that of one.
        """
        p, values = self.problem, self.values
        both = attach_residuals_and_leverages(*self._state, self._inverse_root, values.u, values.both)
        with on_cpu():
            w, leverage = None if p.w is None else astype(p.w, mx.float64), both[..., -1]
            if p.means is not None:
                leverage = leverage + 1 / p.total_weight[..., None]
            return both[..., :-1], attach_rest(leverage, w, values.rest)

    @cached_property
    def values(self) -> RowValues:
        """Residuals and what is left of the rows as constants."""
        with on_cpu():
            x, squares = self._state[-1], mx.stop_gradient(self._squares)
            plain = _by_rows(_constant(self.problem), self._inverse_root, self._kept, x, squares)
            if self._left is None:
                return plain
            kind, l2 = self._state[0], self.problem.l2
            if kind != "feature":
                return row_values(self.problem, self._left, self._left_factor, l2, plain)
            left = mx.concatenate(same_batch(self._left, self._unpenalized.left), axis=-1)
            return row_values(self.problem, left, *self._by_feature, plain)

    @property
    def _by_feature(self) -> tuple[RightFactor, mx.array]:
        """Singular values of the penalized and of the other features together, and their penalties ``(2n, 1)``."""
        f, free = self._left_factor, self._unpenalized
        with on_cpu():
            # Their size does not matter, only their ratios.
            s = mx.concatenate(same_batch(f.s, free.s * mx.maximum(f.s[..., :1], 1)), axis=-1)
            ones = mx.ones((f.s.shape[-1], 1), mx.float64)
            return f._replace(s=s), mx.concatenate([ones, 0 * ones], axis=0)

    @property
    def noise(self) -> mx.array:
        return self.values.noise

    def free_degrees(self, total: mx.array) -> mx.array:
        """Degrees of freedom that are left of ``total`` (...), ``(...)``; NaN unless they are positive."""
        p, bias = self.problem, self.problem.means is not None
        if p.l2 is None:
            return free_degrees(total, self.rank, 0.0, bias)
        n, shrinkage = float(p.a.shape[-1]), self.shrinkage
        if self._left is None:
            return free_degrees(total, n, shrinkage, bias)
        with on_cpu():
            f, l2 = (self._left_factor, p.l2) if self._state[0] == "shared" else self._by_feature
            l2 = l2[..., 0] * (f.r * f.r)[..., 0]
            fine = free_degrees(total, *kept_shrinkage(f.s, self.values.kept, l2), bias)
            return with_value(total - n - bias + shrinkage, fine, 0)

    @property
    def used_degrees(self) -> mx.array:
        """Degrees of freedom that the fit has used, the intercept's with them: the sum of the leverages, ``(...)``."""
        p = self.problem
        bias = float(p.means is not None)
        with on_cpu():
            return self.rank + bias if p.l2 is None else p.a.shape[-1] + bias - self.shrinkage

    @property
    def shrinkage(self) -> mx.array:
        """Tr L R, ``(...)``: the degrees of freedom that the penalty takes; differentiable in the penalty and A."""
        l2, r = self._state[4], self.gram_inverse
        with on_cpu():
            eye = mx.eye(r.shape[-1], dtype=mx.float64)
            return mx.sum(eye * r * l2, axis=(-2, -1))


class Unpenalized(NamedTuple):
    """Left singular vectors ``(..., m, n)`` of the features without a penalty.

    Their singular values ``(..., n)`` are divided by the largest one, and 0 where they do not count.
    """

    left: mx.array
    s: mx.array


def vectors_by_feature(p: ReadoutProblem, l2: mx.array) -> tuple[RightFactor, Unpenalized, mx.array]:
    """Singular vectors of D^(1/2) A L^(-1/2), whose penalty is 1 for all features, of which some may have none.

    What the features without a penalty span is left out of the others: these are fitted to the rest.

    Returns:
        The right factor of the penalized features, what the others span, and the left vectors that go with the factor.
    """
    with on_cpu():
        none, scale = l2 <= 0, _inverse_root_of(l2)
        w = mx.ones((1,), mx.float64) if p.w is None else mx.maximum(astype(p.w, mx.float64), 0)
        rows = mx.sqrt(w)[..., None] * in_float64(p.a)
        if visible(l2) and not mx.any(none).item():
            f, left = _with_left(rows * scale.mT)
            return f, Unpenalized(mx.zeros_like(left), mx.zeros_like(f.s)), left
        # Their units do not matter: with columns of one length the vectors are the most accurate.
        norms = mx.sqrt(mx.sum(rows * rows, axis=-2, keepdims=True))
        alone = mx.where(mx.logical_and(none.mT, norms > 0), 1 / mx.where(norms > 0, norms, 1), 0)
        free, basis = _with_left(rows * alone)
        _, basis = without_intercept(p, basis * free.kept[..., None, :])
        rows = rows * scale.mT
        size = mx.sqrt(mx.sum(rows * rows, axis=(-2, -1)))[..., None]
        for _ in range(2):  # Twice is enough.
            rows = rows - basis @ (basis.mT @ rows)
        f, left = _with_left(rows)
        noise = 4 * l2.shape[-2] * dtypes.eps(mx.float64) * size * f.r[..., 0]  # of what was subtracted
        f = f._replace(s=mx.stop_gradient(mx.where(f.s <= noise, 0, f.s)))
        largest = free.s[..., :1]
        return f, Unpenalized(basis, free.kept * free.s / mx.where(largest > 0, largest, 1)), left


def _inverse_root_of(l2: mx.array) -> mx.array:
    """L^(-1/2), 0 where there is no penalty."""
    return mx.where(l2 > 0, 1 / mx.sqrt(mx.where(l2 > 0, l2, 1)), 0)


def _with_left(rows: mx.array) -> tuple[RightFactor, mx.array]:
    """The factor of float64 ``rows``, and their left singular vectors."""
    f, left = right_factor(rows, method="svd", entries=mx.float64)
    assert left is not None
    return f, left


def in_float64_of(p: ReadoutProblem) -> ReadoutProblem:
    """``p`` with float64 copies of its arrays; the accuracy of the entries stays as it was."""
    w = None if p.w is None else astype(p.w, mx.float64)
    return p._replace(a=in_float64(p.a), b=in_float64(p.b), w=w)


def factored(p: ReadoutProblem, fine: Callable[[], ReadoutProblem]) -> FactoredProblem:
    """The factorization of ``p``, or of ``fine()`` in float64 by singular vectors if a row leaves too little."""
    f = FactoredProblem(p)
    return f if f.trusted else FactoredProblem(fine(), careful=True)


# --- Values ---------------------------------------------------------------------------------------


# What is stopped here keeps no graph when it is evaluated inside a gradient, and gives its memory back.
def _constant(p: ReadoutProblem) -> ReadoutProblem:
    p = p._replace(a=each(p.a, mx.stop_gradient), b=each(p.b, mx.stop_gradient))
    if p.w is None:
        return p
    return p._replace(w=mx.stop_gradient(p.w), total_weight=mx.stop_gradient(p.total_weight))


def _by_rows(p: ReadoutProblem, root, kept, x, squares) -> RowValues:
    """U = A W in the dtype of A; residuals and leverages from it, summed in float64. Of constants."""

    def of_block(a, b, root, kept, x):
        u = a @ root
        return u, b - a @ x, (u * u) @ kept

    dtypes_of = [p.a.dtype, mx.float64, mx.float64]
    u, residual, leverage = by_row_blocks(of_block, [p.a, p.b], [root, kept, x], dtypes_of)
    share = 0.0 if p.means is None else 1 / divisor(p.total_weight)[..., None]
    rest = 1 - (1.0 if p.w is None else astype(p.w, mx.float64)) * (leverage[..., 0] + share)
    # sum_i K_ii R_ii bounds the condition number for any scale of the columns; K + L, which it is of, has more.
    loss = mx.sum(squares * ((root * root) @ kept)[..., 0], axis=-1)
    loss = mx.maximum(loss if p.entry_dtype != mx.float64 else mx.sqrt(loss), 1)
    return RowValues(u, residual, leverage, rest, 8 * dtypes.eps(mx.float64) * loss, None, mx.zeros((1,), mx.float64))
