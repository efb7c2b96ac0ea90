"""Derivative rules of the large problems: pure functions of the inputs, the attached result and the hints.

Notation as in ``_spectral`` and docs/math.md: A is m x n and tall, P = A^+ (n x m), D = diag(w), K = A^H D A,
B = K^+ truncated, x = B A^H D b, z = B x_bar; ``out`` is the result with its derivative attached. Golub and Pereyra
1973, Eq. 4.12 (doi 10.1137/0710036), reads, for a constant rank,

    dP    = -P dA P + B dA^H (I - A P) + (I - P A) dA^H P^H P
    A_bar = -P^H G P^H + (I - A P) G^H B + P^H P G^H (I - P A),    G = P_bar.

Since P = B A^H, every term but G^H B has A on its left, and all of them gather in one n x n matrix:

    A_bar = G^H B + A M,    M = -(B T + T^H B) + D + D^H,  D = S(B G A + T^H),  T = G P^H,

which is the exact derivative of the truncated pseudo-inverse too (``_spectral.pull_back``), costs four products of size
m n^2, and never forms an m x m matrix. lstsq is the same rule with G = x_bar b^H, of rank k, and T = x_bar x^H. There
the terms without D are better written with the residual, whose digits b z^H - A x z^H would lose:

    A_bar = (b - A x) z^H - (A z) x^H + A (D + D^H).

The small factors belong to r A (r a power of two), which is where r comes from; it is split over both sides of a
product so that none overflows at scales of 1e30. Small solutions are float64 until they leave this file.
"""

import mlx.core as mx

from ._attach import attach, attach_like
from ._blocks import embed, h, same_batch, stack, unembed, unstack
from ._dtypes import real
from ._factor import CORES, Factor
from ._place import astype, large, on_cpu
from ._products import (
    cross_product,
    gram,
    gram_tangent,
    product,
    product_and_residual,
    real_dot,
    residual,
    weigh,
)
from ._spectral import inverse, inverse_matrix, pull_back, split, split_weight, turn
from ._values import reciprocal


def _t(x):
    return mx.swapaxes(x, -1, -2)


# --- Pseudo-inverse -------------------------------------------------------------------------------


def _pinv_vjp(p, g, a, *hints):
    f = Factor(*hints)
    k, r = gram(a, None, f), astype(f.r, real(a.dtype))
    with on_cpu():
        b = unembed(inverse_matrix(k, f) * f.r, a.dtype)
    with large(a.dtype):
        t = g @ h(p)
        bt = b @ t
        m = -(bt + h(bt)) if f.full else _truncated(k, t, (g * r) @ a, f, a.dtype)
        return (_sum_of_products(h(g), b, a, m) * r,)


def _truncated(k, t, ga, f: Factor, dtype):
    """M / r from T and G A where singular values may have been dropped."""
    with on_cpu():
        return unembed(pull_back(k, embed(t), embed(ga) * f.r, f, real(dtype)) * f.r, dtype)


def _sum_of_products(a, b, c, d):
    """``a b + c d``, the second product summed onto the first."""
    if a.dtype == mx.complex64 or a.ndim > 2:
        return a @ b + c @ d
    return mx.addmm(a @ b, c, d)


def _pinv_jvp(p, tangents, a, *hints):
    # dP = B dA^H + (C^H - B dK) P + B C A^H
    f = Factor(*hints)
    da = tangents[0]
    k, r = gram(a, None, f), astype(f.r, real(a.dtype))
    dk = gram_tangent(da, None, a, None, f.r)
    with on_cpu():
        c = split(k, dk, f)
        bc = unembed(inverse(k, c, f) * f.r, a.dtype)
        b = unembed(inverse_matrix(k, f) * f.r, a.dtype)
        left = unembed(_t(c) - inverse(k, dk, f), a.dtype)
    with large(a.dtype):
        return (b @ h(da) + bc @ h(a)) * r + left @ p


def _pinv_vjp_by_vectors(p, g, a, *hints):
    # With the left vectors U = A V / s at hand, in the bases U and V: of Y = V^T G and Z = Y U all is read off
    # (T = Z / s, G A = Z s), and A_bar = (Y^T / s^2 + U s M) V^T. No digit is lost to cond(A).
    *hints, u = hints
    f = Factor(*hints)
    with on_cpu():
        beta, weight = reciprocal(f, 2)[..., :, None], split_weight(f)
        narrow = (f.v, beta, weight, f.s[..., None, :], reciprocal(f, 1)[..., None, :], f.r)
        v, beta, weight, s, over_s, r = (x.astype(a.dtype) for x in narrow)
    with large(a.dtype):
        y = _t(v) @ (g * r)
        z = y @ u
        t = z * over_s
        m = weight * (beta * (z * s) + _t(t)) - beta * t
        inner = _t(y) * _t(beta) + u @ (_t(s) * (m + _t(m)))
        value = (inner @ _t(v)) * r
    return (_as_pinv_vjp(p, g, a, *hints, value),)


_as_pinv_vjp = attach_like(lambda *args: _pinv_vjp(*args)[0], 3, (2, 2, 2, *CORES, 2))
attach_pinv = attach(_pinv_vjp, _pinv_jvp, (2, *CORES, 2))
attach_pinv_by_vectors = attach(
    _pinv_vjp_by_vectors, lambda p, tangents, a, *hints: _pinv_jvp(p, tangents, a, *hints[:-1]), (2, *CORES, 2, 2)
)


# --- Least squares, A tall (or weighted): x = B A^H D b -------------------------------------------


def _solve_bars(x, bar, a, b, w, f: Factor):
    # With z = B x_bar and Y = A (D + D^H):
    #   A_bar = D (rest z^H - (A z) x^H + Y),  b_bar = D A z,  w_bar_i = Re <rest_i, (A z)_i> + Re <a_i, Y_i> / 2
    # sqrt(w) never enters, so that the gradient at weight 0 is finite and exact.
    k, dtype = gram(a, w, f), a.dtype
    with on_cpu():
        zr = inverse(k, bar, f) * f.r
        # One product with twice the columns, [A z | r rest] [-x | z / r]^H: a pass over A_bar less.
        both = product_and_residual(a, zr * f.r, b, x, f.r)
        right = unstack(mx.concatenate(same_batch(-x, zr), axis=-1), dtype)
        r = f.r.astype(real(dtype))
    am = None if f.full else _turned(a, b, w, k, x, bar, f)
    with large(dtype):
        az, rest = mx.split(both, 2, axis=-1)
        a_bar, y = both @ h(right), None if am is None else am * r
        bars = weigh(w, a_bar if y is None else a_bar + y), weigh(w, az)
        if w is None:
            return bars
        w_bar = real_dot(rest / r, az)
        return *bars, w_bar if y is None else w_bar + real_dot(a, y) / 2


def _turned(a, b, w, k, x, bar, f: Factor):
    """``r A (D + D^T)``; in float64 if A is wide (and weighted), where it is no correction but half of the gradient."""
    exact, dtype = a.shape[-2] < a.shape[-1], a.dtype
    with on_cpu():
        right = cross_product(a, _weighed(w, b), f.r) * f.r
        wide = [embed(unstack(i, dtype)) if dtype == mx.complex64 else i for i in (bar, x, right)]
        t, g = wide[0] @ _t(wide[1]), wide[0] @ _t(wide[2])
        m = turn(k, t, g, f, mx.float64 if exact else real(a.dtype)) * f.r
        if exact:
            return product(a, stack(unembed(m, a.dtype)) if a.dtype == mx.complex64 else m, f.r)
        m = unembed(m, a.dtype)
    with large(a.dtype):
        return a @ m


def _weighed(w, b):
    with large(b.dtype):
        return weigh(w, b)


def _solve_tangent(x, tangents, a, b, w, f: Factor):
    # dx = B (A^H D db + A^H dD (b - A x) + dA^H D (b - A x) - A^H D dA x + C A^H D b) + C^H x
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
        k, right = gram(a, w, f), sum(parts)
        if da is None and dw is None:
            return inverse(k, right, f) * f.r
        c = split(k, gram_tangent(da, dw, a, w, f.r), f)
        normal = cross_product(a, _weighed(w, b), f.r)
        return inverse(k, right + c @ normal, f) * f.r + _t(c) @ x


_solve = attach(
    lambda x, bar, a, b, *hints: _solve_bars(x, bar, a, b, None, Factor(*hints)),
    lambda x, d, a, b, *hints: _solve_tangent(x, d[:2], a, b, None, Factor(*hints)),
    (2, 2, *CORES, 2),
)
_weighted_solve = attach(
    lambda x, bar, a, b, w, *hints: _solve_bars(x, bar, a, b, w, Factor(*hints)),
    lambda x, d, a, b, w, *hints: _solve_tangent(x, d[:3], a, b, w, Factor(*hints)),
    (2, 2, 1, *CORES, 2),
)


def attach_solve(a, b, w, f: Factor, value):
    """``value`` (..., n, k), in the dtype of ``a`` or stacked float64, as the solution x; in the dtype of ``a``."""
    value = stack(value)
    x = _solve(a, b, *f, value) if w is None else _weighted_solve(a, b, w, *f, value)
    return unstack(x, a.dtype)


# --- The adjoint, for wide problems: x = A B h = (A^+)^H h with A tall ----------------------------


def _adjoint_vjp(x, bar, a, b, *hints):
    # w = B h, w_bar = A^H x_bar, h_bar = B w_bar:  A_bar = (x_bar - A h_bar) w^H - x h_bar^H + A (D + D^H)
    # with T = w_bar w^H and G = w_bar h^H.
    f, dtype = Factor(*hints), a.dtype
    k = gram(a, None, f)
    with on_cpu():
        w_bar, hs = cross_product(a, bar, f.r), stack(b)
        w, h_bar, m = inverse(k, hs, f) * f.r, inverse(k, w_bar, f) * f.r, None
        if not f.full:
            wide = [embed(unstack(i, dtype)) if dtype == mx.complex64 else i for i in (w_bar, w, hs * f.r)]
            m = unembed(turn(k, wide[0] @ _t(wide[1]), wide[0] @ _t(wide[2]), f, real(dtype)) * f.r, dtype)
        w, narrow, r = unstack(w, dtype), unstack(h_bar, dtype), f.r.astype(real(dtype))
    rest = residual(bar, a, h_bar, f.r)
    with large(dtype):
        left, right = same_batch(rest * r, -x), same_batch(w, narrow)
        a_bar = mx.concatenate(left, axis=-1) @ h(mx.concatenate(right, axis=-1))
        return a_bar if m is None else a_bar + (a @ m) * r, narrow


def _adjoint_jvp(x, tangents, a, b, *hints):
    # dx = dA w + A dw,  dw = B (dh - dK w + C h) + C^H w
    f = Factor(*hints)
    da, db = tangents[:2]
    k = gram(a, None, f)
    with on_cpu():
        hs = stack(b)
        w = inverse(k, hs, f)
        parts = [] if db is None else [inverse(k, stack(db), f)]
        if da is not None:
            dk = gram_tangent(da, None, a, None, f.r)
            c = split(k, dk, f)
            parts.append(inverse(k, c @ hs - dk @ w, f) + _t(c) @ w)
        moved = product(a, sum(parts) * f.r, f.r)
        still = None if da is None else product(da, w * f.r, f.r)
        r = f.r.astype(real(a.dtype))
    with large(a.dtype):
        return (moved if still is None else still + moved) * r


attach_adjoint = attach(_adjoint_vjp, _adjoint_jvp, (2, 2, *CORES, 2))
