"""Derivative rules of ridge regression, real and at every order.

W = R A^T D b with R_t = (A^T D A + L_t)^-1 for each target t, D = diag(w), L_t = diag(l2_t); r = b - A W, z = R W_bar:

    A_bar = D (r z^T - (A z) W^T),  b_bar = D A z,  w_bar_i = sum_t r_it (A z)_it,  l2_bar = -z o W
    dW    = R (dA^T D r - A^T D dA W + A^T dD r + A^T D db - dL o W)

(l2_bar summed over the dimensions along which l2 broadcasts.) ``normal`` is R h and closes the rules:

    q = R h, u = R q_bar:  h_bar = u,  A_bar = -D ((A q) u^T + (A u) q^T),  w_bar = -sum_t (A u) o (A q),
    l2_bar = -u o q

No sqrt(w) appears, so that the gradient at weight 0 is finite and exact. Complex problems arrive as real ones
([[Re, -Im], [Im, Re]]), and so do dual ones in float64.
"""

from typing import NamedTuple

import mlx.core as mx

from . import _dtypes
from ._attach import attach
from ._blocks import cross, same_batch
from ._blocks import residual as exact_residual
from ._factor import CORES, Factor
from ._place import astype, large, on_cpu
from ._products import product_and_residual, residual


class Inverse(NamedTuple):
    """R as constants, in one of three routes.

    "shared": ``V diag(1 / (s^2 + r^2 l2_t)) V^T r^2`` with the V of A, for l2 that is the same for all features.
    "dual": the same with the V of A^T, for l2 > 0.
    "feature": ``V diag(1 / s^2) V^T r^2`` with a V of A^T D A + L_t itself, ``(..., 1 or k, n, n)``.
    """

    f: Factor
    route: str


class Known(NamedTuple):
    """What a factorization leaves behind for the solution: left singular vectors of an SVD, A^T D b, or neither."""

    left: mx.array | None = None
    rhs: mx.array | None = None


def _t(x):
    return mx.swapaxes(x, -1, -2)


def _denominator(inverse: Inverse, l2, shape):
    """1 / (s^2 + r^2 l2), ``(..., n, k)``; NaN for a target whose system is singular to working precision."""
    f = inverse.f
    if f.full:
        return mx.array(1.0, mx.float64)
    s, nan = f.s[..., None], mx.array(float("nan"), mx.float64)
    if inverse.route == "feature":
        return mx.where(f.kept[..., None] > 0, 1 / (s * s), nan)
    l2 = mx.where(l2 < 0, nan, l2) * f.r * f.r
    noise = 4 * shape[-1] * _dtypes.eps(mx.float64) * s[..., :1, :] ** 2
    singular = mx.any(f.kept == 0, axis=-1)[..., None, None] & (l2 <= noise)
    if inverse.route == "dual":
        singular = singular | (l2 <= 0)  # m < n: without a penalty there is no unique solution
    return mx.where(singular, nan, 1 / (s * s + l2))


def _vectors(inverse: Inverse, d, x):
    """``V diag(d) V^T x``, or for targets with matrices of their own that of each column."""
    v = inverse.f.v
    if inverse.route == "feature" and v.shape[-3] == 1:
        v, d = v[..., 0, :, :], d if d.ndim == 0 else d[..., 0, :, :]
    elif inverse.route == "feature":
        return _t((v @ (d * (_t(v) @ _t(x)[..., None])))[..., 0])
    y = _t(v) @ x
    return v @ (y if inverse.f.full else d * y)


def apply(inverse: Inverse, a, w, l2, x):
    """The constant ``R x / r^2``, float64 ``(..., n, k)``."""
    with on_cpu():
        f, d = inverse.f, _denominator(inverse, l2, a.shape)
        if inverse.route != "dual":
            return _vectors(inverse, d, x)
        root = mx.sqrt(w)[..., None] * f.r
        inner = f.v @ (d * (_t(f.v) @ (root * (a @ x))))
        return (x - _t(a) @ (root * inner)) / (l2 * f.r * f.r)


def solution(inverse: Inverse, a, b, w, l2, known=None):
    """The constant ``W``, float64."""
    left, rhs = known or Known()
    with on_cpu():
        f = inverse.f
        d = _denominator(inverse, l2, a.shape)
        root = mx.array(1.0, mx.float64) if w is None else mx.sqrt(w.astype(mx.float64))[..., None]
        if inverse.route == "dual":
            inner = f.v @ (d * (_t(f.v) @ (root * b))) * f.r * f.r
            return _t(a) @ (root * inner)
        r = _r(inverse)
        if left is None:
            x = _vectors(inverse, d, cross(a, b, w) if rhs is None else rhs) * (r * r)
            if f.full and a.dtype == mx.float64:  # once more, for what the right-hand side has lost to its sums
                x = x + _vectors(inverse, d, cross(a, exact_residual(a, b, x), w) - l2 * x) * (r * r)
            return x
        right, u = root * b, left[..., : a.shape[-2], :]
        if inverse.route == "feature":
            return _t((f.v @ (d * f.s[..., None] * (_t(u) @ _t(right)[..., None])))[..., 0]) * r
        return f.v @ (d * f.s[..., None] * (_t(u) @ right)) * r


def normal(a, w, l2, x, inverse: Inverse):
    """``R x / r^2`` with its derivatives; ``x`` and the result are float64.

    The power of two r = 1 / |A| stays apart: R x is of the size of x / |A|^2, which no dtype holds at extreme scales.
    """
    return _RULES[inverse.route][0](a, w, l2, x, *inverse.f, apply(inverse, a, w, l2, x))


def attach_ridge(a, b, w, l2, inverse: Inverse, value):
    """``value`` with the derivatives of ridge in ``a``, ``b``, ``w`` (..., 1 or m) and ``l2`` (..., 1 or n, 1 or k).

    ``value`` is float64 at best: residuals are taken from it before it is rounded to the dtype of ``a``.
    """
    return astype(_RULES[inverse.route][1](a, b, w, l2, *inverse.f, astype(value, mx.float64)), a.dtype)


def _r(inverse: Inverse):
    """The power of two of each target's matrix, ``(..., 1, 1 or k)``."""
    return _t(inverse.f.r[..., 0]) if inverse.route == "feature" else inverse.f.r


def _build(route):
    def inverse(hints):
        return Inverse(Factor(*hints), route)

    def normal_vjp(q, bar, a, w, l2, x, *hints):
        u = normal(a, w, l2, bar, inverse(hints))
        with on_cpu():
            r = _r(inverse(hints))
            ur, qr = u * r, q * r
            l2_bar = -ur * qr
        ur, qr = astype(ur, a.dtype), astype(qr, a.dtype)
        with large(a.dtype):
            au, aq, weight = a @ ur, a @ qr, w[..., None]
            a_bar = -((weight * aq) @ _t(ur) + (weight * au) @ _t(qr))
            return a_bar, -_sum_to(au * aq, w), l2_bar, u

    def normal_jvp(q, tangents, a, w, l2, x, *hints):
        da, dw, dl, dx = tangents[:4]
        with on_cpu():
            r = _r(inverse(hints))
            qr = astype(q * r, a.dtype)
            parts = ([] if dl is None else [-dl * (q * r) * r]) + ([] if dx is None else [dx])
        with large(a.dtype):
            weight, moved = w[..., None], []
            if da is not None:
                moved.append(_t(da) @ (weight * (a @ qr)) + _t(a) @ (weight * (da @ qr)))
            if dw is not None:
                moved.append(_t(a) @ (dw[..., None] * (a @ qr)))
        with on_cpu():
            parts += [-astype(p, mx.float64) * r for p in moved]
            return normal(a, w, l2, sum(parts), inverse(hints))

    def ridge_vjp(x, bar, a, b, w, l2, *hints):
        with on_cpu():
            r = _r(inverse(hints))
            zr = normal(a, w, l2, bar, inverse(hints)) * r
            z = zr * r
            # One product with twice the columns, [A z | r rest] [-W | z / r]^T: a pass over A_bar less.
            both = product_and_residual(a, z, b, x, r)
            right = mx.concatenate(same_batch(-x, zr), axis=-1).astype(a.dtype)
            l2_bar, r = -z * x, r.astype(a.dtype)
        with large(a.dtype):
            az, rest = mx.split(both, 2, axis=-1)
            return _weigh(w, both) @ _t(right), _weigh(w, az), _sum_to(rest / r * az, w), l2_bar

    def ridge_jvp(x, tangents, a, b, w, l2, *hints):
        da, db, dw, dl = tangents[:4]
        with on_cpu():
            r = _r(inverse(hints))
            one = mx.max(r, axis=-1, keepdims=True)
            rest, rs, narrow = residual(b, a, x, one), r.astype(a.dtype), x.astype(a.dtype)
        with large(a.dtype):
            moved, weight, rest = [], w[..., None], rest * rs
            if da is not None:
                moved.append(_t(da) @ (weight * rest) - _t(a) @ (weight * (da @ narrow) * rs))
            if dw is not None:
                moved.append(_t(a) @ (dw[..., None] * rest))
            if db is not None:
                moved.append(_t(a) @ (weight * db * rs))
        with on_cpu():
            parts = [p.astype(mx.float64) for p in moved] + ([] if dl is None else [-dl * x * r])
            return normal(a, w, l2, sum(parts), inverse(hints)) * r

    return (
        attach(normal_vjp, normal_jvp, (2, 1, 2, 2, *_cores(route), 2)),
        attach(ridge_vjp, ridge_jvp, (2, 2, 1, 2, *_cores(route), 2)),
    )


def _weigh(w, x):
    """``diag(w) x`` for weights of every row, or the one 1 that stands for none."""
    return x if w.shape[-1] == 1 and x.shape[-2] != 1 else w[..., None] * x


def _cores(route):
    return (3, 2, 2, 3) if route == "feature" else CORES


# --- From a Gram matrix ---------------------------------------------------------------------------


def gram_normal(k, l2, x, inverse: Inverse):
    """``(K + L)^-1 x`` as a function of K itself, for statistics that were accumulated elsewhere; all float64."""
    with on_cpu():
        r = _r(inverse)
        return _GRAM_RULES[inverse.route](k, l2, x, *inverse.f, apply(inverse, k, None, l2, x) * r * r)


def _build_gram(route):
    # q = R x, u = R q_bar:  K_bar = -(u q^T + q u^T) / 2,  l2_bar = -u o q,  x_bar = u
    def vjp(q, bar, k, l2, x, *hints):
        with on_cpu():
            u = gram_normal(k, l2, bar, Inverse(Factor(*hints), route))
            turn = u @ _t(q)
            return -(turn + _t(turn)) / 2, -u * q, u

    def jvp(q, tangents, k, l2, x, *hints):
        dk, dl, dx = tangents[:3]
        with on_cpu():
            parts = [] if dx is None else [dx]
            parts += [] if dk is None else [-(dk + _t(dk)) @ q / 2]
            parts += [] if dl is None else [-dl * q]
            return gram_normal(k, l2, sum(parts), Inverse(Factor(*hints), route))

    return attach(vjp, jvp, (2, 2, 2, *_cores(route), 2))


def _sum_to(x, w):
    """Sum over the targets, and over the rows where one weight serves all."""
    x = mx.sum(x, axis=-1)
    return mx.sum(x, axis=-1, keepdims=True) if w.shape[-1] == 1 else x


_GRAM_RULES = {route: _build_gram(route) for route in ("shared", "feature")}
_RULES = {route: _build(route) for route in ("shared", "feature", "dual")}
