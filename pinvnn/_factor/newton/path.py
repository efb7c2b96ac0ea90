"""A path of penalties."""

from .basis import in_basis, out_of_basis, penalty_of_all
from .large import Accuracy, minimize_large
from .preconditioners import preconditioner
from .quasi_newton import approach
from .working import Working


class Path:
    """Minimizers for a sequence of penalties, each started from the one before; by NumPy, with positive penalties.

    The features are turned once, into the eigenvectors of their Gram matrix, or the row space if that is smaller.
    """

    def __init__(self, xp, a, y, w):
        """``a`` ends with the intercept's column; arguments otherwise as of ``minimizer.minimize``, without a batch."""
        self.xp, self.y, self.w, self.n = xp, y, w, a.shape[-1] - 1
        self.a, self.q = in_basis(xp, a, w, self.n, "rows" if a.shape[-2] < self.n else "eigenvectors")
        self.t = xp.zeros((self.a.shape[-1], y.shape[-1]))

    def next(self, l2, accuracy):
        """T for one penalty of all features, at which F exceeds its minimum by about ``accuracy`` F."""
        xp = self.xp
        of_all = penalty_of_all(xp, xp.array([[float(l2)], [0.0]]), self.a.shape[-1])
        inverse = preconditioner(xp, self.a, self.w, of_all, True)
        self.t, excess = approach(Working(xp, self.a, self.y, self.w, of_all, inverse), self.t, accuracy)
        if excess > accuracy:
            both = Accuracy(accuracy, accuracy)
            self.t = minimize_large(xp, self.a, self.y, self.w, of_all, True, both, self.t)[0]
        return out_of_basis(xp, self.q, self.t)
