"""Values of ridge regression, constants until ``ridge.py`` gives them derivatives. Real, float64, on the CPU."""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from .._mlx import dtypes
from .._mlx.blocks import cross
from .._mlx.place import on_cpu
from .right_factor import Factor
from .values import refined


class Inverse(NamedTuple):
    """R as constants, in one of three routes.

    "shared": ``V diag(1 / (s^2 + r^2 l2_t)) V^T r^2`` with the V of A, for l2 that is the same for all features.
    "dual": the same with the V of A^T, for l2 > 0; or a full factor of A A^T + l2.
    "feature": ``V diag(1 / s^2) V^T r^2`` with a V of A^T D A + L_t itself, ``(..., 1 or k, n, n)``.
    """

    f: Factor
    route: str


class Known(NamedTuple):
    """What a factorization leaves for the solution.

    Attributes:
        left: Left singular vectors of an SVD.
        rhs: A^T D b.
        pair: Q and X for each target (see :class:`Certified`).
        good: Which targets take the pair, ``(..., k or 1)``, if there are left vectors for others.
    """

    left: mx.array | None = None
    rhs: mx.array | None = None
    pair: Sequence[mx.array] | None = None
    good: mx.array | None = None


def scales(inverse: Inverse):
    """The powers of two of each target's matrix, ``(..., 1, 1 or k)``."""
    return inverse.f.r[..., 0].mT if inverse.route == "feature" else inverse.f.r


def denominator(inverse: Inverse, l2, shape):
    """1 / (s^2 + r^2 l2), ``(..., n, k)``; NaN for a target whose system is singular to working precision."""
    f = inverse.f
    s, nan = f.s[..., None], mx.array(float("nan"), mx.float64)
    if inverse.route == "feature":
        return mx.where(f.kept[..., None] > 0, 1 / (s * s), nan)
    l2 = mx.where(l2 < 0, nan, l2) * f.r * f.r
    noise = 4 * shape[-1] * dtypes.eps(mx.float64) * s[..., :1, :] ** 2
    singular = mx.any(f.kept == 0, axis=-1)[..., None, None] & (l2 <= noise)
    if inverse.route == "dual":
        singular = singular | (l2 <= 0)  # m < n: without a penalty there is no unique solution
    return mx.where(singular, nan, 1 / (s * s + l2))


def apply(inverse: Inverse, l2, shape, x):
    """The constant ``R x / r^2`` of the primal routes, V diag(d) V^T x; ``shape`` is that of A, ``x`` (..., n, k)."""
    with on_cpu():
        f, v = inverse.f, inverse.f.v
        d = None if f.full else denominator(inverse, l2, shape)
        if inverse.route == "feature" and v.shape[-3] == 1:
            v, d = v[..., 0, :, :], None if d is None else d[..., 0, :, :]
        elif inverse.route == "feature":  # column by column: targets have their own matrices
            y = v.mT @ x.mT[..., None]
            return (v @ (y if d is None else d * y))[..., 0].mT
        y = v.mT @ x
        return v @ (y if d is None else d * y)


def dual_value(f: Factor, a, w, l2, x):
    """The constant ``(A A^T + l2 D^-1)^-1 x`` from the factor of (D^(1/2) A)^T, float64."""
    with on_cpu():
        root = mx.sqrt(w)[..., None] * f.r
        y = f.v.mT @ (root * x)
        return root * (f.v @ (y if f.full else denominator(Inverse(f, "dual"), l2, a.shape) * y))


def solution(inverse: Inverse, a, b, w, l2, known=None):
    """The constant ``W``, float64."""
    left, rhs, pair, good = known or Known()
    with on_cpu():
        if left is None and pair is None:
            return _unscaled(inverse, l2, a.shape, cross(a, b, w) if rhs is None else rhs)
        if left is None:
            return _by_pair(inverse, a, b, w, l2, pair)
        x = _by_left_vectors(inverse, a, b, w, l2, left)
        return x if good is None else mx.where(good[..., None, :], _by_pair(inverse, a, b, w, l2, pair), x)


def _unscaled(inverse: Inverse, l2, shape, x):
    """``R x`` of the primal routes."""
    r = scales(inverse)
    return apply(inverse, l2, shape, x) * (r * r)


def _by_pair(inverse: Inverse, a, b, w, l2, pair):
    """By Q and X with a step of refinement, all targets at once if they have these in common."""
    if pair[0].shape[-3] == 1:
        pair = [x[..., 0, :, :] for x in pair]
        return refined(pair, a, b, w, lambda x: _unscaled(inverse, l2, a.shape, l2 * x))

    def penalty(x):
        return _unscaled(inverse, l2, a.shape, l2 * x[..., 0].mT).mT[..., None]

    w = None if w is None else w[..., None, :]
    return refined(pair, a[..., None, :, :], b.mT[..., None], w, penalty)[..., 0].mT


def _by_left_vectors(inverse: Inverse, a, b, w, l2, left):
    f, u = inverse.f, left[..., : a.shape[-2], :]
    d = denominator(inverse, l2, a.shape) * f.s[..., None]
    right = b if w is None else mx.sqrt(w.astype(mx.float64))[..., None] * b
    if inverse.route == "feature":
        return (f.v @ (d * (u.mT @ right.mT[..., None])))[..., 0].mT * scales(inverse)
    return f.v @ (d * (u.mT @ right)) * f.r
