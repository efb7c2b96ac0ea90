"""Preconditioned conjugate gradients with the Hessian as an operator."""

import math

from .hessian import times_hessian

# Steps of conjugate gradients for one solve: in a graph, and at most.
_GRAPH_STEPS, MOST_STEPS = 30, 500


def conjugate_gradients(xp, a, w, p, l2, b, tolerance, inverse, steps=_GRAPH_STEPS):
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
        steps: How many are taken in a graph.
    """
    most = MOST_STEPS if xp.adaptive else steps
    x, rest, goal = truncated(xp, a, w, p, l2, b, tolerance, inverse, most)
    # A solve that has not converged must not pass for one: the caller sees NaN.
    return xp.where(rest <= xp.maximum(goal, 1e-16 * _dot(xp, b, inverse(b))), x, x * math.nan)


def truncated(xp, a, w, p, l2, b, tolerance, inverse, most):
    """:func:`conjugate_gradients` after ``most`` steps or fewer, the squared norm of the residual, and its goal."""
    x, rest = xp.zeros_like(b), b
    z = inverse(rest)
    direction, norm = z, _dot(xp, rest, z)
    goal = norm * tolerance**2
    for _ in range(most):
        turned = times_hessian(xp, a, w, p, l2, direction)
        slope = _dot(xp, direction, turned)
        going = xp.logical_and(norm > goal, slope > 0)
        if xp.adaptive and not going.any():
            break
        length = xp.where(going, norm / xp.where(slope > 0, slope, 1 + 0 * slope), 0 * norm)
        x, rest = x + length * direction, rest - length * turned
        z = inverse(rest)
        last, norm = norm, _dot(xp, rest, z)
        direction = z + xp.where(going, norm / xp.where(last > 0, last, 1 + 0 * last), 0 * norm) * direction
    return x, norm, goal


def _dot(xp, x, y):
    return xp.sum(x * y, axis=(-2, -1), keepdims=True)
