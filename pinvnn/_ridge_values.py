"""Values of ridge regression, constants until ``_ridge_rules`` gives them derivatives. Real, float64, on the CPU."""

from typing import NamedTuple

import mlx.core as mx

from . import _dtypes
from ._blocks import cross
from ._factor import Factor
from ._place import on_cpu
from ._values import refined


class Inverse(NamedTuple):
    """R as constants, in one of three routes.

    "shared": ``V diag(1 / (s^2 + r^2 l2_t)) V^T r^2`` with the V of A, for l2 that is the same for all features.
    "dual": the same with the V of A^T, for l2 > 0.
    "feature": ``V diag(1 / s^2) V^T r^2`` with a V of A^T D A + L_t itself, ``(..., 1 or k, n, n)``.
    """

    f: Factor
    route: str


class Known(NamedTuple):
    """What a factorization leaves for the solution: left singular vectors of an SVD, A^T D b, or Q and X."""

    left: mx.array | None = None
    rhs: mx.array | None = None
    pair: tuple[mx.array, mx.array] | None = None


def _t(x):
    return mx.swapaxes(x, -1, -2)


def scales(inverse: Inverse):
    """The powers of two of each target's matrix, ``(..., 1, 1 or k)``."""
    return _t(inverse.f.r[..., 0]) if inverse.route == "feature" else inverse.f.r


def denominator(inverse: Inverse, l2, shape):
    """1 / (s^2 + r^2 l2), ``(..., n, k)``; NaN for a target whose system is singular to working precision."""
    f = inverse.f
    s, nan = f.s[..., None], mx.array(float("nan"), mx.float64)
    if inverse.route == "feature":
        return mx.where(f.kept[..., None] > 0, 1 / (s * s), nan)
    l2 = mx.where(l2 < 0, nan, l2) * f.r * f.r
    noise = 4 * shape[-1] * _dtypes.eps(mx.float64) * s[..., :1, :] ** 2
    singular = mx.any(f.kept == 0, axis=-1)[..., None, None] & (l2 <= noise)
    if inverse.route == "dual":
        singular = singular | (l2 <= 0)  # m < n: without a penalty there is no unique solution
    return mx.where(singular, nan, 1 / (s * s + l2))


def _by_vectors(inverse: Inverse, l2, shape, x):
    """``R x / r^2`` of the primal routes, ``V diag(d) V^T x``; column by column if targets have their own matrices."""
    f, v = inverse.f, inverse.f.v
    d = None if f.full else denominator(inverse, l2, shape)
    if inverse.route == "feature" and v.shape[-3] == 1:
        v, d = v[..., 0, :, :], None if d is None else d[..., 0, :, :]
    elif inverse.route == "feature":
        y = _t(v) @ _t(x)[..., None]
        return _t((v @ (y if d is None else d * y))[..., 0])
    y = _t(v) @ x
    return v @ (y if d is None else d * y)


def apply(inverse: Inverse, a, w, l2, x):
    """The constant ``R x / r^2``, float64 ``(..., n, k)``."""
    with on_cpu():
        if inverse.route != "dual":
            return _by_vectors(inverse, l2, a.shape, x)
        f, d = inverse.f, denominator(inverse, l2, a.shape)
        root = mx.sqrt(w)[..., None] * f.r
        inner = f.v @ (d * (_t(f.v) @ (root * (a @ x))))
        return (x - _t(a) @ (root * inner)) / (l2 * f.r * f.r)


def solution(inverse: Inverse, a, b, w, l2, known=None):
    """The constant ``W``, float64."""
    left, rhs, pair = known or Known()
    with on_cpu():
        f, r = inverse.f, scales(inverse)
        root = mx.array(1.0, mx.float64) if w is None else mx.sqrt(w.astype(mx.float64))[..., None]
        if inverse.route == "dual":
            d = denominator(inverse, l2, a.shape)
            inner = f.v @ (d * (_t(f.v) @ (root * b))) * r * r
            return _t(a) @ (root * inner)
        if left is None:
            def solve(right):
                return _by_vectors(inverse, l2, a.shape, right) * (r * r)

            if pair is not None:
                return refined(pair, a, b, w, lambda x: solve(l2 * x))
            return solve(cross(a, b, w) if rhs is None else rhs)
        d = denominator(inverse, l2, a.shape)
        right, u = root * b, left[..., : a.shape[-2], :]
        if inverse.route == "feature":
            return _t((f.v @ (d * f.s[..., None] * (_t(u) @ _t(right)[..., None])))[..., 0]) * r
        return f.v @ (d * f.s[..., None] * (_t(u) @ right)) * r
