"""Derivative rules of least squares and of ridge regression, and of the adjoint for wide problems.

Notation as in ``pinv.py``. The solution is x = R A^H D b, where R is the truncated inverse B of K, or (K + L)^-1 with
L = diag(l2) for each target. No root of a weight is left in it: the gradient at weight 0 is finite and exact. With
z = R x_bar and rest = b - A x,

    b_bar   = D A z
    A_bar   = D (rest z^H - (A z) x^H + A (Q + Q^H)),         Q = S(B G + T^H),  T = x_bar x^H,  G = x_bar (A^H D b)^H
    w_bar_i = Re <rest_i, (A z)_i> + Re <a_i, (A (Q + Q^H))_i> / 2
    l2_bar  = -Re conj(z) o x
    dx      = R (A^H D db + A^H dD rest + dA^H D rest - A^H D dA x - dl2 o x + C A^H D b) + C^H x,    C = S(dK),

where Q = C = 0 unless a truncated B drops something. This is the rule of the pseudo-inverse for P_bar = x_bar b^H,
written with the residual: b z^H and A x z^H apart would cancel to its size and lose its digits.

A wide problem without weights is x = A w, w = B h, for the tall matrix A^H of the problem, here called A, and its
right-hand side h. With w_bar = A^H x_bar and h_bar = B w_bar,

    A_bar = (x_bar - A h_bar) w^H - x h_bar^H + A (Q + Q^H),    T = w_bar w^H,  G = w_bar h^H
    dx    = dA w + A dw,    dw = B (dh - dK w + C h) + C^H w.

Small matrices and solutions stay in float64 inside the rules and are rounded at the end.
"""

import mlx.core as mx

from .._factor.ridge_values import RidgeInverse
from .._factor.right_factor import RightFactor
from .._mlx.attach import attach
from .._mlx.centred import Matrix, rounded
from .._mlx.complex import embed, h, stack, unembed, unstack
from .._mlx.dtypes import real
from .._mlx.matmul import matmul
from .._mlx.place import large, on_cpu
from .._mlx.shapes import same_batch, total
from .products import (
    cross_product,
    gram_handle,
    gram_tangent,
    product,
    product_and_residual,
    real_dot,
    residual,
    weigh,
)
from .ridge import penalized_inverse
from .spectral import inverse, split, turn

# --- x = R A^H D b: A tall, or weights, or a penalty ----------------------------------------------


def attach_solve(
    a: Matrix, b: Matrix, w: mx.array | None, l2: mx.array | None, f: RightFactor | RidgeInverse, value: mx.array
) -> mx.array:
    """The solution x, stacked float64, with its derivative in ``a``, ``b``, ``w`` (..., m) and ``l2``.

    Args:
        a: ``(..., m, n)``.
        b: ``(..., m, k)``.
        w: Weights, or None.
        l2: The penalty in float64, ``(..., 1 or n, 1 or k)``; of embedded complex problems ``(..., 1 or 2n, 1 or k)``.
            None for the truncated inverse.
        f: R as constants: a :class:`RidgeInverse` if there is a penalty.
        value: x, stacked float64 at best, since residuals are taken from it; or in the dtype of ``a``.
    """
    return _solve(a, b, w, l2, f, stack(value))


def _inverse(k, l2, x, f):
    """``R x / r^2``."""
    return inverse(k, x, f) if l2 is None else penalized_inverse(k, l2, x, f)


def _solve_vjp(x, bar, a, b, w, l2, f):
    k, dtype, r = gram_handle(a, w, f), a.dtype, f.scale
    with on_cpu():
        zr = _inverse(k, l2, bar, f) * r
        # One product with twice the columns, [A z | r rest] [-x | z / r]^H: a pass over A_bar less.
        both = product_and_residual(a, zr * r, b, x, r)
        right = unstack(mx.concatenate(same_batch(-x, zr), axis=-1), dtype)
        l2_bar = None if l2 is None else -(zr * r) * x
        r = r.astype(real(dtype))
    am = None if f.full else _turned(a, b, w, k, x, bar, f)
    with large(dtype):
        az, rest = mx.split(both, 2, axis=-1)
        a_bar = matmul(both, h(right))
        w_bars = [] if w is None else [real_dot(rest / r, az)]
        if am is not None:
            y = am * r
            a_bar = a_bar + y
            w_bars += [] if w is None else [real_dot(rounded(a), y) / 2]
        return weigh(w, a_bar), weigh(w, az), total(w_bars) if w_bars else None, l2_bar


def _turned(a, b, w, k, x, bar, f: RightFactor):
    """``r A (Q + Q^H)``; in float64 if A is wide (and weighted), where it is no correction but half of the gradient."""
    exact, dtype = a.shape[-2] < a.shape[-1], a.dtype
    with on_cpu():
        right = cross_product(a, _weighed(w, b), f.r) * f.r
        wide = [embed(unstack(i, dtype)) if dtype == mx.complex64 else i for i in (bar, x, right)]
        t, g = wide[0] @ wide[1].mT, wide[0] @ wide[2].mT
        m = turn(k, t, g, f, mx.float64 if exact else real(a.dtype)) * f.r
        if exact:
            return product(a, stack(unembed(m, a.dtype)) if a.dtype == mx.complex64 else m, f.r)
        m = unembed(m, a.dtype)
    with large(a.dtype):
        return matmul(rounded(a), m)


def _weighed(w, b):
    with large(b.dtype):
        return weigh(w, rounded(b))


def _solve_jvp(x, tangents, a, b, w, l2, f):
    da, db, dw, dl2 = tangents
    r, parts = f.scale_of_gram, []
    rest = residual(b, a, x, r)
    if db is not None:
        parts.append(cross_product(a, _weighed(w, db), r))
    if dw is not None:
        parts.append(cross_product(a, _weighed(dw, rest), r))
    if da is not None:
        parts.append(cross_product(da, _weighed(w, rest), r))
    with on_cpu():
        if da is not None:
            parts.append(-cross_product(a, _weighed(w, product(da, x, r)), r))
        if dl2 is not None:
            parts.append(-dl2 * x * r)
        k, right, back = gram_handle(a, w, f), total(parts), f.scale * (f.scale / r)
        if f.full or (da is None and dw is None):
            return _inverse(k, l2, right, f) * back
        c = split(k, gram_tangent(da, dw, a, w, r), f)
        normal = cross_product(a, _weighed(w, b), r)
        return inverse(k, right + c @ normal, f) * back + c.mT @ x


_solve = attach(_solve_vjp, _solve_jvp, 2, 2, 1, 2, None, 2)


# --- The adjoint, for wide problems: x = A B h = (A^+)^H h with A tall ----------------------------


def _adjoint_vjp(x, bar, a, b, f: RightFactor):
    dtype = a.dtype
    k = gram_handle(a, None, f)
    with on_cpu():
        w_bar, hs = cross_product(a, bar, f.r), stack(b)
        w, h_bar, m = inverse(k, hs, f) * f.r, inverse(k, w_bar, f) * f.r, None
        if not f.full:
            wide = [embed(unstack(i, dtype)) if dtype == mx.complex64 else i for i in (w_bar, w, hs * f.r)]
            m = unembed(turn(k, wide[0] @ wide[1].mT, wide[0] @ wide[2].mT, f, real(dtype)) * f.r, dtype)
        w, narrow, r = unstack(w, dtype), unstack(h_bar, dtype), f.r.astype(real(dtype))
    rest = residual(bar, a, h_bar, f.r)
    with large(dtype):
        left, right = same_batch(rest * r, -x), same_batch(w, narrow)
        a_bar = matmul(mx.concatenate(left, axis=-1), h(mx.concatenate(right, axis=-1)))
        return a_bar if m is None else a_bar + matmul(a, m) * r, narrow


def _adjoint_jvp(x, tangents, a, b, f: RightFactor):
    da, db = tangents
    k = gram_handle(a, None, f)
    with on_cpu():
        hs = stack(b)
        w = inverse(k, hs, f)
        parts = [] if db is None else [inverse(k, stack(db), f)]
        if da is not None:
            dk = gram_tangent(da, None, a, None, f.r)
            c = split(k, dk, f)
            parts.append(inverse(k, c @ hs - dk @ w, f) + c.mT @ w)
        moved = product(a, total(parts) * f.r, f.r)
        still = None if da is None else product(da, w * f.r, f.r)
        r = f.r.astype(real(a.dtype))
    with large(a.dtype):
        return (moved if still is None else still + moved) * r


#: ``attach_adjoint(a, h, f, value)``: A B h with its derivative.
attach_adjoint = attach(_adjoint_vjp, _adjoint_jvp, 2, 2, None, 2)
