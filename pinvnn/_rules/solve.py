"""Derivative rules of least squares: x = (D^(1/2) A)^+ D^(1/2) b for tall A, and its adjoint for wide problems.

Notation as in ``pinv.py``. x = B A^H D b, in which no root of a weight is left: the gradient at weight 0 is finite and
exact. With z = B x_bar,

    b_bar   = D A z
    A_bar   = D ((b - A x) z^H - (A z) x^H + A (Q + Q^H)),    Q = S(B G + T^H),  T = x_bar x^H,  G = x_bar (A^H D b)^H
    w_bar_i = Re <(b - A x)_i, (A z)_i> + Re <a_i, (A (Q + Q^H))_i> / 2
    dx      = B (A^H D db + A^H dD (b - A x) + dA^H D (b - A x) - A^H D dA x + C A^H D b) + C^H x,    C = S(dK).

This is the rule of the pseudo-inverse for P_bar = x_bar b^H, written with the residual: b z^H and A x z^H apart would
cancel to its size and lose its digits. At full column rank Q = C = 0.

A wide problem without weights is x = A w, w = B h, for the tall matrix A^H of the problem, here called A, and its
right-hand side h. With w_bar = A^H x_bar and h_bar = B w_bar,

    A_bar = (x_bar - A h_bar) w^H - x h_bar^H + A (Q + Q^H),    T = w_bar w^H,  G = w_bar h^H
    dx    = dA w + A dw,    dw = B (dh - dK w + C h) + C^H w.

Small matrices and solutions stay in float64 inside the rules and are rounded at the end.
"""

import mlx.core as mx

from .._factor.right_factor import CORES, RightFactor
from .._mlx.attach import attach
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
from .spectral import inverse, split, turn

# --- Least squares, A tall (or weighted): x = B A^H D b -------------------------------------------


def _solve_bars(x, bar, a, b, w, f: RightFactor):
    k, dtype = gram_handle(a, w, f), a.dtype
    with on_cpu():
        zr = inverse(k, bar, f) * f.r
        # One product with twice the columns, [A z | r rest] [-x | z / r]^H: a pass over A_bar less.
        both = product_and_residual(a, zr * f.r, b, x, f.r)
        right = unstack(mx.concatenate(same_batch(-x, zr), axis=-1), dtype)
        r = f.r.astype(real(dtype))
    am = None if f.full else _turned(a, b, w, k, x, bar, f)
    with large(dtype):
        az, rest = mx.split(both, 2, axis=-1)
        a_bar, y = matmul(both, h(right)), None if am is None else am * r
        bars = weigh(w, a_bar if y is None else a_bar + y), weigh(w, az)
        if w is None:
            return bars
        w_bar = real_dot(rest / r, az)
        return *bars, w_bar if y is None else w_bar + real_dot(a, y) / 2


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
        return matmul(a, m)


def _weighed(w, b):
    with large(b.dtype):
        return weigh(w, b)


def _solve_tangent(x, tangents, a, b, w, f: RightFactor):
    da, db, dw = (*tangents, None)[:3]
    rest, parts = residual(b, a, x, f.r), []
    if db is not None:
        parts.append(cross_product(a, _weighed(w, db), f.r))
    if dw is not None:
        parts.append(cross_product(a, _weighed(dw, rest), f.r))
    if da is not None:
        parts.append(cross_product(da, _weighed(w, rest), f.r))
        parts.append(cross_product(a, _weighed(w, -product(da, x, f.r)), f.r))
    with on_cpu():
        k, right = gram_handle(a, w, f), total(parts)
        if da is None and dw is None:
            return inverse(k, right, f) * f.r
        c = split(k, gram_tangent(da, dw, a, w, f.r), f)
        normal = cross_product(a, _weighed(w, b), f.r)
        return inverse(k, right + c @ normal, f) * f.r + c.mT @ x


_solve = attach(
    lambda x, bar, a, b, *hints: _solve_bars(x, bar, a, b, None, RightFactor(*hints)),
    lambda x, d, a, b, *hints: _solve_tangent(x, d[:2], a, b, None, RightFactor(*hints)),
    (2, 2, *CORES, 2),
)
_weighted_solve = attach(
    lambda x, bar, a, b, w, *hints: _solve_bars(x, bar, a, b, w, RightFactor(*hints)),
    lambda x, d, a, b, w, *hints: _solve_tangent(x, d[:3], a, b, w, RightFactor(*hints)),
    (2, 2, 1, *CORES, 2),
)


def attach_solve(a, b, w, f: RightFactor, value):
    """The solution x with its derivative, stacked float64; ``value`` is x in the dtype of ``a``, or so already."""
    value = stack(value)
    return _solve(a, b, *f, value) if w is None else _weighted_solve(a, b, w, *f, value)


# --- The adjoint, for wide problems: x = A B h = (A^+)^H h with A tall ----------------------------


def _adjoint_vjp(x, bar, a, b, *hints):
    f, dtype = RightFactor(*hints), a.dtype
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


def _adjoint_jvp(x, tangents, a, b, *hints):
    f = RightFactor(*hints)
    da, db = tangents[:2]
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


attach_adjoint = attach(_adjoint_vjp, _adjoint_jvp, (2, 2, *CORES, 2))
