"""A path of penalties."""

import math

from .basis import in_basis, out_of_basis, penalty_of_all
from .large import Accuracy, minimize_large
from .objective import residual_and_loss
from .preconditioners import preconditioner
from .quasi_newton import approach
from .working import Working


class Path:
    """Minimizers for a sequence of penalties; by NumPy, with positive penalties.

    Each starts from the one before or, where F is smaller there, from the line through the last two, as a function of
    the logarithm of the penalty: that is how weights grow where penalties alone hold separable classes. The features
    are turned once, into the eigenvectors of their Gram matrix, or the row space if that is smaller.
    """

    def __init__(self, xp, a, y, w):
        """``a`` ends with the intercept's column; arguments otherwise as of ``minimizer.minimize``, without a batch."""
        self.xp, self.y, self.w, self.n = xp, y, w, a.shape[-1] - 1
        self.a, self.q = in_basis(xp, a, w, self.n, "rows" if a.shape[-2] < self.n else "eigenvectors")
        self.t, self.change, self.l2 = xp.zeros((self.a.shape[-1], y.shape[-1])), None, None

    def next(self, l2, accuracy):
        """T for one penalty of all features, at which F exceeds its minimum by about ``accuracy`` F."""
        xp = self.xp
        of_all = penalty_of_all(xp, xp.array([[float(l2)], [0.0]]), self.a.shape[-1])
        inverse = preconditioner(xp, self.a, self.w, of_all, True)
        start, rise, last = self.t, math.log(l2 / self.l2) if self.l2 else 0.0, self.t
        if self.change is not None:
            start = min(start, start + rise * self.change, key=lambda t: self._objective(of_all, t))
        self.t, excess = approach(Working(xp, self.a, self.y, self.w, of_all, inverse), start, accuracy)
        if excess > accuracy:
            both = Accuracy(accuracy, accuracy)
            self.t = minimize_large(xp, self.a, self.y, self.w, of_all, True, both, self.t)[0]
        self.change, self.l2 = (self.t - last) / rise if rise else None, l2
        return out_of_basis(xp, self.q, self.t)

    def _objective(self, l2, t):
        xp = self.xp
        loss = residual_and_loss(xp, xp.thin(self.a, t), self.y)[1]
        return float(self.w @ loss + xp.sum(l2 * t * t) / 2)
