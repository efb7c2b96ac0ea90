"""What preconditions conjugate gradients and quasi-Newton steps: Hessians that are cheap to invert."""

from .arrays import transposed


class Bound:
    """Boehning's bound of the Hessian, 1/2 I x A^T D A + L, factored.

    D. Boehning, Multinomial logistic regression algorithm, Ann. Inst. Statist. Math. 44 (1992), 197-200. The Gram
    matrix is that of ridge regression; where all classes have the same penalty, so is the factorization.
    """

    def __init__(self, xp, a, w, l2):
        n = a.shape[-1]
        gram = transposed(a) @ (w[..., None] * a) / 2
        k = gram[..., None, :, :] + xp.eye(n, dtype=xp.float64) * transposed(l2)[..., None, :]
        self.shared = l2.shape[-1] == 1
        unit = 1 / xp.sqrt(xp.maximum(xp.diagonal(k, 0, -2, -1), 1e-290))
        eye = xp.eye(n, dtype=xp.float64) + 0 * k
        self.inverse = unit[..., None] * xp.solve(k * unit[..., None] * unit[..., None, :], eye) * unit[..., None, :]

    def spread(self, p):
        """What of the probabilities counts: nothing, the bound holds for all."""
        return 0.0

    def of_spread(self, spread):
        """The preconditioner, a function of ``b``."""
        return self

    def __call__(self, b):
        if self.shared:
            return self.inverse[..., 0, :, :] @ b
        return transposed((self.inverse @ transposed(b)[..., None])[..., 0])


class Mean:
    """The Hessian if all rows had the mean S of theirs, S x A^T D A + L, for A whose columns are orthogonal.

    Diagonal in the eigenvectors of S. It is nearer to the Hessian than Boehning's bound, in which S is 1/2, the farther
    the probabilities are from equal ones: conjugate gradients take a fifth of the steps.
    """

    def __init__(self, xp, a, w, l2):
        self.xp, self.w, self.l2 = xp, w[..., None], l2
        self.norms = xp.sizes(a, w)[..., None]
        total = xp.sum(w, axis=-1)[..., None, None]
        self.total = xp.where(total > 0, total, xp.ones_like(total))

    def spread(self, p):
        """The mean S of the rows, ``(..., c, c)``."""
        xp, weighted = self.xp, self.w * p
        sums = xp.sum(weighted, axis=-2)[..., None]
        return (sums * xp.eye(p.shape[-1], dtype=xp.float64) - transposed(p) @ weighted) / self.total

    def of_spread(self, spread):
        """The preconditioner with that mean S, a function of ``b``."""
        xp = self.xp
        values, classes = xp.eigenpairs(spread)
        values = xp.where(values > 1e-12 * values[..., -1:], values, xp.where(values != values, values, 0 * values))
        sizes = self.norms * values[..., None, :] + self.l2
        return Diagonal(classes, xp.where(sizes == 0, 0 * sizes, 1 / xp.where(sizes == 0, xp.ones_like(sizes), sizes)))


class Diagonal:
    """A preconditioner that is diagonal in the features and in the columns of ``classes`` (..., c, c)."""

    def __init__(self, classes, inverse):
        self.classes, self.inverse = classes, inverse

    def __call__(self, b):
        return ((b @ self.classes) * self.inverse) @ transposed(self.classes)


def preconditioner(xp, a, w, l2, orthogonal):
    """The nearest that there is: ``.of_spread(.spread(p))`` is it at the probabilities ``p``.

    Args:
        xp: Whose arrays these are.
        a: Rows ``(..., m, N)``.
        w: Weights ``(..., m)``.
        l2: Penalty ``(..., N, 1 or c)``.
        orthogonal: Whether the columns of ``a`` are orthogonal under the weights, nearly at least.
    """
    return (Mean if orthogonal and l2.shape[-1] == 1 else Bound)(xp, a, w, l2)
