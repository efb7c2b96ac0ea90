"""A large problem with visible values, made ready for many cheap products."""

from .preconditioners import Diagonal, Mean

# Beyond this number of steps of conjugate gradients float32 converges no more.
_MOST_STEPS = 200


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
            a, l2 = a / self.unit[:, 0], l2 / self.unit**2
        self.a, self.y, self.w, self.l2 = (x.astype(self.dtype, copy=False) for x in (a, y, w[:, None], l2))

    def inverse(self, spread):
        """The preconditioner of the problem in these units."""
        found = self.preconditioner.of_spread(spread)
        if not self.single:
            return found
        scaled = Diagonal(found.classes.astype(self.dtype), (found.inverse * self.unit**2).astype(self.dtype))
        return lambda b: without_sum(scaled(without_sum(b)))

    def solve(self, p, b, tolerance):
        """``H^-1 b`` to a tolerance that float32 can reach, or None where it does not."""
        xp, inverse, p, b = self.xp, self.inverse(self.preconditioner.spread(p)), p.astype(self.dtype), b / self.unit
        size = xp.sqrt(xp.vdot(b, b))
        if size == 0 or not xp.isfinite(size):
            return None
        rest, weighted = (b / size).astype(self.dtype), self.w * p
        x, z, rows, likely = xp.zeros_like(rest), inverse(rest), xp.arange(len(p)), xp.argmax(p, axis=1)
        direction, norm = z, xp.vdot(rest, z)
        goal = norm * self.dtype(tolerance) ** 2
        for _ in range(_MOST_STEPS):
            turned = self.a @ direction
            turned -= turned[rows, likely][:, None]  # see times_hessian
            turned = weighted * (turned - xp.einsum("ij,ij->i", p, turned)[:, None])
            turned = self.a.T @ turned + self.l2 * direction
            slope = xp.vdot(direction, turned)
            if not slope > 0:
                return None
            x += (norm / slope) * direction
            rest -= (norm / slope) * turned
            z = inverse(rest)
            last, norm = norm, xp.vdot(rest, z)
            if norm <= goal:
                return size * x.astype(xp.float64) / self.unit
            direction = z + (norm / last) * direction
        return None


def without_sum(b):
    """``b`` (N, c) less its mean over the classes."""
    return b - b.mean(axis=-1, keepdims=True)
