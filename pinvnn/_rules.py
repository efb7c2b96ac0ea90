"""Derivative rules of the large problems: pure functions of the inputs, the attached result and the hints.

Notation as in ``_spectral`` and docs/math.md: A is m x n and tall, P = A^+ (n x m), D = diag(w), K = A^H D A,
B = K^+ truncated, x = B A^H D b, z = B x_bar; ``out`` is the result with its derivative attached. Golub and Pereyra
1973, Eq. 4.12 (doi 10.1137/0710036), reads, for a constant rank,

    dP    = -P dA P + B dA^H (I - A P) + (I - P A) dA^H P^H P
    A_bar = -P^H G P^H + (I - A P) G^H B + P^H P G^H (I - P A),    G = P_bar.

Since P = B A^H, every term but G^H B has A on its left, and all of them gather in one n x n matrix:

    A_bar = G^H B + A M,    M = -(B T + T^H B) + D + D^H,  D = S(B G A + T^H),  T = G P^H,

which is the exact derivative of the truncated pseudo-inverse too (``_spectral.pull_back``), costs four products of size
m n^2, and never forms an m x m matrix. lstsq is the same rule with G = x_bar b^H, of rank k: T = x_bar x^H. The small
factors belong to r A (r a power of two), which is where r comes from; it is split over both sides of a product so that
none overflows at scales of 1e30.
"""

import mlx.core as mx

from ._attach import attach
from ._dtypes import real
from ._factor import CORES, Factor, embed, h, stack, unembed, unstack
from ._place import large, on_cpu
from ._spectral import inverse, pull_back, split


def _t(x):
    return mx.swapaxes(x, -1, -2)


def _real_dot(x, y):
    """Re <x, y> of each row."""
    return mx.sum(mx.real(mx.conjugate(x) * y) if x.dtype == mx.complex64 else x * y, axis=-1)


def _weigh(w, x):
    return x if w is None else w[..., None] * x


def _scale(f: Factor, dtype):
    with on_cpu():
        return f.r.astype(real(dtype))


# --- The Gram matrix: a handle --------------------------------------------------------------------


def gram(a, w, f: Factor):
    """K = r^2 A^H D A as a handle for the functions of ``_spectral``: it carries derivatives, its value is not read."""
    with on_cpu():
        handle = mx.zeros_like(f.v)
    return _gram(a, f.r, handle) if w is None else _weighted_gram(a, w, f.r, handle)


def _gram_bars(k_bar, a, w, r):
    # A_bar = D A (K_bar + K_bar^H),  w_bar_i = Re <a_i, (A M)_i> / 2
    with on_cpu():
        m = k_bar + _t(k_bar)
        if a.dtype == mx.complex64:  # the adjoint of the embedding, twice its inverse on what it produces
            (rr, ri), (ir, ii) = (mx.split(x, 2, axis=-1) for x in mx.split(m, 2, axis=-2))
            m = mx.concatenate([rr + ii, ir - ri], axis=-2)
        m = unstack(m * r, a.dtype)
        r = r.astype(real(a.dtype))
    with large(a.dtype):
        am = (a @ m) * r
        return (_weigh(w, am),) if w is None else (_weigh(w, am), _real_dot(a, am) / 2)


def _gram_tangent(da, dw, a, w, r):
    """The tangent dK = r^2 (dA^H D A + A^H D dA + A^H dD A), embedded."""
    with on_cpu():
        r = r.astype(real(a.dtype))
    with large(a.dtype):
        parts, a = [], a * r
        if da is not None:
            half = h(da * r) @ _weigh(w, a)
            parts.append(half + h(half))
        if dw is not None:
            parts.append(h(a) @ _weigh(dw, a))
        return embed(parts[0] if len(parts) == 1 else parts[0] + parts[1])


_gram = attach(
    lambda out, bar, a, r: _gram_bars(bar, a, None, r),
    lambda out, d, a, r: _gram_tangent(d[0], None, a, None, r),
    (2, 2, 2),
)
_weighted_gram = attach(
    lambda out, bar, a, w, r: _gram_bars(bar, a, w, r),
    lambda out, d, a, w, r: _gram_tangent(d[0], d[1], a, w, r),
    (2, 1, 2, 2),
)


# --- Pseudo-inverse -------------------------------------------------------------------------------


def _pinv_vjp(p, g, a, *hints):
    f = Factor(*hints)
    k = gram(a, None, f)
    with large(a.dtype):
        t, ga = g @ h(p), (g * _scale(f, a.dtype)) @ a
    with on_cpu():
        m = pull_back(k, embed(t), embed(ga) * f.r, f, real(a.dtype))
        b = inverse(k, mx.broadcast_to(mx.eye(m.shape[-1], dtype=mx.float64), m.shape), f)
        b, m = unembed(b * f.r, a.dtype), unembed(m * f.r, a.dtype)
    with large(a.dtype):
        return ((h(g) @ b + a @ m) * _scale(f, a.dtype),)


def _pinv_jvp(p, tangents, a, *hints):
    # dP = B dA^H + (C^H - B dK) P + B C A^H
    f = Factor(*hints)
    da = tangents[0]
    k = gram(a, None, f)
    dk = _gram_tangent(da, None, a, None, f.r)
    with on_cpu():
        c = split(k, dk, f)
        bc = unembed(inverse(k, c, f) * f.r, a.dtype)
        b = inverse(k, mx.broadcast_to(mx.eye(c.shape[-1], dtype=mx.float64), c.shape), f)
        b, left = unembed(b * f.r, a.dtype), unembed(_t(c) - inverse(k, dk, f), a.dtype)
    with large(a.dtype):
        return (b @ h(da) + bc @ h(a)) * _scale(f, a.dtype) + left @ p


attach_pinv = attach(_pinv_vjp, _pinv_jvp, (2, *CORES, 2))


# --- Least squares, A tall (or weighted): x = B A^H D b -------------------------------------------


def _solve_bars(x, bar, a, b, w, f: Factor):
    # With z = B x_bar and Y = b z^H + A M:
    #   A_bar = D Y,  b_bar = D A z,  w_bar_i = (Re <a_i, Y_i> + Re <b_i, (A z)_i>) / 2
    # sqrt(w) never enters, so that the gradient at weight 0 is finite and exact.
    k = gram(a, w, f)
    with large(a.dtype):
        right = h(a) @ _weigh(w, b * _scale(f, a.dtype))
    with on_cpu():
        t, g = embed(bar) @ _t(embed(x)), embed(bar) @ _t(embed(right)) * f.r
        m = unembed(pull_back(k, t, g, f, real(a.dtype)) * f.r, a.dtype)
        z = unstack(inverse(k, stack(bar), f) * f.r, a.dtype)
    with large(a.dtype):
        r = _scale(f, a.dtype)
        y, az = (b @ h(z) + a @ m) * r, (a @ z) * r
        bars = _weigh(w, y), _weigh(w, az)
        return bars if w is None else (*bars, (_real_dot(a, y) + _real_dot(b, az)) / 2)


def _solve_tangent(x, tangents, a, b, w, f: Factor):
    # dx = B (A^H D db + A^H dD (b - A x) + dA^H D (b - A x) - A^H D dA x + C A^H D b) + C^H x
    da, db, dw = (*tangents, None)[:3]
    with large(a.dtype):
        rest, parts, r = b - a @ x, [], _scale(f, a.dtype)
        ah = h(a * r)
        if db is not None:
            parts.append(ah @ _weigh(w, db))
        if dw is not None:
            parts.append(ah @ _weigh(dw, rest))
        if da is not None:
            parts.append(h(da * r) @ _weigh(w, rest) - ah @ _weigh(w, da @ x))
        normal = ah @ _weigh(w, b)
    with on_cpu():
        k, right = gram(a, w, f), sum(map(stack, parts))
        if da is None and dw is None:
            return unstack(inverse(k, right, f) * f.r, a.dtype)
        c = split(k, _gram_tangent(da, dw, a, w, f.r), f)
        dx = inverse(k, right + c @ stack(normal), f) * f.r + _t(c) @ stack(x)
        return unstack(dx, a.dtype)


attach_solve = attach(
    lambda x, bar, a, b, *hints: _solve_bars(x, bar, a, b, None, Factor(*hints)),
    lambda x, d, a, b, *hints: _solve_tangent(x, d[:2], a, b, None, Factor(*hints)),
    (2, 2, *CORES, 2),
)
attach_weighted_solve = attach(
    lambda x, bar, a, b, w, *hints: _solve_bars(x, bar, a, b, w, Factor(*hints)),
    lambda x, d, a, b, w, *hints: _solve_tangent(x, d[:3], a, b, w, Factor(*hints)),
    (2, 2, 1, *CORES, 2),
)


# --- The adjoint, for wide problems: x = A B h = (A^+)^H h with A tall ----------------------------


def _adjoint_vjp(x, bar, a, b, *hints):
    # w = B h, w_bar = A^H x_bar:  h_bar = B w_bar,  A_bar = x_bar w^H + A M with T = w_bar w^H, G = w_bar h^H.
    f = Factor(*hints)
    k = gram(a, None, f)
    with large(a.dtype):
        w_bar = h(a) @ bar
    with on_cpu():
        w = inverse(k, stack(b), f)
        t = embed(w_bar) @ _t(embed(unstack(w, a.dtype))) * f.r * f.r
        g = embed(w_bar) @ _t(embed(b)) * f.r * f.r
        m = unembed(pull_back(k, t, g, f, real(a.dtype)) * f.r, a.dtype)
        h_bar = unstack(inverse(k, stack(w_bar), f) * f.r * f.r, a.dtype)
        w = unstack(w * f.r, a.dtype)
    with large(a.dtype):
        return (bar @ h(w) + a @ m) * _scale(f, a.dtype), h_bar


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
            dk = _gram_tangent(da, None, a, None, f.r)
            c = split(k, dk, f)
            parts.append(inverse(k, c @ hs - dk @ w, f) + _t(c) @ w)
        w, dw = unstack(w * f.r, a.dtype), unstack(sum(parts) * f.r, a.dtype)
    with large(a.dtype):
        moved = a @ dw if da is None else da @ w + a @ dw
        return moved * _scale(f, a.dtype)


attach_adjoint = attach(_adjoint_vjp, _adjoint_jvp, (2, 2, *CORES, 2))
