"""Preconditioned conjugate gradients with the Hessian as an operator."""

import math

from .hessian import times_hessian

# Steps of conjugate gradients for one solve: in a graph, and at most.
_GRAPH_STEPS, MOST_STEPS = 30, 500


def conjugate_gradients(xp, a, w, p, l2, b, tolerance, inverse):
    """``H^-1 b``, until the residual norm falls by ``tolerance``; NaN where it does not.

    Args:
        xp: Whose arrays these are.
        a: Rows ``(..., m, N)``.
        w: Weights ``(..., m)``.
        p: Probabilities ``(..., m, c)``.
        l2: Penalty ``(..., N, 1 or c)``.
        b: ``(..., N, c)``.
        tolerance: Of the residual in the norm of the preconditioner.
        inverse: The preconditioner.
    """

    def dot(x, y):
        return xp.sum(x * y, axis=(-2, -1), keepdims=True)

    x, rest = xp.zeros_like(b), b
    z = inverse(rest)
    direction, norm = z, dot(rest, z)
    goal = norm * tolerance**2
    for _ in range(MOST_STEPS if xp.adaptive else _GRAPH_STEPS):
        turned = times_hessian(xp, a, w, p, l2, direction)
        slope = dot(direction, turned)
        going = xp.logical_and(norm > goal, slope > 0)
        if xp.adaptive and not going.any():
            break
        length = xp.where(going, norm / xp.where(slope > 0, slope, 1 + 0 * slope), 0 * norm)
        x, rest = x + length * direction, rest - length * turned
        z = inverse(rest)
        last, norm = norm, dot(rest, z)
        direction = z + xp.where(going, norm / xp.where(last > 0, last, 1 + 0 * last), 0 * norm) * direction
    # A solve that has not converged must not pass for one: the caller sees NaN.
    return xp.where(norm <= xp.maximum(goal, 1e-16 * dot(b, inverse(b))), x, x * math.nan)
