"""Newton's method for one large problem whose values are visible."""

import math
from typing import NamedTuple

from .certificate import Certificate
from .conjugate_gradients import conjugate_gradients
from .existence import is_minimum
from .hessian import times_hessian
from .objective import residual_and_loss, shares_penalty, without_common_shift
from .preconditioners import preconditioner
from .quasi_newton import approach
from .working import Working


class Accuracy(NamedTuple):
    """When a fit has its accuracy: what the Newton decrement is over F.

    Attributes:
        decrement: After one step more.
        bound: Already, by a bound of it.
    """

    decrement: float
    bound: float


# That of float64, and that of float32.
FINE, COARSE = Accuracy(1e-14, 5e-16), Accuracy(1e-8, 1e-7)
# Excess of F over its minimum, over F, at which Newton's method takes over from the quasi-Newton one.
_NEAR = 1e-10
MOST_STEPS = 100
# Part of the bound that quasi-Newton steps must show: the intercept is not optimal then, and changes the rest.
_AMPLE = 0.125
# Lengths of a step that are tried, in this order, until one is worse than the one before it.
_LENGTHS = (1.0, 2.0, 4.0, 0.5, 0.25, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


def minimize_large(xp, a, y, w, l2, orthogonal, accuracy, start=None):
    """The minimizer ``(N, c)``, NaN if it was not found, the number of Newton steps, and a bound of the last decrement
    over F.

    Where :class:`Working` is in float32, Newton steps are solved in it; F, its gradient and the residual of the last
    step are always of float64. A step that float32 does not reach is solved in float64, and so are all that follow.
    Arguments are those of ``minimizer.minimize_in_basis``, without a batch.
    """
    y = xp.asfortranarray(y)
    exact = preconditioner(xp, a, w, l2, orthogonal)
    working, certificate = Working(xp, a, y, w, l2, exact), Certificate(xp, a, y, w, l2)
    # Weights on which all classes have the same penalty, or none, sum to 0 over the classes.
    balanced = shares_penalty(xp, l2)

    def enough(g, value):
        return certificate.applies and certificate.decrement(g * working.unit) <= _AMPLE * accuracy.bound * value

    t, excess = approach(working, xp.zeros((a.shape[-1], y.shape[-1])) if start is None else start, _NEAR, enough)
    t = without_common_shift(xp, t, balanced)
    v, single, last, decrement = xp.thin(a, t), working.single, math.nan, math.nan

    def objective(t, v):
        return float(w @ residual_and_loss(xp, v, y)[1] + xp.sum(l2 * t * t) / 2)

    def gradient(t, miss):
        return without_common_shift(xp, xp.thin(a.T, w[:, None] * miss) + l2 * t, balanced)

    value = objective(t, v)
    for steps in range(MOST_STEPS):
        miss, _ = residual_and_loss(xp, v, y)
        g = gradient(t, miss)
        if certificate.applies and 0 < certificate.decrement(g) <= 10 * accuracy.bound * value:
            near, _, miss_near, optimal = certificate.balanced(t, v)
            if optimal and (bound := certificate.decrement(gradient(near, miss_near))) <= accuracy.bound * value:
                return near, steps, bound / value
        p, tolerance = miss + y, _tolerance(excess, accuracy)
        step = working.solve(p, -g, tolerance) if single else None
        if step is None:
            inverse, single = exact.of_spread(exact.spread(p)), False
            step = conjugate_gradients(xp, a, w, p, l2, -g, tolerance, inverse)
        step = without_common_shift(xp, step, balanced)  # rounding, which the inverse makes large
        decrement = -float(xp.vdot(g, step))
        # See minimizer.py: a minimizer at infinity lets the decrement fall by a constant factor only.
        squared = decrement <= 0.05 * last or last <= 1e-26 * value
        found = abs(decrement) <= 1e-26 * value or (abs(decrement) <= accuracy.decrement * value and squared)
        if single and (found or decrement <= 0):
            single = decrement > 0 and _is_solution(xp, a, w, p, l2, step, g, exact.of_spread(exact.spread(p)))
            if not single:
                continue
        moved = xp.thin(a, step)
        trials = ((objective(t + s * step, v + s * moved), s) for s in _LENGTHS)
        best, length = _best(trials, value, decrement <= 1e-3 * value)
        if length == 0 and not found:
            if not single:
                break
            single = False
            continue
        t, v, value = t + length * step, v + length * moved, best
        if found and (value > 0 or not t.any()):  # F of rows is 0 at infinity only
            if not certificate.applies and not is_minimum(xp, a, y, w, l2, v):
                break
            return t, steps + 1, decrement / value if value > 0 else 0.0
        if found or not decrement > 0:
            break
        single = single and not (decrement <= 1e-3 * value and decrement > 0.1 * last)  # else float32 does not do
        last, excess = decrement, tolerance**2 * decrement / value
    return t * math.nan, steps + 1, math.nan


def _tolerance(excess, accuracy):
    """Of a step where F is thought to exceed its minimum by ``excess`` F, so that no other step is needed after it."""
    return min(0.1, max(2e-4, 0.02 * math.sqrt(accuracy.bound / max(excess, accuracy.decrement))))


def _is_solution(xp, a, w, p, l2, step, g, inverse):
    """Whether ``H step = -g`` to a tenth, which is enough to trust the decrement."""
    rest = g + times_hessian(xp, a, w, p, l2, step)
    return xp.vdot(rest, inverse(rest)) <= 0.01 * xp.vdot(g, inverse(g))


def _best(trials, value, near):
    """(objective, length) of the first of the trials that does; length 0 if none descends."""
    best = next(trials)
    if near and best[0] <= value * (1 + 1e-12):
        return best
    for trial in trials:
        if best[0] < value and not trial[0] < best[0]:
            return best
        best = trial if trial[0] < best[0] else best
    return best if best[0] < value else (value, 0.0)
