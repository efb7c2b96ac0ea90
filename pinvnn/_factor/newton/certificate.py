"""A bound of the Newton decrement that costs a gradient, where penalties alone make F strongly convex."""

from .hessian import factored_solve
from .objective import residual_and_loss

# Newton steps in the intercept alone, and the change of it at which the next one is below rounding.
_STEPS, _SMALL = 4, 1e-7
# Of a class: by how much of its weight its probabilities may miss it.
_BALANCED = 1e-6


class Certificate:
    """``g^T H^-1 g <= sum g^2 / l2`` over the features, where the intercept's part of ``g`` is 0.

    H is the penalty and a positive semidefinite matrix, and so is its Schur complement without the intercept. A
    minimizer exists: every feature but one constant has a penalty, and every class has a row (else weights are NaN).

    Attributes:
        applies: Whether that is so. If not, the other methods must not be called.
    """

    def __init__(self, xp, a, y, w, l2):
        self.xp, self.a, self.y, self.w = xp, a, y, w
        free = xp.flatnonzero((l2 == 0).any(axis=-1))
        column = a[:, free]
        self.free = free[0] if len(free) else None
        constant = len(free) == 1 and (l2[free] == 0).all() and (column == column[:1]).all() and column.any()
        self.applies = not len(free) or bool(constant)
        self.inverse = xp.where(l2 > 0, 1 / xp.where(l2 > 0, l2, 1.0), 0.0) if self.applies else None

    def decrement(self, g):
        """At most this is ``g^T H^-1 g``."""
        return float(self.xp.sum(self.inverse * g * g))

    def balanced(self, t, v):
        """``t``, its logits and P - Y after the intercept is optimized, and whether that succeeded."""
        xp, (miss, _) = self.xp, residual_and_loss(self.xp, v, self.y)
        if self.free is None:
            return t, v, miss, True
        column, t, total, none = self.a[:, self.free, None], t.copy(), self.w @ self.y, xp.zeros((1, 1))
        for _ in range(_STEPS):
            g = column.T @ (self.w[:, None] * miss)
            step = -factored_solve(xp, column, self.w, miss + self.y, none, g)
            if not xp.isfinite(step).all():
                break
            v, t[self.free] = v + column @ step, t[self.free] + step[0]
            miss, _ = residual_and_loss(xp, v, self.y)
            if abs(column[0] * step).max() <= _SMALL:
                return t, v, miss, bool((abs(self.w @ miss) <= _BALANCED * total).all())
        return t, v, miss, False
