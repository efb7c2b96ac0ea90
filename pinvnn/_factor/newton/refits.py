"""Fits with other weights than one whose Hessian has been inverted: leave-one-out."""

from .arrays import transposed
from .conjugate_gradients import truncated
from .minimizer import newton_steps

# Newton steps, and steps of conjugate gradients for each: at most, and in a graph. There is no need of more for rows
# of real data; a solve that is cut off gives a direction of descent all the same.
_NEWTON_STEPS, _INNER_STEPS = 10, 14


class Inverse:
    """The inverse ``g`` (..., 1, c N, c N), classes first, of a Hessian, as a preconditioner of others near it."""

    def __init__(self, g):
        self.g = g

    def __call__(self, b):
        """``g b`` for ``b`` (..., K, N, c)."""
        *lead, n, c = b.shape
        flat = transposed(b).reshape(*lead, c * n)
        return transposed((flat @ self.g[..., 0, :, :]).reshape(*lead, c, n))


def refit(xp, a, y, w, l2, start, g):
    """The minimizers ``(..., K, N, c)`` of K problems that differ in their weights; NaN where one is not found.

    Where visible and in a graph, the steps are the same.

    Args:
        xp: Whose arrays these are.
        a: Rows ``(..., 1, m, N)``.
        y: One-hot labels ``(..., 1, m, c)``.
        w: Weights ``(..., K, m)``.
        l2: Penalty ``(..., N, 1 or c)``.
        start: ``(..., K, N, c)``.
        g: The inverse ``(..., 1, c N, c N)`` of the Hessian of a fit near them.
    """
    inverse = Inverse(g)

    def solve(p, b, excess):
        tolerance = xp.minimum(0.1, xp.maximum(1e-6, excess))
        return truncated(xp, a, w, p, l2, b, tolerance, inverse, _INNER_STEPS)[0]

    return newton_steps(xp, a, y, w, l2, start, solve, _NEWTON_STEPS).t
