"""R = (A^T D A + L)^-1 as constants, and what else its factorization knows: by Cholesky where that does, or by SVD."""

import mlx.core as mx

from .._mlx import dtypes
from .._mlx.blocks import cross, crosses
from .._mlx.eager import evaluated_crosses, visible
from .._mlx.place import on_cpu
from .._mlx.shapes import same_batch
from .full_rank import certain, cholesky_factor, corrected, nan_unless, precise
from .rank import default_rtol
from .ridge_values import Inverse, Known
from .right_factor import CORES, Factor, factor, non_negative, power_of_two


def penalty_matrix(l2, vector=False):
    """The penalty in float64 as ``(..., 1 or n, 1 or k)``."""
    with on_cpu():
        l2 = l2.astype(mx.float64) if isinstance(l2, mx.array) else mx.array(l2, mx.float64)
        if vector and l2.ndim:
            l2 = l2[..., None]
        return l2.reshape(*(1,) * (2 - l2.ndim), *l2.shape)


def ridge_route(method, shape, l2, dtype, unpenalized):
    """Which constants of the inverse serve: see :class:`Inverse`."""
    (m, n), by_feature, by_target = shape, l2.shape[-2] > 1, l2.shape[-1] > 1
    if by_feature:
        return "feature"
    if method == "dual" or (method == "auto" and m < n):
        return "dual"
    # One positive penalty makes K + L definite, so that a Cholesky factor serves; with l2 = 0 the rank must be decided.
    return "shared" if by_target or dtype == mx.float64 or unpenalized else "feature"


def inverse_of_ridge(a, w, l2, route, entries, b=None):
    """The constants of R = (A^T D A + L)^-1, and what else is known then and :func:`solution` can use."""
    with on_cpu():
        w = non_negative(w)
        exact = entries == mx.float64
        driver = "svd" if exact else "gram"
        if route == "dual":
            rows = a if w is None else mx.sqrt(w)[..., None] * a
            flat = rows.mT
            f = _certain_dual(flat, l2, entries) or in_range(factor(flat, method=driver, entries=entries)[0], l2)
            return Inverse(f, route), Known()
        if (exact and route == "feature") or (route == "shared" and l2.shape[-1] == 1):
            by_cholesky = _certain_inverse(a, w, l2, entries, b)
            if by_cholesky is not None:
                return by_cholesky
        if route == "shared":
            f, left = factor(a, w, method=driver, entries=entries)
            return Inverse(in_range(f, l2), route), Known(left)
        if exact:
            return _exact_inverse(a, w, l2)
        gram, *rhs = crosses(a, [a] if b is None else [a, b], w)
        return gram_inverse(gram, l2, entries, a.shape[-2]), Known(rhs=rhs[0] if rhs else None)


def in_range(f: Factor, l2):
    """``f`` with an r of 1 / |L|^(1/2) at most, so that r^2 l2 does not overflow where A is tiny beside L."""
    most = mx.sqrt(mx.max(mx.where(l2 > 0, l2, mx.zeros_like(l2)), axis=(-2, -1), keepdims=True))
    less = mx.minimum(power_of_two(most * f.r, mx.float64), 1)
    return f._replace(s=mx.stop_gradient(f.s * less[..., 0]), r=mx.stop_gradient(f.r * less))


def _certain_inverse(a, w, l2, entries, b):
    """By a Cholesky factor of K + L, where the values show that it will do; else, and where they must not be looked at,
    None.
    """
    if not visible(a, w, l2, b):
        return None
    exact = entries == mx.float64
    gram, *rhs = evaluated_crosses(a, [a] if b is None or exact else [a, b], w)
    f, good = _cholesky(gram, l2, a.shape[-2:], entries)
    if not mx.all(good).item():
        return None
    if not exact:
        return Inverse(f, "feature"), Known(rhs=rhs[0] if rhs else None)
    f, *pair = _corrected(f, a, w, l2)
    return Inverse(f, "feature"), Known(pair=pair)


def _certain_dual(flat, l2, entries):
    """The full factor of A A^T + l2 from tall ``flat`` = A^T, where values are seen and show that it will do."""
    if l2.shape[-1] > 1 or not visible(flat, l2):
        return None
    f, good = _cholesky(evaluated_crosses(flat, [flat])[0], l2, flat.shape[-2:], entries)
    if not mx.all(good & (l2[..., 0] > 0)).item():
        return None
    f = _corrected(f, flat, None, l2)[0] if entries == mx.float64 else f
    return Factor(f.v[..., 0, :, :], f.s[..., 0, :], f.kept[..., 0, :], f.r[..., 0, :, :])


def _cholesky(gram, l2, shape, entries):
    """A full factor for each target and whether it will do, ``(..., k or 1)``: as for a matrix without a penalty, or
    since every feature has one above the noise.
    """
    total = gram[..., None, :, :] + _diagonal(l2, shape[-1])
    found = cholesky_factor(total, entries)
    noise = 4 * shape[-1] * dtypes.eps(mx.float64) * mx.diagonal(total, axis1=-2, axis2=-1)
    penalized = mx.all(l2.mT > noise, axis=-1)
    return found.factor, certain(found, shape, entries) | (precise(found, entries) & penalized)


def _corrected(f: Factor, a, w, l2):
    """:func:`corrected` for each target."""
    return corrected(f, a[..., None, :, :], None if w is None else w[..., None, :], l2.mT)


def _exact_inverse(a, w, l2):
    """In float64, one factorization per target, ``(..., k or 1, n, n)``: by Cholesky where that will do, else an SVD of
    [sqrt(w) A; sqrt(L)], which loses the digits of A beside a large penalty.
    """
    m, n = a.shape[-2:]
    f, good = _cholesky(cross(a, a, w), l2, (m, n), mx.float64)
    f, *pair = _corrected(nan_unless(good, f), a, w, l2)
    rows = (a if w is None else mx.sqrt(w)[..., None] * a)[..., None, :, :]
    by_svd, left = factor(mx.concatenate(same_batch(rows, mx.sqrt(_diagonal(l2, n))), axis=-2), method="svd")
    by_svd, ones = _judge(by_svd, l2), mx.ones_like(by_svd.s)
    # V V^T is V diag(1 / s^2) V^T with s = 1.
    parts = zip(Factor(f.v, ones, ones, f.r), by_svd, CORES, strict=True)
    chosen = [mx.where(good.reshape(*good.shape, *(1,) * core), x, y) for x, y, core in parts]
    return Inverse(Factor(*map(mx.stop_gradient, chosen)), "feature"), Known(left, None, pair, good)


def gram_inverse(gram, l2, entries, m):
    """One Cholesky factorization per target of gram + L. It knows no rank, so that without a penalty on every feature
    the condition number decides, to within the accuracy of its estimate.
    """
    n = gram.shape[-1]
    found = cholesky_factor(gram[..., None, :, :] + _diagonal(l2, n), entries)
    f = found.factor
    noise = 4 * n * dtypes.eps(mx.float64) / f.r[..., 0, 0] ** 2
    deficient = found.trace >= found.least * (n / default_rtol(m, n, entries) ** 2)
    singular = ~found.sound | (deficient & (mx.min(l2, axis=-2) <= noise))
    v = f.v * mx.where(singular, mx.array(float("nan"), mx.float64), 1.0)[..., None, None]
    return Inverse(f._replace(v=mx.stop_gradient(v)), "feature")


def _diagonal(l2, n):
    """diag(l2_t) for each target, ``(..., 1 or k, n, n)``; NaN where a penalty is negative."""
    l2 = mx.where(l2 < 0, mx.array(float("nan"), mx.float64), l2)
    return mx.eye(n, dtype=mx.float64) * l2.mT[..., None, :]


def _judge(f: Factor, l2):
    """Mark as dropped what makes the system singular.

    L is exact, so that where every feature has a penalty above the noise of float64 nothing is singular; else the
    ordinary rank decision holds.
    """
    noise = 4 * f.s.shape[-1] * dtypes.eps(mx.float64) * (f.s[..., 0] / f.r[..., 0, 0]) ** 2
    penalized = (mx.min(l2, axis=-2) > noise)[..., None]
    kept = mx.where(penalized, f.s > 0, f.kept > 0).astype(mx.float64)
    return f._replace(kept=mx.stop_gradient(kept))
