"""Whether there is a minimizer, where features but the intercept have no penalty.

If they tell one class, or several, from the others, the minimizer is at infinity. Where those others overlap, F soon
has no digit for what is left to gain, and its decrement looks like that of a minimum. Two things tell them apart. Far
out the loss of such a class is exponential, so that each Newton step is as long as the one before it: of some row it
changes the logits by 1. And if rounding has drowned that curvature, H is singular to rounding.
"""

from .arrays import transposed
from .hessian import DENSE, factored_solve, scaled_hessian
from .objective import free_features, residual_and_loss, without_common_shift

# Change of the logits by a Newton step at the minimum, at most; the least eigenvalue of H, with ones on its diagonal,
# over its size.
_STILL, _SINGULAR = 0.1, 1e-15


def is_certain(xp, a, l2):
    """Whether every feature has a penalty but a constant one, ``(..., 1, 1)``."""
    return xp.sum(free_features(xp, l2) * transposed(abs(a - a[..., :1, :])), axis=(-2, -1), keepdims=True) == 0


def is_still(xp, moved):
    """Whether a step that changes the logits by ``moved`` (..., m, c) changes none by far, ``(..., 1, 1)``."""
    far = xp.where(abs(moved - moved[..., :1]) > _STILL, xp.ones_like(moved), xp.zeros_like(moved))
    return xp.sum(far, axis=(-2, -1), keepdims=True) == 0


def is_minimum(xp, a, y, w, l2, v):
    """Whether the logits ``v`` (m, c) are those of a minimum as far as free features go, if these can be factored.

    For one problem with visible values, at a point where the gradient is as small as that of a minimum.
    """
    free = (free_features(xp, l2) > 0)[:, 0]
    count, miss = int(free.sum()) * y.shape[-1], residual_and_loss(xp, v, y)[0]
    if not 0 < count <= DENSE:
        return True
    some, none = a[:, free], xp.zeros((int(free.sum()), 1))
    g = without_common_shift(xp, some.T @ (w[:, None] * miss), 1 + none)
    if not is_still(xp, some @ factored_solve(xp, some, w, miss + y, none, g)).all():
        return False
    values = xp.eigenpairs(scaled_hessian(xp, some, w, miss + y, none)[0])[0]
    return bool(values[0] > _SINGULAR * count)
