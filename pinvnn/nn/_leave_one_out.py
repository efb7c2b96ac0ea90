"""What a fit predicts for a row that was left out of it, exactly and without a second fit."""

from collections.abc import Callable
from typing import Literal, TypeAlias, cast

import mlx.core as mx

from .._factor import RightFactor, dual_by_cholesky, in_range, right_factor
from .._mlx import astype, dtypes, each, in_float64, large, on_cpu, visible
from .._rules import free_degrees, gcv_score, inverse_of, kept_shrinkage, with_value
from .._types import ReadoutMethod
from ._balance import of_own_class, without_each, without_one_of_a_class
from ._bounds import of_free_weights
from ._fit import LITTLE, FactoredProblem, factored, in_float64_of
from ._problem import ReadoutProblem, centred
from ._row_values import TRUSTED, RowValues, digits_suffice, row_values
from ._solution import predict

# A removed row has the error e_i = r_i / (1 - d h_i) if weight d of it is removed; h_i is its leverage with the part of
# the intercept, 1 / sum(w). Where d h_i = 1 the row alone carries a direction, and this is 0 / 0. With L = 0 the fit of
# minimum norm to the other rows has nothing in that direction, and with y_i = R a_i its error is
#     e_i = <y_i, x> / (w_i |y_i|^2),
# and under a penalty L far below rounding e_i = <y_i, L x> / (w_i <y_i, L y_i>).
# If this holds for all rows (m <= n), it is the bordered form C = [[A A^T, 1], [1^T, 0]]^-1, e_i = (C b)_i / C_ii.


#: The problem centred in float64; and a batch of problems, each without one of the rows with the given indices.
InFloat64: TypeAlias = Callable[[mx.array | None], ReadoutProblem]


def errors(p: ReadoutProblem, part: mx.array | None, recentred: InFloat64) -> mx.array:
    """``(..., m, k)``: target less the prediction of the fit without that row, in float64.

    Args:
        p: The problem.
        part: Which part of a row's weight is left out, ``(..., m)`` float64, of a problem with weights; None for all.
        recentred: Gives the problem centred in float64, which is needed where rows leave almost nothing, and those
            without a row, for rows that no formula has enough digits for.
    """
    if p.a.size == 0 or p.b.size == 0:
        with on_cpu():
            return mx.zeros(mx.broadcast_shapes(p.a.shape[:-2], p.b.shape[:-2]) + p.b.shape[-2:], mx.float64)
    freed = per_target if p.bounds is None else of_free_weights(p)
    q = freed(p)
    if q is not p and part is not None:
        with on_cpu():
            part = part[..., None, :]

    def fine(without: mx.array | None = None) -> ReadoutProblem:
        return freed(recentred(without))

    e, doubt = _dual(q) if q.dual_is_smaller else _primal(q, part, fine)
    e = _with_refits(e, doubt, part, fine, q.a.shape[-1])
    return e if q is p else merged(e)


# Without vectors and values, what is left of a row is NaN below this multiple of its rounding error. That of float64 is
# overestimated.
_ENOUGH = {mx.float32: 1e3, mx.float64: 1.0}
# A row that leaves this has moved the mean so far that the others, centred in float32, have three digits.
_CENTRED = 1e-9
# In float32 what is left of a row has a derivative with two digits above this.
_DIFFERENTIABLE = 1e-5

# Relative errors from which on a row is refitted, and, where values cannot be evaluated, is NaN.
_REFITTED, _NO_RESULT = 1e-6, 1e-2


def _with_refits(e: mx.array, doubt: mx.array | None, part: mx.array | None, without: InFloat64, n: int) -> mx.array:
    """Errors ``e`` (..., m, k) with those of refits where their relative error ``doubt`` (..., m) is too large.

    Such rows are some orders of magnitude larger than the others, so that they are few. What the others say about the
    direction of such a row is below the rounding error of singular vectors.
    """
    if doubt is None:
        return e
    with on_cpu():
        if part is not None:
            doubt = mx.where(part == 1, doubt, 0)
        if not visible(doubt):
            return e * mx.where((doubt > _NO_RESULT)[..., None], mx.array(float("nan"), mx.float64), 1)
        doubtful = doubt > _REFITTED
        m = doubtful.shape[-1]
        anywhere = mx.any(doubtful.reshape(-1, m), axis=0)
        rows = [i for i, doubted in enumerate(cast("list[bool]", anywhere.tolist())) if doubted]
        if not rows:
            return e
        found, step = mx.zeros_like(e), max(1, _NUMBERS_AT_ONCE // max(1, m * n))
    for i in range(0, len(rows), step):
        chosen = mx.array(rows[i : i + step])
        p = without(chosen)
        f = FactoredProblem(p, careful=True)
        with on_cpu():
            assert p.w is not None
            one = (chosen.reshape(-1, *(1,) * (p.w.ndim - 1)) == mx.arange(m))[..., None].astype(mx.float64)
            own = mx.sum(one * (in_float64(p.b) - in_float64(p.a) @ f.fine_solution), axis=-2, keepdims=True)
            found = found + mx.sum(one * own, axis=0)
    with on_cpu():
        return mx.where(doubtful[..., None], found, e)


def predictions(p: ReadoutProblem, left_out: mx.array) -> mx.array:
    """What the fits without a row predict for it, ``(..., m, k)`` in float64, from their errors; ``p`` in float64."""
    with on_cpu():
        return in_float64(p.b) + (astype(p.means()[1], mx.float64) if p.means else 0) - left_out


def nan_for_other_rows(predicted: mx.array, x: mx.array) -> mx.array:
    """``predicted`` (..., m, k); NaN where the row of ``x`` is not finite, for which zeros may have been put."""
    with on_cpu():
        finite = mx.all(mx.isfinite(x), axis=-1, keepdims=True)
        return mx.where(finite, predicted, mx.array(float("nan"), predicted.dtype))


def per_target(p: ReadoutProblem) -> ReadoutProblem:
    """Targets that have penalties of their own become a batch of problems, ``(..., k, m, 1)``."""
    if p.l2 is None or p.l2.shape[-1] == 1:
        return p
    with on_cpu():
        return p._replace(
            a=each(p.a, lambda x: x[..., None, :, :]),
            b=each(p.b, lambda x: x.mT[..., None]),
            w=None if p.w is None else p.w[..., None, :],
            l2=p.l2.mT[..., None],
            total_weight=p.total_weight[..., None],
        )


def merged(x):
    """``(..., k, m, 1)`` back to ``(..., m, k)``."""
    with on_cpu():
        return x[..., 0].mT


def intercept(p: ReadoutProblem):
    """The part of a leverage that the intercept has, 1 / sum(w): ``(..., 1)``, or 0 without one."""
    return 0.0 if p.means is None else 1 / p.total_weight[..., None]


def _primal(
    p: ReadoutProblem, part: mx.array | None, fine: Callable[[], ReadoutProblem]
) -> tuple[mx.array, mx.array | None]:
    """The errors, and :attr:`RowValues.doubt`."""
    if p.l2 is None and p.method == "auto" and not visible(p.a):
        # Without values, a row that alone carries a direction is told from one that leaves little by vectors only.
        f = FactoredProblem(fine(), careful=True)
    else:
        f = factored(p, fine)
    p = f.problem
    residual, rest = f.residual_and_rest
    if f.digits_suffice:
        with on_cpu():
            return residual / (rest if part is None else (1 - part) + part * rest)[..., None], f.values.doubt
    with on_cpu():
        noise = f.noise[..., None]
        if not f.by_vectors:  # no values decided whether the rests have digits enough
            noise = noise * (TRUSTED[p.entry_dtype] if p.method == "cholesky" else _ENOUGH[p.entry_dtype])
            if p.a.dtype == mx.float32 and p.means is not None:
                noise = mx.maximum(noise, _CENTRED)
        alone = mx.stop_gradient(rest) <= noise
        if p.w is not None:
            alone = mx.logical_and(alone, p.w > 0)
        if part is not None:
            alone = mx.logical_and(alone, part == 1)
            rest = (1 - part) + part * rest
        doubt = f.values.doubt
        determined = p.l2 is None or f.by_vectors
        if f.certified or not determined:  # no row is alone, or it cannot be told from one that leaves very little
            nan = mx.array(float("nan"), mx.float64)
            rest = mx.where(alone, nan, rest)
            if p.a.dtype == mx.float32 and not f.by_vectors:
                # The derivative of what is left is rounded to eps of the whole; where that is too much, it is NaN.
                differentiable = mx.where(mx.stop_gradient(rest) > _DIFFERENTIABLE, rest, nan)
                value = mx.stop_gradient(residual / rest[..., None])
                return with_value(residual / differentiable[..., None], value, 2), doubt
            return residual / rest[..., None], doubt
        y, x = f.rows_times_inverse_and_solution
        # The same limit holds for a penalty far below eps s^2, but not for none at all: orthogonal is in the metric L.
        across = y
        if p.l2 is not None:
            across = y * (p.l2 / mx.max(p.l2, axis=-2, keepdims=True)).mT if p.l2.shape[-2] > 1 else y
        norms = mx.sum(across * y, axis=-1)
        norms = mx.where(alone, norms if p.w is None else astype(p.w, mx.float64) * norms, 1)
        rest = mx.where(alone, 1, rest)
        without = (across @ x) / norms[..., None]
        if p.l2 is not None:
            positive = mx.all(p.l2 > 0, axis=(-2, -1), keepdims=True)
            without = mx.where(positive, without, mx.array(float("nan"), mx.float64))
        return mx.where(alone[..., None], without, residual / rest[..., None]), doubt


# --- The m x m form, for m < n and rows of weight 1 -----------------------------------------------
# C = (A A^T + l2 I)^-1:  r = l2 C b,  1 - h_i = l2 C_ii;  without a penalty C = (A A^T)^+.


def _dual(p: ReadoutProblem) -> tuple[mx.array, mx.array | None]:
    f, c, values = _dual_parts(p)
    with on_cpu():
        share, a, b = intercept(p), in_float64(p.a), in_float64(p.b)
        kernel = a @ a.mT
        alpha = c @ b
        if p.l2 is None:
            alone = mx.stop_gradient(values.rest) <= values.noise[..., None]
            norms = mx.where(alone, _diagonal(c), 1)
            rest = with_value(1 - _diagonal(kernel @ c) - share, values.rest, 1)
            residual = with_value(b - kernel @ alpha, values.residual, 2)
            rest = mx.where(alone, 1, rest)[..., None]
            return mx.where(alone[..., None], alpha / norms[..., None], residual / rest), values.doubt
        rest = with_value(p.l2[..., 0] * _diagonal(c) - share, values.rest, 1)
        return with_value(p.l2 * alpha, values.residual, 2) / rest[..., None], values.doubt


def _dual_parts(p: ReadoutProblem, spectrum: bool = False) -> tuple[RightFactor, mx.array, RowValues]:
    """The factor of A^T, C with its derivatives, and residuals and rests as constants."""
    with on_cpu():
        flat = in_float64(p.a).mT
        f, values = _dual_values(p, flat, spectrum)
        kind = "truncated" if p.l2 is None else "feature" if f.full else "shared"
        l2 = mx.zeros((1, 1), mx.float64) if p.l2 is None else p.l2
        return f, inverse_of(kind, flat, None, l2, f), values


def _dual_values(p: ReadoutProblem, flat: mx.array, spectrum: bool) -> tuple[RightFactor, RowValues]:
    """By what costs least and is seen to have digits enough: a Cholesky factor, eigenvectors of A A^T, an SVD.

    The first has no singular values, which ``spectrum`` asks for.
    """

    def by_vectors(method: Literal["gram", "svd"]) -> tuple[RightFactor, RowValues]:
        f = right_factor(flat, method=method, entries=p.entry_dtype)[0]
        f = f if p.l2 is None else in_range(f, p.l2)
        return f, row_values(p, f.v, f, p.l2, None, by_gram=method == "gram")

    if p.entry_dtype != mx.float64 and visible(flat):
        f = None if p.l2 is None or spectrum else dual_by_cholesky(flat, p.l2, p.entry_dtype)
        f, values = by_vectors("gram") if f is None else (f, _cholesky_values(p, f))
        if digits_suffice(values, p.entry_dtype, LITTLE if p.l2 is None else 0.0):
            return f, values
    return by_vectors("svd")


def _cholesky_values(p: ReadoutProblem, f: RightFactor) -> RowValues:
    """From C = r^2 V V^T; the rests lose what the intercept's share takes from them."""
    assert p.l2 is not None
    c = (f.v @ f.v.mT) * (f.r * f.r)
    part = p.l2[..., 0] * _diagonal(c)
    # |A A^T + l2| |C|, and C is at most 1 / l2.
    a, b = in_float64(p.a), in_float64(p.b)
    noise = 8 * dtypes.eps(mx.float64) * (1 + mx.sum(a * a, axis=(-2, -1)) / p.l2[..., 0, 0])
    none = mx.zeros((1, 1), mx.float64)
    residual, rest, noise = (mx.stop_gradient(x) for x in (p.l2 * (c @ b), part - intercept(p), noise))
    return RowValues(none, residual, none, rest, noise, None, none)


def _diagonal(x: mx.array) -> mx.array:
    return mx.sum(mx.eye(x.shape[-1], dtype=mx.float64) * x, axis=-1)


# --- Classes that are balanced anew without the row -----------------------------------------------

# Numbers of the rows that refits hold at once.
_NUMBERS_AT_ONCE = 2**23


def left_out_of_balanced(
    x: mx.array,
    hot: mx.array,
    y: mx.array,
    weights: mx.array | None,
    l2: mx.array | None,
    bias: bool,
    method: ReadoutMethod,
    unit: bool,
) -> mx.array:
    """What fits without a row, whose classes are balanced anew, predict for it, ``(..., m, k)``.

    Rows of weight 1 need one factorization for each class. With other weights, or where the m x m form is the smaller
    one, each row is refitted.

    Args:
        x: ``(..., m, n)`` in a working dtype.
        hot: One-hot labels ``(..., m, c)``.
        y: Targets ``(..., m, k)``.
        weights: ``(..., m)`` before balancing, or None.
        l2: The penalty, as in :class:`ReadoutProblem`.
        bias: Whether there is an intercept.
        method: As in :class:`ReadoutProblem`.
        unit: Whether weight 1 is taken from a row, or all of it.
    """
    m, n = x.shape[-2:]
    batch = mx.broadcast_shapes(x.shape[:-2], hot.shape[:-2], () if weights is None else weights.shape[:-1])

    def problem(w: mx.array, double: bool = False, without: mx.array | None = None) -> ReadoutProblem:
        with large(x.dtype):
            rows = mx.broadcast_to(x[..., None, :, :], (*batch, w.shape[-2], m, n))
            return centred(rows, y[..., None, :, :], astype(w, x.dtype), l2, bias, double, method, without)

    dual_is_smaller = m < n and l2 is not None and l2.shape[-2] == 1
    if weights is None and not dual_is_smaller:
        w = without_one_of_a_class(hot)
        p = problem(w, double=m <= 2 * n)
        with on_cpu():
            part = astype(hot, mx.float64).mT
        e = errors(p, part, lambda without: problem(w, True, without))
        return astype(of_own_class(predictions(problem(w, True), e), hot), x.dtype)
    w, found = without_each(hot, weights, unit), []
    step = max(1, _NUMBERS_AT_ONCE // max(1, m * n))
    for rows in (slice(i, i + step) for i in range(0, m, step)):
        with on_cpu():
            of_rows = w[..., rows, :]
        with large(x.dtype):
            own = x[..., rows, None, :]
        found.append(predict(problem(of_rows), own))
    with large(x.dtype):
        return mx.concatenate(found, axis=-3)[..., 0, :] if found else mx.zeros((*batch, *y.shape[-2:]), x.dtype)


# --- Generalized cross validation -----------------------------------------------------------------


def validation_score(p: ReadoutProblem) -> mx.array:
    """``(1/k) sum_t M RSS_t / free_t^2``, ``(...)`` in float64: see ``_rules/validation.py``."""
    squares, free = squares_and_freedom(p)
    return gcv_score(p.total_weight, squares, free)


def squares_and_freedom(
    p: ReadoutProblem, f: FactoredProblem | None = None, total: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Weighted sums of squared residuals and degrees of freedom that are left, ``(..., k)`` or ``(..., 1)`` each.

    ``f`` is a factorization of :func:`per_target` of ``p`` that is known, ``total`` (...) what is counted, by default
    the sum of the weights.
    """
    q = per_target(p)
    if total is None:
        total = p.total_weight
    with on_cpu():
        total = total if q is p else total[..., None]
    if q.dual_is_smaller and f is None:
        residual, free = _dual_residual(q)
    else:
        f = f or factored(q, lambda: in_float64_of(q))
        residual, free = f.residual, f.free_degrees(total)
    with on_cpu():
        squares = residual * residual if q.w is None else astype(q.w, mx.float64)[..., None] * residual * residual
        squares = mx.sum(squares, axis=-2)
        return (squares, free[..., None]) if q is p else (squares[..., 0], free)


def _dual_residual(p: ReadoutProblem) -> tuple[mx.array, mx.array]:
    """Residuals, and the degrees of freedom that are left."""
    f, c, values = _dual_parts(p, spectrum=True)
    with on_cpu():
        a, b = in_float64(p.a), in_float64(p.b)
        if p.l2 is None:
            free = free_degrees(p.total_weight, mx.sum(f.kept, axis=-1), 0.0, p.means is not None)
            return with_value(b - a @ (a.mT @ (c @ b)), values.residual, 2), free
        rank, shrinkage = kept_shrinkage(f.s, values.kept, p.l2[..., 0] * (f.r * f.r)[..., 0])
        free = free_degrees(p.total_weight, rank, shrinkage, p.means is not None)
        trace = p.l2[..., 0, 0] * mx.sum(_diagonal(c), axis=-1)
        return with_value(p.l2 * (c @ b), values.residual, 2), with_value(trace, free, 0)
