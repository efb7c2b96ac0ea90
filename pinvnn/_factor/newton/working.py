"""A large problem with visible values, made ready for many cheap products."""

from .conjugate_gradients import conjugate_gradients
from .objective import without_common_shift
from .preconditioners import Diagonal, Mean


class Working:
    """The problem in the units and the precision in which its products are cheapest; for one problem, by NumPy.

    Float32 where the columns of A are nearly orthogonal and all classes share a penalty: in units in which each column
    weighs about 1, the rounding of a large one, as language models have them, does not reach the others. In these
    problems the weights of a feature sum to 0 over the classes; what rounding adds to that sum is taken off, since the
    preconditioner would multiply it by up to k / l2. Other problems stay in float64.

    Attributes:
        dtype: Of the arrays here.
        unit: What the features are divided by ``(N, 1)``.
        a: ``(m, N)``, in these units like all that follows.
        y: ``(m, c)``.
        w: ``(m, 1)``.
        l2: ``(N, 1 or c)``.
    """

    def __init__(self, xp, a, y, w, l2, preconditioner):
        self.xp, self.preconditioner, self.single = xp, preconditioner, isinstance(preconditioner, Mean)
        self.dtype, self.unit = xp.float64, xp.ones((a.shape[-1], 1))
        if self.single:
            size = xp.sqrt(preconditioner.norms + l2)
            self.dtype, self.unit = xp.float32, xp.where(size > 0, size, 1.0)
            # In Fortran order, in which BLAS multiplies by few columns a quarter faster.
            a = xp.multiply(a, 1 / self.unit[:, 0], out=xp.empty(a.shape, xp.float32, order="F"), casting="same_kind")
            l2 = l2 / self.unit**2
        self.a, self.y, self.w, self.l2 = (x.astype(self.dtype, copy=False) for x in (a, y, w[:, None], l2))

    def inverse(self, spread):
        """The preconditioner of the problem in these units."""
        xp, found = self.xp, self.preconditioner.of_spread(spread)
        if not self.single:
            return found
        scaled = Diagonal(found.classes.astype(self.dtype), (found.inverse * self.unit**2).astype(self.dtype))
        return lambda b: without_common_shift(xp, scaled(without_common_shift(xp, b, 1)), 1)

    def solve(self, p, b, tolerance):
        """``H^-1 b`` to a tolerance that float32 can reach, or None where it does not."""
        xp, p, b = self.xp, p.astype(self.dtype), b / self.unit
        size = xp.sqrt(xp.vdot(b, b))
        if size == 0 or not xp.isfinite(size):
            return None
        inverse = self.inverse(self.preconditioner.spread(p))
        b = (b / size).astype(self.dtype)
        x = conjugate_gradients(xp, self.a, self.w[:, 0], p, self.l2, b, tolerance, inverse)
        return None if xp.isnan(x).any() else size * x.astype(xp.float64) / self.unit
