"""The Hessian: formed and factored, or as an operator."""

from .arrays import transposed
from .objective import free_features, shares_penalty, without_common_shift

# Largest (N c) for which the Hessian is formed and factored; conjugate gradients beyond.
DENSE = 1200


def is_large(n, c):
    """Whether the Hessian of N = ``n`` features and ``c`` classes is too large to factor."""
    return n * c > DENSE


def curvature(xp, a, w, p, l2):
    """H ``(..., c N, c N)``, classes first, with the projectors on the common shifts of free features."""
    c, scale = p.shape[-1], xp.sum(w[..., None] * a * a, axis=-2)
    free = free_features(xp, l2)[..., 0]
    shift = free * xp.where(scale > 0, scale, xp.ones_like(scale)) / c
    blocks = (xp.eye(a.shape[-1], dtype=xp.float64) * shift[..., None])[..., None, :, None, :]
    return _hessian(xp, a, w, p, l2, blocks)


def _hessian(xp, a, w, p, l2, more):
    """H as it is, and ``more`` (..., c or 1, N, c or 1, N). Each entry is right to rounding, for all probabilities."""
    (m, n), c, batch = a.shape[-2:], p.shape[-1], tuple(a.shape[:-2])
    eye, eye_n = xp.eye(c, dtype=xp.float64), xp.eye(n, dtype=xp.float64)
    weight = w[..., None]
    # For 1 - p the sum of the others: where p is 1 to rounding it is all that is left of S.
    variance = weight * p * (p @ (1 - eye))
    own = transposed(a)[..., None, :, :] @ (transposed(variance)[..., None] * a[..., None, :, :])  # (..., c, n, n)
    own = own + eye_n * transposed(l2 + 0 * p[..., :1, :])[..., None]
    rows = (p[..., :, :, None] * a[..., :, None, :]).reshape(*batch, m, c * n)
    across = (transposed(rows) @ (weight * rows)).reshape(*batch, c, n, c, n)
    blocks = eye[:, None, :, None] * own[..., :, :, None, :] - (1 - eye)[:, None, :, None] * across + more
    return blocks.reshape(*batch, c * n, c * n)


def scaled_hessian(xp, a, w, p, l2):
    """H ``(..., c N, c N)`` without its part for common shifts, in units in which its diagonal is 1, and these units.

    Where all classes have the same penalty, H takes a shift to l2 times it, and what sums to 0 to what sums to 0. Here
    l2 is left out for shifts, and a feature keeps the weight of one class instead. l2 itself would be lost in rounding,
    and a projector on the shifts would drown what curvature is left to a class that is told from the others by far.
    """
    c, shared = p.shape[-1], shares_penalty(xp, l2)
    eye_c, eye_n = xp.eye(c, dtype=xp.float64), xp.eye(a.shape[-1], dtype=xp.float64)
    sizes = transposed(a * a) @ (w[..., None] * p * (p @ (1 - eye_c))) + l2  # (..., N, c)
    first = xp.argmax(sizes, axis=-1, keepdims=True) == xp.arange(c)
    kept = transposed(shared * xp.where(first, xp.where(sizes > 0, sizes, xp.ones_like(sizes)), xp.zeros_like(sizes)))
    shifts = (eye_n * transposed(shared * l2[..., :1]))[..., None, :, None, :] / c
    more = eye_c[:, None, :, None] * (eye_n * kept[..., None])[..., :, :, None, :] - shifts
    k = _hessian(xp, a, w, p, l2, more)
    unit = 1 / xp.sqrt(xp.maximum(xp.diagonal(k, 0, -2, -1), 1e-290))  # units of the features: no pivot decides by them
    return k * unit[..., None] * unit[..., None, :], unit


def factored_solve(xp, a, w, p, l2, b):
    """``H^-1 b``; the common shift of free features must not be in ``b``."""
    (n, c), shared = b.shape[-2:], shares_penalty(xp, l2)
    shift = shared * xp.mean(b, axis=-1, keepdims=True)
    k, unit = scaled_hessian(xp, a, w, p, l2)
    x = xp.solve(k, unit[..., None] * transposed(b - shift).reshape(*b.shape[:-2], n * c, 1))
    x = without_common_shift(xp, transposed((unit[..., None] * x).reshape(*b.shape[:-2], c, n)), shared)
    penalty = l2[..., :1]
    return x + xp.where(penalty > 0, shift / xp.where(penalty > 0, penalty, xp.ones_like(penalty)), 0 * shift)


def times_hessian(xp, a, w, p, l2, u):
    """``H u``, without H."""
    # S of a common shift is 0. With 0 for the likely class nothing cancels where its probability is 1 to rounding.
    v = xp.thin(a, u)
    v = v - xp.take_along_axis(v, xp.argmax(p, axis=-1, keepdims=True), axis=-1)
    v = p * (v - xp.sum(p * v, axis=-1, keepdims=True))
    return xp.thin(transposed(a), w[..., None] * v) + l2 * u
