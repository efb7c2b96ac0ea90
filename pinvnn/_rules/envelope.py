"""Derivative rule of the minimum of the ridge objective, by the envelope theorem.

F_t(a, b, w, l2) = min_x sum_i w_i r_it^2 + sum_j l_jt x_jt^2 with r = b - a x, for each target t. At the minimum
dF/dx = 0, so that x may be held fixed:

    b_bar = 2 D r diag(F_bar),  a_bar = -b_bar x^T,  w_bar_i = sum_t F_bar_t r_it^2,  l2_bar = x o x diag(F_bar).

The x in these rules has its own derivative attached: with a constant x they would be wrong from second order on.
"""

import mlx.core as mx

from .._factor.ridge_inverse import inverse_of_ridge, ridge_route
from .._factor.ridge_values import RidgeInverse, solution
from .._mlx.attach import attach
from .._mlx.centred import Matrix, in_float64
from .._mlx.eager import evaluated_residual
from .._mlx.matmul import matmul
from .._mlx.place import astype, large, on_cpu
from .._mlx.shapes import total
from .._types import ReadoutMethod
from .dual import dual_solution
from .products import weigh
from .residuals import attach_residual, exact_product
from .solve import attach_solve


def smallest_objective(
    a: Matrix,
    b: Matrix,
    w: mx.array | None,
    l2: mx.array,
    entries: mx.Dtype,
    method: ReadoutMethod = "auto",
) -> mx.array:
    """The ridge objective of each target, penalty included, at its minimum over the solution, ``(..., k)`` in float64.

    Its first derivative needs no further solve.

    Args:
        a: ``(..., m, n)``, real.
        b: ``(..., m, k)``, in the dtype of ``a``.
        w: ``(..., m)``, or None.
        l2: Penalty in float64, ``(..., 1 or n, 1 or k)``.
        entries: The dtype that the entries of ``a`` had before any conversion.
        method: As for :func:`pinvnn.ridge`.
    """
    route = ridge_route(method, a.shape[-2:], l2, entries, unpenalized=False)
    if route == "dual":
        with on_cpu():
            a, b, w = in_float64(a), in_float64(b), None if w is None else w.astype(mx.float64)
    inverse, hints = inverse_of_ridge(a, w, l2, route, entries, b, method)
    with on_cpu():  # Stopped: else a zero cotangent would meet the infinite slope of sqrt at weight 0, and be NaN.
        if route == "dual":
            x = dual_solution(in_float64(a), in_float64(b), w, l2, inverse.f)
        else:
            x = solution(inverse, a, b, w, l2, hints)
        x = mx.stop_gradient(x)
        return objective_at_minimum(a, b, w, l2, inverse, x, evaluated_residual(a, b, x))


def objective_at_minimum(
    a: Matrix, b: Matrix, w: mx.array | None, l2: mx.array, inverse: RidgeInverse, x: mx.array, rest: mx.array
) -> mx.array:
    """The objective ``(..., k)``, float64, where its minimizer ``x`` and ``rest`` = b - A x in float64 are known."""
    with on_cpu():
        x, rest = mx.stop_gradient(x), mx.stop_gradient(rest)
        value = mx.sum(weigh(None if w is None else astype(w, mx.float64), rest * rest), axis=-2)
        value = value + mx.sum(l2 * x * x, axis=-2)
        return _envelope(a, b, w, l2, inverse, x, rest, value)


def _minimizer(a, b, w, l2, inverse: RidgeInverse, x):
    if inverse.route == "dual":
        return dual_solution(a, b, w, l2, inverse.f)
    return attach_solve(a, b, w, l2, inverse, x)


def _vjp(_, bar, a, b, w, l2, inverse: RidgeInverse, x, rest):
    x = _minimizer(a, b, w, l2, inverse, x)
    with on_cpu():
        bar, rest = bar[..., None, :], attach_residual(a, b, x, rest)
        wide = None if w is None else astype(w, mx.float64)
        b_bar = (2 * bar * weigh(wide, rest)).astype(a.dtype)
        w_bar = None if w is None else mx.sum(bar * rest * rest, axis=-1).astype(a.dtype)
        l2_bar, narrow = bar * x * x, x.astype(a.dtype)
    with large(a.dtype):
        return matmul(b_bar, -narrow.mT), b_bar, w_bar, l2_bar


def _jvp(_, tangents, a, b, w, l2, inverse: RidgeInverse, x, rest):
    da, db, dw, dl = tangents
    x = _minimizer(a, b, w, l2, inverse, x)
    with on_cpu():
        parts, rest = [], attach_residual(a, b, x, rest)
        weighted = weigh(None if w is None else astype(w, mx.float64), rest)
        if db is not None:
            parts.append(2 * weighted * astype(db, mx.float64))
        if da is not None:
            parts.append(-2 * weighted * exact_product(da, x))
        if dw is not None:
            parts.append(weigh(astype(dw, mx.float64), rest * rest))
        if dl is not None:
            parts.append(dl * x * x)
        return total([mx.sum(part, axis=-2) for part in parts])


_envelope = attach(_vjp, _jvp, 2, 2, 1, 2, None, 2, 2, 1)
