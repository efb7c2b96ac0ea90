"""The Hessian: formed and factored, or as an operator."""

from .arrays import transposed
from .objective import free_features

# Largest (N c) for which the Hessian is formed and factored; conjugate gradients beyond.
DENSE = 1200


def is_large(n, c):
    """Whether the Hessian of N = ``n`` features and ``c`` classes is too large to factor."""
    return n * c > DENSE


def curvature(xp, a, w, p, l2):
    """H ``(..., c N, c N)``, classes first, with the projectors on the common shifts of free features."""
    m, n = a.shape[-2:]
    c, batch = p.shape[-1], tuple(a.shape[:-2])
    rows = (p[..., :, :, None] * a[..., :, None, :]).reshape(*batch, m, c * n)
    weight = w[..., None]
    own = transposed(a)[..., None, :, :] @ (transposed(weight * p)[..., None] * a[..., None, :, :])  # (..., c, n, n)
    free = free_features(xp, l2)[..., 0]
    scale = xp.sum(weight * a * a, axis=-2)
    shift = free * xp.where(scale > 0, scale, xp.ones_like(scale)) / c
    eye_c, eye_n = xp.eye(c, dtype=xp.float64), xp.eye(n, dtype=xp.float64)
    diagonal = own + eye_n * transposed(l2 + 0 * p[..., :1, :])[..., None]
    blocks = eye_c[:, None, :, None] * diagonal[..., :, :, None, :]
    blocks = blocks + (eye_n * shift[..., None])[..., None, :, None, :]
    return blocks.reshape(*batch, c * n, c * n) - transposed(rows) @ (weight * rows)


def factored_solve(xp, a, w, p, l2, b):
    """``H^-1 b``; the common shift of free features must not be in ``b``."""
    n, c = b.shape[-2:]
    k = curvature(xp, a, w, p, l2)
    unit = 1 / xp.sqrt(xp.maximum(xp.diagonal(k, 0, -2, -1), 1e-290))  # units of the features: no pivot decides by them
    right = unit[..., None] * transposed(b).reshape(*b.shape[:-2], n * c, 1)
    x = xp.solve(k * unit[..., None] * unit[..., None, :], right)
    return transposed((unit[..., None] * x).reshape(*b.shape[:-2], c, n))


def times_hessian(xp, a, w, p, l2, u):
    """``H u``, without H."""
    # S of a common shift is 0. With 0 for the likely class nothing cancels where its probability is 1 to rounding.
    v = xp.thin(a, u)
    v = v - xp.take_along_axis(v, xp.argmax(p, axis=-1, keepdims=True), axis=-1)
    v = p * (v - xp.sum(p * v, axis=-1, keepdims=True))
    return xp.thin(transposed(a), w[..., None] * v) + l2 * u
