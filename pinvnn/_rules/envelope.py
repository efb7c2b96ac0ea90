"""Derivative rule of the minimum of the ridge objective, by the envelope theorem.

F(a, b, w, l2) = min_x sum_i w_i |r_i|^2 + sum_jt l_jt x_jt^2 with r = b - a x. At the minimum dF/dx = 0, so that x may
be held fixed:

    a_bar = -2 D r x^T,  b_bar = 2 D r,  w_bar_i = |r_i|^2,  l2_bar = x o x      (times F_bar).

The x in these rules has its own derivative attached: with a constant x they would be wrong from second order on.
"""

import mlx.core as mx

from .._factor.ridge_inverse import inverse_of_ridge, ridge_route
from .._factor.ridge_values import RidgeInverse, solution
from .._factor.right_factor import RightFactor
from .._mlx.attach import attach
from .._mlx.place import astype, large, on_cpu
from .._mlx.shapes import total
from .dual import dual_solution
from .products import sum_over_rows, weigh
from .ridge import attach_ridge, cores


def smallest_objective(
    a: mx.array, b: mx.array, w: mx.array | None, l2: mx.array, entries: mx.Dtype
) -> mx.array:
    """The ridge objective, penalty included, at its minimum over the solution, ``(...)`` in the dtype of ``a``.

    Its first derivative needs no further solve.

    Args:
        a: ``(..., m, n)``, real.
        b: ``(..., m, k)``, in the dtype of ``a``.
        w: ``(..., m)``, or None.
        l2: Penalty in float64, ``(..., 1 or n, 1 or k)``.
        entries: The dtype that the entries of ``a`` had before any conversion.
    """
    dtype = a.dtype
    route = ridge_route("auto", a.shape[-2:], l2, entries, unpenalized=False)
    if route == "dual":
        with on_cpu():
            a, b, w = a.astype(mx.float64), b.astype(mx.float64), None if w is None else w.astype(mx.float64)
    inverse, known = inverse_of_ridge(a, w, l2, route, entries, b)
    with large(a.dtype):
        ones = mx.ones((1,), a.dtype) if w is None else w
    with on_cpu():  # Stopped: else a zero cotangent would meet the infinite slope of sqrt at weight 0, and be NaN.
        dual = inverse.route == "dual"
        x = dual_solution(a, b, ones, l2, inverse.f) if dual else solution(inverse, a, b, w, l2, known)
        x = mx.stop_gradient(x)
    value = _envelopes[inverse.route](a, b, ones, l2, *inverse.f, x, objective(a, b, w, l2, astype(x, a.dtype)))
    with on_cpu() if route == "dual" else large(dtype):
        return value.astype(dtype)


def objective(a: mx.array, b: mx.array, w: mx.array | None, l2: mx.array | None, x: mx.array) -> mx.array:
    """Weighted sum of squared residuals plus the penalty, ``(...)``."""
    with large(a.dtype):
        rest = b - a @ x
        fit = mx.sum(sum_over_rows(weigh(w, rest * rest)), axis=-1)
    if l2 is None:
        return fit
    with on_cpu():
        penalty = mx.sum(l2 * mx.square(x.astype(mx.float64)), axis=(-2, -1)).astype(a.dtype)
    with large(a.dtype):
        return fit + penalty


def _envelope(route):
    def attached(a, b, w, l2, hints):
        *factors, x = hints
        if route == "dual":
            return dual_solution(a, b, w, l2, RightFactor(*factors))
        return attach_ridge(a, b, w, l2, RidgeInverse(RightFactor(*factors), route), x)

    def vjp(_, bar, a, b, w, l2, *hints):
        x = attached(a, b, w, l2, hints)
        with large(a.dtype):
            bar = bar[..., None, None]
            rest = b - a @ x
            b_bar = 2 * bar * w[..., None] * rest
            a_bar = -b_bar @ x.mT
            w_bar = bar[..., 0] * mx.sum(rest * rest, axis=-1)
            if w.shape[-1] == 1:
                w_bar = mx.sum(w_bar, axis=-1, keepdims=True)
        with on_cpu():
            return a_bar, b_bar, w_bar, bar.astype(mx.float64) * mx.square(x.astype(mx.float64))

    def jvp(_, tangents, a, b, w, l2, *hints):
        da, db, dw, dl = tangents[:4]
        x = attached(a, b, w, l2, hints)
        with large(a.dtype):
            parts, rest = [], b - a @ x
            if db is not None:
                parts.append(2 * w[..., None] * rest * db)
            if da is not None:
                parts.append(-2 * w[..., None] * rest * (da @ x))
            if dw is not None:
                parts.append(dw[..., None] * rest * rest)
            parts = [mx.sum(part, axis=(-2, -1)) for part in parts]
        if dl is not None:
            with on_cpu():
                parts.append(mx.sum(dl * mx.square(x.astype(mx.float64)), axis=(-2, -1)).astype(a.dtype))
        with large(a.dtype):
            return total(parts)

    return attach(vjp, jvp, (2, 2, 1, 2, *cores(route), 2, 0))


_envelopes = {route: _envelope(route) for route in ("shared", "feature", "dual")}
