"""What is read off one factorization of a readout problem: the solution and its loss, both with their derivatives."""

import mlx.core as mx

from .._attach import attach
from .._dual_rules import dual_solution
from .._factor import Factor
from .._lstsq import lstsq
from .._place import astype, large, on_cpu
from .._products import sum_over_rows, weigh
from .._ridge import _route, ridge
from .._ridge_inverse import inverse_of_ridge
from .._ridge_rules import _cores, attach_ridge
from .._ridge_values import Inverse, solution
from ._problem import Problem


def solve(p: Problem):
    """The solution ``(..., n, k)`` in the dtype of the problem."""
    if p.l2 is None:
        return lstsq(p.a, p.b, weights=p.w).solution
    return ridge(p.a, p.b, p.l2, weights=p.w)


def smallest_objective(p: Problem):
    """The objective, penalty included, at its minimum over the solution, ``(...)``.

    The truncated solution of minimum norm is no minimizer, so there the gradient is taken through the solution; with a
    penalty it is the envelope's, and nothing is solved for it.
    """
    if p.l2 is None or p.a.size == 0 or p.b.size == 0:
        return _objective(p.a, p.b, p.w, p.l2, solve(p))
    route = _route("ridge", "auto", p.a.shape[-2:], p.l2, p.entries, False)
    a, b, w = p.a, p.b, p.w
    if route == "dual":
        with on_cpu():
            a, b, w = a.astype(mx.float64), b.astype(mx.float64), None if w is None else w.astype(mx.float64)
    inverse, known = inverse_of_ridge(a, w, p.l2, route, p.entries, b)
    with large(a.dtype):
        ones = mx.ones((1,), a.dtype) if w is None else w
    with on_cpu():  # Stopped, or its zero cotangent would meet the infinite slope of sqrt at weight 0.
        dual = inverse.route == "dual"
        x = dual_solution(a, b, ones, p.l2, inverse.f) if dual else solution(inverse, a, b, w, p.l2, known)
        x = mx.stop_gradient(x)
    value = _envelopes[inverse.route](a, b, ones, p.l2, *inverse.f, x, _objective(a, b, w, p.l2, astype(x, a.dtype)))
    with on_cpu() if route == "dual" else large(p.a.dtype):
        return value.astype(p.a.dtype)


def _objective(a, b, w, l2, x):
    """Weighted sum of squared residuals, and the penalty."""
    with large(a.dtype):
        rest = b - a @ x
        fit = mx.sum(sum_over_rows(weigh(w, rest * rest)), axis=-1)
    if l2 is None:
        return fit
    with on_cpu():
        penalty = mx.sum(l2 * mx.square(x.astype(mx.float64)), axis=(-2, -1)).astype(a.dtype)
    with large(a.dtype):
        return fit + penalty


# --- The envelope ---------------------------------------------------------------------------------
# F(a, b, w, l2) = min_x sum_i w_i |r_i|^2 + sum_jt l_jt x_jt^2 with r = b - a x. At the
# minimum dF/dx = 0, and with x fixed
#     a_bar = -2 D r x^T,  b_bar = 2 D r,  w_bar_i = |r_i|^2,  l2_bar = x o x      (times F_bar).
# The x that the rules read has its own derivative attached: a stopped one would be right at first order only.


def _envelope(route):
    def attached(a, b, w, l2, hints):
        *factors, x = hints
        if route == "dual":
            return dual_solution(a, b, w, l2, Factor(*factors))
        return attach_ridge(a, b, w, l2, Inverse(Factor(*factors), route), x)

    def vjp(_, bar, a, b, w, l2, *hints):
        x = attached(a, b, w, l2, hints)
        with large(a.dtype):
            bar = bar[..., None, None]
            rest = b - a @ x
            b_bar = 2 * bar * w[..., None] * rest
            a_bar = -b_bar @ mx.swapaxes(x, -1, -2)
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
            return sum(parts[1:], parts[0])

    return attach(vjp, jvp, (2, 2, 1, 2, *_cores(route), 2, 0))


_envelopes = {route: _envelope(route) for route in ("shared", "feature", "dual")}
