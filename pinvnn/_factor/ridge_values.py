"""Values of ridge regression from its factorization: float64, on the CPU, constants for differentiation.

Of complex A the inverse is that of the real embedding, and solutions are stacked.
"""

from typing import Literal, NamedTuple, TypeAlias

import mlx.core as mx

from .._mlx import dtypes
from .._mlx.blocks import cross
from .._mlx.centred import Matrix, in_float64
from .._mlx.place import on_cpu
from .right_factor import RightFactor
from .values import refined

Route: TypeAlias = Literal["shared", "feature", "dual"]


class RidgeInverse(NamedTuple):
    """R = (A^T D A + L)^-1 as constants, held in one of three ways.

    Attributes:
        f: A right factor, of what the route says.
        route: "shared": ``f`` is that of D^(1/2) A, and R_t = V diag(1 / (s^2 + r^2 l2_t)) V^T r^2 for all targets t.
            This needs the same penalty for all features.
            "feature": ``f`` is that of a root of A^T D A + L_t, with an axis for the targets, ``(..., 1 or k, n, n)``,
            and R_t = V_t diag(1 / s_t^2) V_t^T r_t^2. It serves any penalty.
            "dual": ``f`` is that of A^T D^(1/2), or a full factor of A A^T + l2, for (A A^T + l2 D^-1)^-1.
    """

    f: RightFactor
    route: Route

    @property
    def cores(self) -> tuple[tuple[int, ...], None]:
        """Trailing dimensions of the fields that are no batch: the axis for targets is none."""
        return (3, 2, 2, 3) if self.route == "feature" else self.f.cores, None

    @property
    def full(self) -> bool:
        """Always: nothing is dropped."""
        return True

    @property
    def scale(self) -> mx.array:
        """The power of two r of each target, ``(..., 1, 1 or k)``."""
        with on_cpu():
            return self.f.r[..., 0].mT if self.route == "feature" else self.f.r

    @property
    def scale_of_gram(self) -> mx.array:
        """One of them for all targets, ``(..., 1, 1)``."""
        r = self.scale
        with on_cpu():
            return r if r.shape[-1] == 1 else mx.max(r, axis=-1, keepdims=True)


class SolutionHints(NamedTuple):
    """By-products of the factorization that serve the solution.

    Attributes:
        left: Left singular vectors, if it was an SVD.
        rhs: A^T D b, if it was formed together with A^T D A.
        q: For each target, ``(..., 1 or k, m, n)``, and with it
        z: ``(..., 1 or k, n, n)``, so that Z Q^T D = R A^T D (see :class:`Certified`).
        good: Mask ``(..., 1 or k)`` of the targets whose Q and Z are valid; the others have left vectors.
        squares: Diagonal of A^T D A, ``(..., n)``, if it was formed.
    """

    left: mx.array | None = None
    rhs: mx.array | None = None
    q: mx.array | None = None
    z: mx.array | None = None
    good: mx.array | None = None
    squares: mx.array | None = None


def reciprocals(inverse: RidgeInverse, l2: mx.array, shape) -> mx.array:
    """1 / (s^2 + r^2 l2), ``(..., n, 1 or k)``; NaN for a target whose system is singular to working precision."""
    f = inverse.f
    s, nan = f.s[..., None], mx.array(float("nan"), mx.float64)
    if inverse.route == "feature":
        return mx.where(f.kept[..., None] > 0, 1 / (s * s), nan)
    l2 = mx.where(l2 < 0, nan, l2) * f.r * f.r
    noise = 4 * shape[-1] * dtypes.eps(mx.float64) * s[..., :1, :] ** 2
    singular = mx.logical_and(mx.any(f.kept == 0, axis=-1)[..., None, None], l2 <= noise)
    if inverse.route == "dual":
        singular = mx.logical_or(singular, l2 <= 0)  # m < n: without a penalty there is no unique solution
    return mx.where(singular, nan, 1 / (s * s + l2))


def apply_inverse(inverse: RidgeInverse, l2: mx.array, shape, x: mx.array) -> mx.array:
    """``R x / r^2`` of the primal routes for ``x`` (..., n, k), as V diag(d) V^T x; ``shape`` is that of A."""
    with on_cpu():
        f, v = inverse.f, inverse.f.v
        d = None if f.full else reciprocals(inverse, l2, shape)
        if inverse.route == "feature" and v.shape[-3] == 1:
            v, d = v[..., 0, :, :], None if d is None else d[..., 0, :, :]
        elif inverse.route == "feature":  # column by column: targets have their own matrices
            y = v.mT @ x.mT[..., None]
            return (v @ (y if d is None else d * y))[..., 0].mT
        y = v.mT @ x
        return v @ (y if d is None else d * y)


def dual_value(f: RightFactor, a: mx.array, w: mx.array | None, l2: mx.array, x: mx.array) -> mx.array:
    """``(A A^T + l2 D^-1)^-1 x`` from the factor of (D^(1/2) A)^T, float64."""
    with on_cpu():
        root = f.r if w is None else mx.sqrt(w)[..., None] * f.r
        y = f.v.mT @ (root * x)
        return root * (f.v @ (y if f.full else reciprocals(RidgeInverse(f, "dual"), l2, a.shape) * y))


def solution(
    inverse: RidgeInverse, a: Matrix, b: Matrix, w: mx.array | None, l2: mx.array, hints: SolutionHints
) -> mx.array:
    """The solution ``W`` (..., n, k) of the primal routes, float64."""
    left, rhs, q, z, good, _ = hints
    with on_cpu():
        if left is None and q is None:
            return _unscaled(inverse, l2, a.shape, cross(a, b, w) if rhs is None else rhs)
        if left is None:
            return _by_orthonormal_basis(inverse, a, b, w, l2, q, z)
        x = _by_left_vectors(inverse, a, b, w, l2, left)
        if good is None:
            return x
        return mx.where(good[..., None, :], _by_orthonormal_basis(inverse, a, b, w, l2, q, z), x)


def _unscaled(inverse: RidgeInverse, l2, shape, x) -> mx.array:
    """``R x`` of the primal routes."""
    r = inverse.scale
    return apply_inverse(inverse, l2, shape, x) * (r * r)


def _by_orthonormal_basis(inverse: RidgeInverse, a, b, w, l2, q, z) -> mx.array:
    """``W`` by Q and Z with a step of iterative refinement; one product for all targets if they share Q and Z."""
    if q.shape[-3] == 1:
        q, z = q[..., 0, :, :], z[..., 0, :, :]
        return refined(q, z, a, b, w, lambda x: _unscaled(inverse, l2, a.shape, l2 * x))

    def penalty(x):
        return _unscaled(inverse, l2, a.shape, l2 * x[..., 0].mT).mT[..., None]

    w = None if w is None else w[..., None, :]
    return refined(q, z, a[..., None, :, :], b.mT[..., None], w, penalty)[..., 0].mT


def _by_left_vectors(inverse: RidgeInverse, a, b, w, l2, left) -> mx.array:
    """``W`` by the singular value decomposition, with all its digits."""
    f, u = inverse.f, left[..., : a.shape[-2], :]
    d = reciprocals(inverse, l2, a.shape) * f.s[..., None]
    right = in_float64(b) if w is None else mx.sqrt(w.astype(mx.float64))[..., None] * in_float64(b)
    if inverse.route == "feature":
        return (f.v @ (d * (u.mT @ right.mT[..., None])))[..., 0].mT * inverse.scale
    return f.v @ (d * (u.mT @ right)) * f.r


def log_determinant(f: RightFactor | RidgeInverse, l2: mx.array | None, n: int) -> mx.array:
    """``log det(K + L)`` of the n x n matrix that was factored, ``(...)``: -inf where its rank is smaller than n."""
    right = f if isinstance(f, RightFactor) else f.f
    v, s, kept, r = right
    with on_cpu():
        log_r = 2 * n * mx.log(r[..., 0, 0])
        if isinstance(f, RidgeInverse) and l2 is not None and f.route == "shared":
            return -mx.sum(mx.log(reciprocals(f, l2, (n, n))[..., 0]), axis=-1) - log_r
        value = -log_r if right.full else 2 * mx.sum(mx.log(s), axis=-1) - log_r
        if right.full or isinstance(f, RidgeInverse):  # V is, or may be, a triangular factor of the inverse
            pivots = mx.log(mx.abs(mx.diagonal(v, axis1=-2, axis2=-1)))
            triangular = mx.all(mx.tril(v, -1) == 0, axis=(-2, -1))
            by_pivots = value - 2 * mx.sum(pivots, axis=-1)
            value = by_pivots if right.full else mx.where(triangular, by_pivots, value)
        if not right.full:
            dropped = mx.logical_and(mx.any(kept == 0, axis=-1), mx.isfinite(value))
            value = mx.where(dropped, mx.array(-float("inf"), mx.float64), value)
        return value if isinstance(f, RightFactor) else value[..., 0]
