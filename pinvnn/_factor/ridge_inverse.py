"""Constants of R = (A^T D A + L)^-1, the inverse of ridge regression.

With a positive penalty on every feature K + L is definite, and a Cholesky factor serves. With l2 = 0 the rank of A
decides whether the system is singular; a Cholesky factor serves where it is verified to be accurate.

Values of arguments cannot be evaluated in a compiled graph, and shapes, dtypes and methods decide alone:

    penalty                                 float32, complex64                           float64
    one l2 for all, 0 < l2 or an array      Cholesky; of A A^T + l2 if m < n             singular vectors
    by target                               Cholesky for each of few, else eigenvalues   singular vectors
    by feature                              Cholesky for each target                     Cholesky and singular vectors
    the number 0                            eigenvalues                                  singular vectors
    any of them, method "cholesky"          Cholesky                                     Cholesky, corrected
"""

import math
from typing import Any

import mlx.core as mx

from .._mlx import dtypes
from .._mlx.blocks import cross, crosses
from .._mlx.centred import Matrix, in_float64
from .._mlx.eager import evaluated_crosses, visible
from .._mlx.place import on_cpu
from .._mlx.shapes import diagonal, same_batch
from .._types import RidgeMethod
from .full_rank import accurate, certified, cholesky_factor, corrected, evaluated_if, nan_unless
from .rank import default_rtol
from .ridge_values import RidgeInverse, Route, SolutionHints
from .right_factor import RightFactor, embedded_gram, nan_where_negative, power_of_two, right_factor

# For up to as many targets, a Cholesky factor for each costs less than eigenvectors for all.
_FEW_TARGETS = 4


def penalty_matrix(l2: Any, vector: bool = False) -> mx.array:
    """The checked penalty in float64 as ``(..., 1 or n, 1 or k)``; ``vector`` says that b is one."""
    with on_cpu():
        if not isinstance(l2, mx.array):
            return mx.array([[l2]], mx.float64)
        l2 = l2.astype(mx.float64)
        if vector and l2.ndim:
            l2 = l2[..., None]
        return l2.reshape(*(1,) * (2 - l2.ndim), *l2.shape)


def ridge_route(method: RidgeMethod, shape: tuple[int, ...], l2: mx.array, dtype: mx.Dtype, unpenalized: bool) -> Route:
    """How the inverse is held (see :class:`RidgeInverse`).

    Args:
        method: Checked.
        shape: That of A, (m, n).
        l2: ``(..., 1 or n, 1 or k)``.
        dtype: That of the entries of A.
        unpenalized: Whether ``l2`` was given as the number 0.
    """
    (m, n), by_feature, targets = shape, l2.shape[-2] > 1, l2.shape[-1]
    if by_feature:
        return "feature"
    if method == "dual" or (m < n and (method == "auto" or (method == "cholesky" and targets == 1))):
        return "dual"
    # A positive penalty makes K + L definite: Cholesky. With l2 = 0 the rank must be decided.
    by_vectors = targets > _FEW_TARGETS or dtype == mx.float64 or unpenalized
    return "shared" if by_vectors and method != "cholesky" else "feature"


def inverse_of_ridge(
    a: Matrix,
    w: mx.array | None,
    l2: mx.array,
    route: Route,
    entries: mx.Dtype,
    b: Matrix | None = None,
    method: RidgeMethod = "auto",
) -> tuple[RidgeInverse, SolutionHints]:
    """R as constants, and by-products of its factorization from which :func:`solution` saves work or gains digits.

    Args:
        a: A, ``(..., m, n)``, not empty; real for the dual route.
        w: Weights ``(..., m)``, or None.
        l2: ``(..., 1 or n, 1 or k)``, float64; for complex A ``(..., 1 or 2n, 1 or k)``.
        route: How R is to be held.
        entries: The dtype that the entries of ``a`` had before any conversion.
        b: Right-hand sides ``(..., m, k)``, or None if no solution is wanted.
        method: "cholesky" evaluates nothing and takes no singular vectors: NaN where that is not accurate.
    """
    lazy = method == "cholesky"
    with on_cpu():
        w = nan_where_negative(w)
        exact = entries == mx.float64
        driver = "svd" if exact else "gram"
        if route == "dual":
            rows = in_float64(a) if w is None else mx.sqrt(w)[..., None] * in_float64(a)
            flat = rows.mT
            f = dual_by_cholesky(flat, l2, entries, lazy)
            if f is None:
                f = in_range(right_factor(flat, method=driver, entries=entries)[0], l2)
            return RidgeInverse(f, route), SolutionHints()
        by_values = route == "feature" if exact else route == "shared" and l2.shape[-1] == 1
        if by_values and not lazy:
            by_cholesky = _inverse_by_cholesky(a, w, l2, entries, b)
            if by_cholesky is not None:
                return by_cholesky
        if route == "shared":
            f, left = right_factor(a, w, method=driver, entries=entries)
            return RidgeInverse(in_range(f, l2), route), SolutionHints(left)
        if exact:
            return _float64_inverse(a, w, l2, lazy)
        gram, *rhs = (crosses if lazy else evaluated_crosses)(a, [a] if b is None else [a, b], w)
        gram = embedded_gram(gram)
        inverse = gram_inverse(gram, l2, entries, a.shape[-2])
        return inverse, SolutionHints(rhs=rhs[0] if rhs else None, squares=diagonal(gram))


def in_range(f: RightFactor, l2: mx.array) -> RightFactor:
    """``f`` with r at most 1 / |L|^(1/2): else r^2 l2 would overflow for an A that is tiny beside L."""
    with on_cpu():
        most = mx.sqrt(mx.max(mx.where(l2 > 0, l2, mx.zeros_like(l2)), axis=(-2, -1), keepdims=True))
        less = mx.minimum(power_of_two(most * f.r, mx.float64), 1)
        r = f.r * less
        # The handle of the Gram matrix has the batch of V: were that smaller than that of r, cotangents would count
        # twice.
        v = mx.broadcast_to(f.v, (*r.shape[:-2], *f.v.shape[-2:]))
        return f._replace(v=v, s=mx.stop_gradient(f.s * less[..., 0]), r=mx.stop_gradient(r))


def _inverse_by_cholesky(a, w, l2, entries, b) -> tuple[RidgeInverse, SolutionHints] | None:
    """By a Cholesky factor of K + L; None if it is not accurate or values cannot be evaluated (compile, vmap)."""
    if not visible(a, w, l2, b):
        return None
    exact = entries == mx.float64
    gram, *rhs = evaluated_crosses(a, [a] if b is None or exact else [a, b], w)
    gram = embedded_gram(gram)
    f, good = _certified_cholesky(gram, l2, a.shape[-2:], entries)
    f = evaluated_if(good, f)
    if f is None:
        return None
    if not exact:
        return RidgeInverse(f, "feature"), SolutionHints(rhs=rhs[0] if rhs else None, squares=diagonal(gram))
    f, q, z = _corrected(f, a, w, l2)
    return RidgeInverse(f, "feature"), SolutionHints(q=q, z=z, squares=diagonal(gram))


def dual_by_cholesky(flat: mx.array, l2: mx.array, entries: mx.Dtype, lazy: bool = False) -> RightFactor | None:
    """The full factor of A A^T + l2 from tall ``flat`` = A^T, for one l2; None where singular vectors are needed."""
    exact, positive = entries == mx.float64, l2[..., 0] > 0
    if l2.shape[-1] > 1:
        return None
    if not lazy and visible(flat, l2):
        f, good = _certified_cholesky(evaluated_crosses(flat, [flat])[0], l2, flat.shape[-2:], entries)
        f = evaluated_if(mx.logical_and(good, positive), f)
        if f is None:
            return None
    elif not exact:
        f = nan_unless(positive, gram_inverse(cross(flat, flat), l2, entries, flat.shape[-2]).f)
    elif lazy:
        f, good = _certified_cholesky(cross(flat, flat), l2, flat.shape[-2:], entries)
        f = nan_unless(mx.logical_and(good, positive), f)
    else:
        return None
    f = _corrected(f, flat, None, l2)[0] if exact else f
    return RightFactor(f.v[..., 0, :, :], f.s[..., 0, :], f.kept[..., 0, :], f.r[..., 0, :, :])


def _certified_cholesky(gram, l2, shape, entries) -> tuple[RightFactor, mx.array]:
    """The full factor of K + L for each target, and whether it may be used, ``(..., k or 1)``.

    It may where it is accurate and K + L is certainly not singular: by the certificate of a matrix without a penalty,
    or because every feature has a penalty above the rounding noise.
    """
    n = gram.shape[-1]
    total = gram[..., None, :, :] + _diagonal(l2, n)
    found = cholesky_factor(total, entries)
    noise = 4 * n * dtypes.eps(mx.float64) * diagonal(total)
    penalized = mx.all(l2.mT > noise, axis=-1)
    penalized = mx.logical_and(accurate(found, entries), penalized)
    return found.right, mx.logical_or(certified(found, shape, entries), penalized)


def _corrected(f: RightFactor, a, w, l2) -> tuple[RightFactor, mx.array, mx.array]:
    """:func:`corrected` for each target."""
    return corrected(f, a[..., None, :, :], None if w is None else w[..., None, :], l2.mT)


def _float64_inverse(a, w, l2, lazy: bool) -> tuple[RidgeInverse, SolutionHints]:
    """In float64, one factorization for each target, ``(..., k or 1, n, n)``, chosen matrix by matrix inside the graph.

    Cholesky with its second step where it is accurate; else an SVD of [sqrt(w) A; sqrt(L)], which would lose the digits
    of A beside a large penalty; or NaN, if ``lazy``.
    """
    m, n = a.shape[-2:]
    gram = cross(a, a, w)
    squares = diagonal(gram)
    f, good = _certified_cholesky(gram, l2, (m, n), mx.float64)
    f, q, z = _corrected(nan_unless(good, f), a, w, l2)
    if lazy:
        return RidgeInverse(f, "feature"), SolutionHints(q=q, z=z, squares=squares)
    rows = (a if w is None else mx.sqrt(w)[..., None] * a)[..., None, :, :]
    by_svd, left = right_factor(mx.concatenate(same_batch(rows, mx.sqrt(_diagonal(l2, n))), axis=-2), method="svd")
    by_svd, ones = _mark_singular(by_svd, l2), mx.ones_like(by_svd.s)
    # V V^T is V diag(1 / s^2) V^T with s = 1.
    parts = zip(RightFactor(f.v, ones, ones, f.r), by_svd, by_svd.cores, strict=True)
    chosen = [mx.where(good.reshape(*good.shape, *(1,) * core), x, y) for x, y, core in parts]
    hints = SolutionHints(left, None, q, z, good, squares)
    return RidgeInverse(RightFactor(*map(mx.stop_gradient, chosen)), "feature"), hints


def gram_inverse(gram: mx.array, l2: mx.array, entries: mx.Dtype, m: int) -> RidgeInverse:
    """R by one Cholesky factorization of ``gram`` + L for each target.

    Cholesky does not show the rank. Where some feature has no penalty, the result is NaN if the estimated condition
    number exceeds the reciprocal of the default cutoff for ``m`` rows of dtype ``entries``.
    """
    n = gram.shape[-1]
    found = cholesky_factor(gram[..., None, :, :] + _diagonal(l2, n), entries)
    f = found.right
    r = f.r[..., 0, 0]
    penalized = mx.min(l2, axis=-2) * (r * r) > 4 * n * dtypes.eps(mx.float64)
    determined = mx.logical_or(penalized, found.trace < found.least * (n / default_rtol(m, n, entries) ** 2))
    return RidgeInverse(nan_unless(mx.logical_and(found.sound, determined), f), "feature")


def _diagonal(l2: mx.array, n: int) -> mx.array:
    """diag(l2_t) for each target, ``(..., 1 or k, n, n)``; NaN where a penalty is negative."""
    l2 = mx.where(l2 < 0, math.nan, l2)
    return mx.eye(n, dtype=mx.float64) * l2.mT[..., None, :]


def _mark_singular(f: RightFactor, l2: mx.array) -> RightFactor:
    """``f`` of [sqrt(w) A; sqrt(L)], with the singular values marked as dropped that make the system singular.

    None does if every feature has a penalty above the noise of float64; else the usual rank decision holds.
    """
    noise = 4 * f.s.shape[-1] * dtypes.eps(mx.float64) * (f.s[..., 0] / f.r[..., 0, 0]) ** 2
    penalized = (mx.min(l2, axis=-2) > noise)[..., None]
    kept = mx.where(penalized, f.s > 0, f.kept > 0).astype(mx.float64)
    return f._replace(kept=mx.stop_gradient(kept))
