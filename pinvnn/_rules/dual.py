"""Ridge regression in its dual form, real, float64, of every order: y = M b, M = (A A^T + l2 D^-1)^-1, W = A^T y.

With D = diag(w) and u = M y_bar, and g = D^-1 y, h = D^-1 u:

    b_bar = u,  A_bar = -(u (A^T y)^T + y (A^T u)^T),  w_bar_i = sum_t l2_t g_it h_it,  l2_bar_t = -sum_i u_it g_it
    dy    = M (db - dA A^T y - A dA^T y - dl2 g) + v - M A A^T v,  v = dD g

For small weights, 0 included, g = (b - A A^T y) / l2 has more digits. The primal rules in ``ridge.py``, which contain
R = (A^T D A + l2 I)^-1, would lose cond(A)^2 digits of the gradient here.
"""

import mlx.core as mx

from .._factor.ridge_values import dual_value
from .._factor.right_factor import RightFactor
from .._mlx.attach import attach
from .._mlx.place import on_cpu
from .._mlx.shapes import total

# Weights below this part of the largest one count as small.
_SMALL = 1e-6


def dual_solution(a: mx.array, b: mx.array, w: mx.array | None, l2: mx.array, f: RightFactor) -> mx.array:
    """``W`` (..., n, k) for weights ``(..., m)`` or None."""
    with on_cpu():
        return a.mT @ _dual(a, w, l2, b, f)


def _dual(a, w, l2, x, f: RightFactor):
    return _attached(a, w, l2, x, f, dual_value(f, a, w, l2, x))


def _over_weights(y, ay, a, w, l2, x):
    """D^-1 y; ``ay`` is A^T y."""
    if w is None:
        return y
    w = w[..., None]
    large = w > _SMALL * mx.max(w, axis=-2, keepdims=True)
    return mx.where(large, y / mx.where(large, w, mx.ones_like(w)), (x - a @ ay) / l2)


def _vjp(y, bar, a, w, l2, x, f: RightFactor):
    u = _dual(a, w, l2, bar, f)
    with on_cpu():
        ay, au = a.mT @ y, a.mT @ u
        a_bar = -(u @ ay.mT + y @ au.mT)
        g, h = _over_weights(y, ay, a, w, l2, x), _over_weights(u, au, a, w, l2, bar)
        w_bar = None if w is None else mx.sum(l2 * g * h, axis=-1)
        return a_bar, w_bar, -mx.sum(u * g, axis=-2, keepdims=True), u


def _jvp(y, tangents, a, w, l2, x, f: RightFactor):
    da, dw, dl, dx = tangents
    with on_cpu():
        ay = a.mT @ y
        g = _over_weights(y, ay, a, w, l2, x)
        v = None if dw is None else dw[..., None] * g
        parts = [] if dx is None else [dx]
        parts += [] if da is None else [-(da @ ay) - a @ (da.mT @ y)]
        parts += [] if dl is None else [-dl * g]
        parts += [] if v is None else [-(a @ (a.mT @ v))]
        moved = _dual(a, w, l2, total(parts), f)
        return moved if v is None else moved + v


_attached = attach(_vjp, _jvp, 2, 1, 2, 2, None, 2)
