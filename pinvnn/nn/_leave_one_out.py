"""What a fit predicts for a row that was left out of it, exactly and without a second fit."""

import mlx.core as mx

from .._factor import RidgeInverse, default_rtol, right_factor
from .._mlx import astype, dtypes, on_cpu
from .._rules import gram_handle, gram_normal, inverse
from ._fit import FactoredProblem
from ._problem import ReadoutProblem

# A removed row has the error e_i = r_i / (1 - d h_i) if weight d of it is removed; h_i is its leverage with the part of
# the intercept, 1 / sum(w). Where d h_i = 1 the row alone carries a direction, and this is 0 / 0. With L = 0 the fit of
# minimum norm to the other rows has nothing in that direction, and with y_i = R a_i its error is
#     e_i = <y_i, x> / (w_i |y_i|^2).
# If this holds for all rows (m <= n), it is the bordered form C = [[A A^T, 1], [1^T, 0]]^-1, e_i = (C b)_i / C_ii.


def errors(p: ReadoutProblem, removed: str) -> mx.array:
    """``(..., m, k)``: target less the prediction of the fit without that row, in float64."""
    if p.a.size == 0 or p.b.size == 0:
        with on_cpu():
            return mx.zeros(mx.broadcast_shapes(p.a.shape[:-2], p.b.shape[:-2]) + p.b.shape[-2:], mx.float64)
    q = per_target(p)
    e = _dual(q) if q.dual_is_smaller else _primal(q, removed)
    return e if q is p else merged(e)


def per_target(p: ReadoutProblem) -> ReadoutProblem:
    """Targets that have penalties of their own become a batch of problems, ``(..., k, m, 1)``."""
    if p.l2 is None or p.l2.shape[-1] == 1:
        return p
    with on_cpu():
        return p._replace(
            a=p.a[..., None, :, :],
            b=p.b.mT[..., None],
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


def _primal(p: ReadoutProblem, removed):
    f = FactoredProblem(p)
    with on_cpu():
        residual, leverage = f.residuals_and_leverages[..., :-1], f.residuals_and_leverages[..., -1]
        w = mx.ones((1,), mx.float64) if p.w is None else astype(p.w, mx.float64)
        share = mx.minimum(w, 1) if removed == "unit" else w
        rest = 1 - share * (leverage + intercept(p))
        noise = f.noise[..., None]
        if p.l2 is not None:
            rest = mx.where(rest > noise, rest, mx.array(float("nan"), mx.float64))
            return residual / rest[..., None]
        alone = mx.logical_and(_alone(p, rest, noise), share == w)
        y = astype(f.rows_times_inverse, mx.float64)
        norms = mx.where(alone, w * mx.sum(y * y, axis=-1), 1)
        rest = mx.where(alone, 1, rest)
        without = (y @ astype(f.solution, mx.float64)) / norms[..., None]
        return mx.where(alone[..., None], without, residual / rest[..., None])


def _alone(p: ReadoutProblem, rest, noise):
    """Rows without which the rank is smaller, by the cutoff of the rank: the removed row's share of s^2 is left."""
    m, n = p.a.shape[-2:]
    return mx.stop_gradient(rest) <= mx.maximum(noise, default_rtol(m, n, p.entry_dtype) ** 2)


# --- The m x m form, for m < n and rows of weight 1 -----------------------------------------------
# C = (A A^T + l2 I)^-1:  r = l2 C b,  1 - h_i = l2 C_ii;  without a penalty C = (A A^T)^+.


def _dual(p: ReadoutProblem):
    with on_cpu():
        f, c = _dual_inverse(p)
        if p.l2 is None:
            return _dual_minimum_norm(p, f, c)
        rest = p.l2[..., 0] * _diagonal(c) - intercept(p)
        rest = mx.where(rest > 8 * dtypes.eps(mx.float64), rest, mx.array(float("nan"), mx.float64))
        return p.l2 * (c @ p.b) / rest[..., None]


def _dual_inverse(p: ReadoutProblem):
    """The factor of A^T, and C with its derivatives."""
    flat, eye = p.a.mT, mx.eye(p.a.shape[-2], dtype=mx.float64)
    f, _ = right_factor(flat, entries=p.entry_dtype)
    k = gram_handle(flat, None, f)
    if p.l2 is None:
        return f, inverse(k, eye, f) * f.r * f.r
    return f, gram_normal(k / f.r / f.r, p.l2, eye, RidgeInverse(f, "shared"))


def _dual_minimum_norm(p: ReadoutProblem, f, c):
    kernel, shift = p.a @ p.a.mT, intercept(p)
    projector = mx.sum(f.kept[..., None, :] * f.v * f.v, axis=-1)
    alone = _alone(p, 1 - projector - shift, 1e-12)
    alpha, norms = c @ p.b, mx.where(alone, _diagonal(c), 1)
    rest = mx.where(alone, 1, 1 - _diagonal(kernel @ c) - shift)
    return mx.where(alone[..., None], alpha / norms[..., None], (p.b - kernel @ alpha) / rest[..., None])


def _dual_residual(p: ReadoutProblem):
    """Residuals, and the degrees of freedom without the intercept."""
    f, c = _dual_inverse(p)
    if p.l2 is None:
        return p.b - p.a @ (p.a.mT @ (c @ p.b)), mx.sum(f.kept, axis=-1)
    return p.l2 * (c @ p.b), p.a.shape[-2] - p.l2[..., 0, 0] * mx.sum(_diagonal(c), axis=-1)


def _diagonal(x):
    return mx.sum(mx.eye(x.shape[-1], dtype=mx.float64) * x, axis=-1)


# --- Generalized cross validation -----------------------------------------------------------------


def validation_score(p: ReadoutProblem):
    """``(1/k) sum_t M RSS_t / (M - df_t)^2`` with M the sum of the weights, ``(...)`` in float64."""
    with on_cpu():
        rss, free = squares_and_freedom(p)
        return mx.mean(p.total_weight[..., None] * rss / (free * free), axis=-1)


def squares_and_freedom(p: ReadoutProblem, f: FactoredProblem | None = None):
    """Weighted sums of squared residuals and degrees of freedom that are left, ``(..., k)`` each.

    The latter are M - tr(K R), less one for the intercept; NaN unless they are positive. ``f`` is a fit that is known.
    """
    q = per_target(p)
    with on_cpu():
        if q.dual_is_smaller and f is None:
            residual, used = _dual_residual(q)
        else:
            f = f or FactoredProblem(q)
            residual, used = f.residual, f.rank
            if q.l2 is not None:
                used = q.a.shape[-1] - mx.sum(q.l2[..., 0] * _diagonal(f.gram_inverse), axis=-1)
        squares = residual * residual if q.w is None else astype(q.w, mx.float64)[..., None] * residual * residual
        squares = mx.sum(squares, axis=-2)
        squares, used = (squares, used[..., None]) if q is p else (squares[..., 0], used)
        total = p.total_weight[..., None]
        free = total - used - (0 if p.means is None else 1)
        # 1e-9 is far above the rounding of a trace, and far below one row.
        return squares, mx.where(free > 1e-9 * total, free, mx.array(float("nan"), mx.float64))
