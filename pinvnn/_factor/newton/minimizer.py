"""The minimizer of F.

F is convex; a step along -H^-1 g takes the best of several lengths, so that F never grows. Only where values may be
looked at does the number of steps depend on them; in a graph it is fixed.
"""

import math
from typing import Any, NamedTuple

from .arrays import transposed
from .basis import basis_kind, features_of, in_basis, is_nearly_diagonal, out_of_basis, penalty_of_all
from .conjugate_gradients import conjugate_gradients
from .existence import is_certain, is_minimum, is_still
from .hessian import factored_solve, is_large
from .large import FINE, MOST_STEPS, minimize_large
from .objective import residual_and_loss, shares_penalty, without_common_shift
from .preconditioners import preconditioner

# Lengths of a step that are tried. Beyond 1: on separable classes Newton's own step is too short by far.
_LENGTHS = (1.0, 2.0, 4.0, 0.5, 0.25, 0.1, 0.03, 0.01, 1e-3)
# Least eigenvalue of A^T D A over N times the largest, below which features are taken for collinear.
_COLLINEAR = 1e-15
# Newton steps in a graph.
GRAPH_STEPS = 24


class Fitted(NamedTuple):
    """What :func:`minimize` returns.

    Attributes:
        t: The minimizer ``(..., N, c)``; NaN where Newton's method did not converge.
        steps: Number of Newton steps that were taken.
        decrement: Newton decrement g^T H^-1 g before the last step over F, ``(...)``.
    """

    t: Any
    steps: int
    decrement: Any


def minimize(xp, a, y, w, l2, accuracy=FINE) -> Fitted:
    """The minimizer of F.

    Args:
        xp: :class:`NumPy` or :class:`Graph`: whose arrays these are.
        a: Rows, ``(..., m, N)``, float64 like all others.
        y: One-hot labels, ``(..., m, c)``.
        w: Weights, ``(..., m)``.
        l2: Penalty ``(..., N, 1 or c)``, or compact: see :func:`penalty_of_all`.
        accuracy: ``FINE`` or ``COARSE``. Small problems and graphs are always fine.
    """
    kind, c = basis_kind(a, l2, y.shape[-1]), y.shape[-1]
    plain = kind == "eigenvectors" and xp.adaptive and is_nearly_diagonal(xp, a, w, l2, c)
    if kind is None or plain:
        return minimize_in_basis(xp, a, y, w, penalty_of_all(xp, l2, a.shape[-1]), plain, accuracy)
    n = features_of(a, l2)
    rows, q = in_basis(xp, a, w, n, kind)
    if kind == "eigenvectors":  # collinear features without a penalty: as if not finite
        sizes, free = xp.sizes(rows[..., :n], w), xp.max(l2[..., 0, :], axis=-1)[..., None] == 0
        singular = xp.min(sizes, axis=-1, keepdims=True) <= _COLLINEAR * n * xp.max(sizes, axis=-1, keepdims=True)
        rows = xp.where(xp.logical_and(free, singular)[..., None], rows * math.nan, rows)
    l2 = penalty_of_all(xp, l2, rows.shape[-1])
    found = minimize_in_basis(xp, rows, y, w, l2, True, accuracy)
    return found._replace(t=out_of_basis(xp, q, found.t))


def minimize_in_basis(xp, a, y, w, l2, orthogonal=False, accuracy=FINE) -> Fitted:
    """:func:`minimize` with a full ``l2``.

    Args:
        xp: As of :func:`minimize`.
        a: As of :func:`minimize`.
        y: As of :func:`minimize`.
        w: As of :func:`minimize`.
        l2: ``(..., N, 1 or c)``.
        orthogonal: Whether the columns of ``a`` are orthogonal under the weights, nearly at least.
        accuracy: As of :func:`minimize`.
    """
    n, c = a.shape[-1], y.shape[-1]
    batch, large = tuple(a.shape[:-2]), is_large(n, c)
    if large and xp.adaptive:
        return _one_by_one(xp, a, y, w, l2, orthogonal, accuracy)
    inverse = preconditioner(xp, a, w, l2, orthogonal) if large else None

    def solve(p, g, _):
        if inverse is None:
            return factored_solve(xp, a, w, p, l2, g)
        return conjugate_gradients(xp, a, w, p, l2, g, 1e-3, inverse.of_spread(inverse.spread(p)))

    start = xp.zeros((*batch, n, c), dtype=xp.float64)
    return newton_steps(xp, a, y, w, l2, start, solve, MOST_STEPS if xp.adaptive else GRAPH_STEPS)


def newton_steps(xp, a, y, w, l2, start, solve, most) -> Fitted:
    """Newton's method from ``start``, with a full ``l2``.

    Args:
        xp: As of :func:`minimize`.
        a: Rows. Their batch dimensions, like those of ``y`` and ``l2``, may be 1 where those of ``w`` are not.
        y: As of :func:`minimize`.
        w: As of :func:`minimize`.
        l2: ``(..., N, 1 or c)``.
        start: ``(..., N, c)``.
        solve: ``solve(p, g, excess)`` is ``H^-1 g`` at probabilities ``p``, or near it; ``excess`` is the decrement
            of the step before over F.
        most: The most steps.
    """
    batch = tuple(w.shape[:-1])
    t, v = start, a @ start
    shared = shares_penalty(xp, l2)
    certain = is_certain(xp, a, l2)
    lengths = xp.array(_LENGTHS, dtype=xp.float64).reshape(-1, *(1,) * (len(batch) + 2))

    def objective(v, t):
        fit = xp.sum(w * residual_and_loss(xp, v, y)[1], axis=-1)
        return (fit + xp.sum(l2 * t * t, axis=(-2, -1)) / 2)[..., None, None]

    value, last, done, steps = objective(v, t), None, None, 0
    decrement = value
    for count in range(most):
        miss, _ = residual_and_loss(xp, v, y)
        g = transposed(a) @ (w[..., None] * miss) + l2 * t
        g, p = without_common_shift(xp, g, shared), miss + y
        step = -solve(p, g, decrement / value)
        step = without_common_shift(xp, step, shared)  # a shift of g by rounding is divided by l2
        decrement = -xp.sum(g * step, axis=(-2, -1), keepdims=True)
        # Near a minimum the decrement falls by its square. A minimizer at infinity (separable classes without a
        # penalty) lets it fall by a constant factor only, and is none.
        if last is None:
            done, found = decrement > math.inf, abs(decrement) <= 1e-26 * value
        else:
            squared = xp.logical_or(decrement <= 0.05 * last, last <= 1e-26 * value)
            found = xp.logical_and(abs(decrement) <= 1e-10 * value, squared)
        near = decrement <= 1e-3 * value
        moved = a @ step
        found = xp.logical_and(found, xp.logical_or(certain, is_still(xp, moved)))
        reached = objective(v + moved, t + step)
        near, length = xp.logical_and(near, reached <= value * (1 + 1e-12)), xp.ones_like(value)
        if not (xp.adaptive and xp.logical_or(near, done).all()):
            trials = objective(v[None] + lengths * moved[None], t[None] + lengths * step[None])
            best, tried = xp.min(trials, axis=0), xp.take(lengths.reshape(-1), xp.argmin(trials, axis=0))
            length = xp.where(near, length, xp.where(best < value, tried, 0 * tried))
            reached = xp.where(near, reached, xp.where(best < value, best, value))
        length = xp.where(done, xp.zeros_like(length), length)  # the step after the last
        t, v = t + xp.where(done, 0 * step, length * step), v + xp.where(done, 0 * moved, length * moved)
        value = xp.where(done, value, reached)
        last, done, steps = decrement, xp.logical_or(done, found), count + 1
        if xp.adaptive and xp.logical_or(done, decrement != decrement).all():
            break
    if xp.adaptive and done is not None:
        a, y, l2, certain = (xp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, y, l2, certain))
        for i in xp.ndindex(*batch):
            if done[i] and not certain[i]:
                done[i] = is_minimum(xp, a[i], y[i], w[i], l2[i], v[i])
    return Fitted(xp.where(done, t, t * math.nan), steps, (decrement / value)[..., 0, 0])


def _one_by_one(xp, a, y, w, l2, orthogonal, accuracy):
    """:func:`minimize_in_basis` for large problems: each of a batch takes as many steps as it needs."""
    batch, sizes = a.shape[:-2], (a.shape[-1], y.shape[-1])
    l2 = xp.broadcast_to(l2, (*batch, *l2.shape[-2:]))
    found = [minimize_large(xp, a[i], y[i], w[i], l2[i], orthogonal, accuracy) for i in xp.ndindex(*batch)]
    t = xp.array([one[0] for one in found]).reshape(*batch, *sizes)
    steps, decrements = max((one[1] for one in found), default=0), xp.array([one[2] for one in found])
    return Fitted(t, steps, decrements.reshape(batch))
