"""Derivatives of least squares within bounds: the normal equations of the free variables, at every order.

With F the free variables of a target, beta the values of the held ones (0 elsewhere) and R_F the inverse of the rows
and columns F of A^T D A + L, zero elsewhere,

    x = beta + R_F A^T D (b - A beta).

(R_F L beta = 0: L is diagonal, beta is 0 on F and R_F off it.)
F is constant for differentiation. Then R_F moves as the whole inverse does, dR_F = -R_F d(A^T D A + L) R_F, and the
rules of ridge regression hold as they are: x - beta is the ridge solution for b - A beta with R_F in place of R.
"""

import mlx.core as mx

from .._factor.bounded_values import free_inverse
from .._factor.right_factor import right_factor
from .._mlx.attach import attach_like
from .._mlx.place import astype, on_cpu
from .products import residual
from .solve import attach_solve


def attach_bounded(
    a: mx.array,
    b: mx.array,
    w: mx.array | None,
    l2: mx.array,
    lower: mx.array,
    upper: mx.array,
    x: mx.array,
    state: mx.array,
    shortest: mx.array | None,
    plain: bool,
) -> mx.array:
    """The minimizer with its derivatives in all arguments but the last three, in the dtype of ``a``.

    Args:
        a: ``(..., m, n)``.
        b: ``(..., m, k)``.
        w: ``(..., m)`` or None.
        l2: ``(..., 1 or n, 1 or k)``, float64.
        lower: ``(..., 1 or n, 1 or k)``, float64.
        upper: Likewise.
        x: The minimizer ``(..., n, k)``, float64.
        state: -1 where a variable is on its lower bound, 0 where it is free, 1 on the upper one.
        shortest: 1.0 where the free variables are the shortest of several solutions, ``(..., 1, k)``; None if nowhere.
        plain: Whether all bounds are 0 or infinite, and constants: then beta is 0.
    """
    with on_cpu():
        x = mx.stop_gradient(x)
        value = astype(x, a.dtype)
        if shortest is not None:
            return _from_either(a, b, w, l2, lower, upper, state, x, shortest, value)
        if plain:
            return _from_zero(a, b, w, l2, state, x, value)
        return _from_bounds(a, b, w, l2, lower, upper, state, x, value)


# The inverse is needed, and computed, for derivatives only.


def _free(state):
    return mx.where(state == 0, mx.ones_like(state), mx.zeros_like(state))


def _ridge_of_free(a, b, w, l2, state, x):
    with on_cpu():
        return attach_solve(a, b, w, l2, free_inverse(a, w, l2, _free(state)), x).astype(a.dtype)


def _values_of_held(lower, upper, state, x):
    low, high, zero = (mx.broadcast_to(v, x.shape) for v in (lower, upper, mx.array(0.0, mx.float64)))
    return mx.where(state < 0, low, mx.where(state > 0, high, zero))


def _moved_by_bounds(a, b, w, l2, lower, upper, state, x):
    with on_cpu():
        beta = _values_of_held(lower, upper, state, x)
        inverse = free_inverse(a, w, l2, _free(state))
        ridge = x - mx.stop_gradient(beta)
        part = attach_solve(a, residual(b, a, beta, mx.ones((1, 1), mx.float64)), w, l2, inverse, ridge)
        return (part + beta).astype(a.dtype)


def _either(a, b, w, l2, lower, upper, state, x, shortest):
    """Where the free columns F may be dependent, x = beta + (A F)^+ (b - A beta), and nothing is known in ``l2``."""
    with on_cpu():
        some = mx.broadcast_to(shortest > 0, x.shape)
        unique = _moved_by_bounds(a, b, w, l2, lower, upper, mx.where(some, -mx.ones_like(state), state), x)
        beta = _values_of_held(lower, upper, state, x)
        on = mx.where(some, _free(state), mx.zeros_like(x)).mT[..., None, :]
        rows = astype(a, mx.float64)[..., None, :, :] * on
        of_rows = None if w is None else astype(w, mx.float64)[..., None, :]
        rest = residual(b, a, beta, mx.ones((1, 1), mx.float64)).astype(mx.float64).mT[..., None]
        constant = None if of_rows is None else mx.stop_gradient(of_rows)
        f, _ = right_factor(mx.stop_gradient(rows), constant, method="svd")
        alone = x.mT[..., None] * on.mT
        several = beta + attach_solve(rows, rest, of_rows, None, f, alone)[..., 0].mT
        unknown = l2 * mx.where(some, mx.array(float("nan"), mx.float64), mx.zeros_like(x))
        return (mx.where(some, several, astype(unique, mx.float64)) + unknown).astype(a.dtype)


_from_zero = attach_like(_ridge_of_free, 4, 2, 2, 1, 2, 2, 2, 2)
_from_bounds = attach_like(_moved_by_bounds, 6, 2, 2, 1, 2, 2, 2, 2, 2, 2)
_from_either = attach_like(_either, 6, 2, 2, 1, 2, 2, 2, 2, 2, 2, 2)
