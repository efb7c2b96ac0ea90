"""A bound of the Newton decrement that costs a gradient, where penalties alone make F strongly convex."""

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
        constant, t, total = self.a[0, self.free], t.copy(), self.w @ self.y
        for _ in range(_STEPS):
            p, g = miss + self.y, self.w @ miss
            apart = 1 - xp.eye(p.shape[-1])
            weighted = self.w[:, None] * p
            curvature = xp.diag(xp.sum(weighted * (p @ apart), axis=0)) - apart * (weighted.T @ p)
            values, classes = xp.eigenpairs(curvature)
            kept = values > 1e-14 * values[-1]
            change = -classes @ (xp.where(kept, 1 / xp.where(kept, values, 1.0), 0.0) * (classes.T @ g))
            change = change - xp.mean(change)
            v, t[self.free] = v + change, t[self.free] + change / constant
            miss, _ = residual_and_loss(xp, v, self.y)
            if abs(change).max() <= _SMALL:
                return t, v, miss, bool((abs(self.w @ miss) <= _BALANCED * total).all())
        return t, v, miss, False
