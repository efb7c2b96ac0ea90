"""A cheap start for Newton's method on a large problem: preconditioned L-BFGS."""

import math

from .objective import residual_and_loss

# Pairs of steps and changes of the gradient that are kept; the most steps, and trials of a step's length.
_PAIRS, _MOST_STEPS, _MOST_TRIALS = 10, 250, 12
# A length is taken where the slope has fallen to this part of the one at the step's beginning.
_SLOPE = 0.5
# Excess over F below which F is nearly quadratic, and its own change may be lost in rounding: the slope decides alone.
_QUADRATIC = 1e-4


def approach(problem, start, accuracy, enough=None):
    """Weights at which F exceeds its minimum by about ``accuracy`` F, and that excess over F as it is estimated there.

    Each step costs two products with the rows, as one of conjugate gradients does, and none is spent on a Hessian that
    is left behind. The preconditioner is that of a mean of S in which the past fades: where a step is too long,
    probabilities are near 0 and 1, S is tiny and its inverse would lead astray.

    Args:
        problem: A :class:`Working`.
        start: ``(N, c)`` in float64.
        accuracy: Relative accuracy of F at which to stop.
        enough: A function of the gradient, in the problem's units, and F that says whether to stop before.

    References:
        J. Nocedal, S. Wright, Numerical Optimization, 2nd ed., 2006, algorithm 7.4.
    """
    xp, a, y, w, l2 = problem.xp, problem.a, problem.y, problem.w, problem.l2
    t = (start * problem.unit).astype(problem.dtype)
    v, pairs = xp.thin(a, t), []

    miss, loss = residual_and_loss(xp, v, y)
    value = _dot(xp, w[:, 0], loss) + _dot(xp, l2 * t, t) / 2
    g, excess = xp.thin(a.T, w * miss) + l2 * t, math.inf
    spread, settled = problem.preconditioner.spread(miss + y), False
    for _ in range(_MOST_STEPS):
        if not settled:
            inverse = problem.inverse(spread)
        step = _direction(xp, g, pairs, inverse)
        slope = -float(xp.vdot(g, step))
        excess = slope / value if value > 0 else math.inf
        if not excess > accuracy or not slope > 0 or (enough is not None and enough(g, value)):
            break
        moved = xp.thin(a, step)
        penalty = [_dot(xp, l2 * one, other) for one, other in ((t, t), (t, step), (step, step))]
        length, miss, reached = _search(problem, v, moved, penalty, value, slope)
        if length == 0:  # rounding, or something that is not finite
            break
        step, v = problem.dtype(length) * step, v + problem.dtype(length) * moved
        t, value, last = t + step, reached, g
        if not (settled := slope <= _QUADRATIC * value):
            spread = (spread + problem.preconditioner.spread(miss + y)) / 2
        g = xp.thin(a.T, w * miss) + l2 * t
        curvature = xp.vdot(step, g - last)
        if curvature > 0:
            pairs = [*pairs[1 - _PAIRS :], (step, g - last, curvature)]
    return t.astype(xp.float64) / problem.unit, excess


def _dot(xp, x, y):
    """Their product, summed in float64."""
    return float(xp.vdot(x.astype(xp.float64), y))


def _direction(xp, g, pairs, inverse):
    """Minus the quasi-Newton inverse times ``g``."""
    q, factors = -g, []
    for step, change, curvature in reversed(pairs):
        factors.append(xp.vdot(step, q) / curvature)
        q = q - factors[-1] * change
    q = inverse(q)
    if pairs:  # in the scale of the last change
        _, change, curvature = pairs[-1]
        q = q * (curvature / xp.vdot(change, inverse(change)))
    for (step, change, curvature), factor in zip(pairs, reversed(factors), strict=True):
        q = q + (factor - xp.vdot(change, q) / curvature) * step
    return q


def _search(problem, v, moved, penalty, value, slope):
    """A length of the step, by Newton's method with a bracket, and the residuals and F there; 0 if none was found.

    The logits are linear in the length, so that a trial costs no product. ``penalty`` are the coefficients of the
    penalty, ``value`` is F at the length 0.
    """
    xp, y, w, (constant, linear, square) = problem.xp, problem.y, problem.w, penalty
    length, low, high, weighted = 1.0, 0.0, math.inf, w * moved
    quadratic = slope <= _QUADRATIC * value
    for _ in range(_MOST_TRIALS):
        miss, loss = residual_and_loss(xp, v + problem.dtype(length) * moved, y)
        rise = float(xp.vdot(miss, weighted)) + linear + length * square
        reached = _dot(xp, w[:, 0], loss) + constant / 2 + length * (linear + length * square / 2)
        if abs(rise) <= _SLOPE * slope and (reached < value or quadratic):
            return length, miss, reached
        low, high = (length, high) if rise < 0 else (low, length)
        p = miss + y
        mean = xp.einsum("ij,ij->i", p, moved)[:, None]
        bend = float(xp.vdot(p * moved, weighted)) - float(xp.vdot(w * mean, mean)) + square
        wanted = length - rise / bend if bend > 0 else math.inf
        length = min(wanted, 10 * length) if low < wanted < high else (low + min(high, 10 * length)) / 2
    return 0.0, miss, value
