"""The objective, row by row, and the directions in which it does not change."""


def residual_and_loss(xp, v, y):
    """P - Y, ``(..., m, c)``, and the cross-entropy of each row, ``(..., m)``, to the last digit near 0 and 1."""
    d = v - xp.sum(y * v, axis=-1, keepdims=True)
    top = xp.max(d, axis=-1, keepdims=True)
    others = xp.exp(d - top) * (1 - y)
    rest = xp.sum(others, axis=-1, keepdims=True)
    own = xp.exp(-top)
    total = own + rest
    residual = others / total - y * (rest / total)
    return residual, (top + xp.log1p(own - 1 + rest))[..., 0]


def free_features(xp, l2):
    """1.0 for the features whose weights no penalty holds, ``(..., N, 1)``."""
    return xp.where(xp.max(xp.abs(l2), axis=-1, keepdims=True) == 0, 1.0 + 0 * l2[..., :1], 0 * l2[..., :1])


def shares_penalty(xp, l2):
    """1.0 for the features whose weights have the same penalty, or none, for all classes, ``(..., N, 1)``."""
    return xp.ones_like(l2) if l2.shape[-1] == 1 else free_features(xp, l2)


def without_common_shift(xp, b, free):
    """``b`` (..., N, c) less its mean over the classes where the feature is free."""
    return b - free * xp.mean(b, axis=-1, keepdims=True)
