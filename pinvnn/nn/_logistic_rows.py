"""A logistic problem as it is solved, and its fits without a row."""

from typing import NamedTuple

import mlx.core as mx

from .._factor import newton
from .._mlx import on_cpu
from .._rules import logistic

# Numbers of the rows and fits that refits hold at once.
_NUMBERS_AT_ONCE = 2**22


class Rows(NamedTuple):
    """A logistic problem, checked, in float64 on the CPU. Arrays may differ in their batch dimensions.

    Attributes:
        a: Features about ``mean``, and a column of ones for the intercept, ``(..., m, N)``.
        y: One-hot labels ``(..., m, c)``; NaN for a label that is no class.
        w: Weights ``(..., m)``, NaN where there is no minimizer for want of a class.
        l2: Penalty ``(1, 2 or N, 1 or c)``: one row for all features if they share it, and one of 0 for the intercept.
        mean: ``(..., 1, n)``, or None without an intercept. A constant: no shift changes the fit.
        out: The dtype of results.
    """

    a: mx.array
    y: mx.array
    w: mx.array
    l2: mx.array
    mean: mx.array | None
    out: mx.Dtype

    @property
    def accuracy(self) -> newton.Accuracy:
        """Of the fit of a large problem, for results of this dtype."""
        return newton.FINE if self.out == mx.float64 else newton.COARSE

    def minimizer(self) -> mx.array:
        """T ``(..., N, c)``, with its derivatives."""
        return logistic.minimizer(self.a, self.y, self.w, self.l2, self.accuracy)


def predicted(p: Rows, t: mx.array, x: mx.array) -> mx.array:
    """Logits ``(..., q, c)`` of the minimizer ``t`` for rows ``x`` (..., q, n)."""
    if p.mean is None:
        return x @ t
    solution, intercept = uncentred(p, t)
    return x @ solution + intercept


def uncentred(p: Rows, t: mx.array) -> tuple[mx.array, mx.array]:
    """Solution ``(..., n, c)`` and intercept ``(..., 1, c)`` for rows that are not centred; intercepts sum to 0."""
    solution, intercept = t[..., :-1, :], t[..., -1:, :]
    if p.mean is not None:
        intercept = intercept - p.mean @ solution
    return solution, intercept - mx.mean(intercept, axis=-1, keepdims=True)


class Fit(NamedTuple):
    """A minimizer, and the inverse of the Hessian there.

    Attributes:
        t: ``(..., N, c)``.
        g: ``(..., c N, c N)``, classes first.
    """

    t: mx.array
    g: mx.array


def fit(p: Rows) -> Fit:
    """The fit of ``p``."""
    t = p.minimizer()
    return Fit(t, logistic.inverse_hessian(p.a, p.w, p.l2, t))


def one_step(p: Rows, at: Fit) -> mx.array:
    """Logits ``(..., m, c)`` of each row after one Newton step without it."""
    return logistic.one_step_without(p.a, p.y, p.w, at.t, at.g)


def worst_refitted(p: Rows, at: Fit, logits: mx.array, count: int, kept: mx.array | None) -> mx.array:
    """``logits`` (..., m, c) of rows left out, those of the ``count`` with the largest cross-entropies by refits.

    Args:
        p: The problem.
        at: A fit near the refits, from which they start.
        logits: What stands for the others, and for refits that are not found.
        count: How many rows are refitted.
        kept: The weights ``(..., m, m)`` that all rows have without each; if None, those of ``p``, and 0 for that row.
    """
    logits, count = nan_where_alone(p, logits), min(count, p.a.shape[-2])
    with on_cpu():
        w, v, y = (mx.stop_gradient(x) for x in (p.w, logits, p.y))  # an order has no derivatives
        loss = w * newton.residual_and_loss(newton.Graph(), v, y)[1]
        order = mx.argsort(mx.where(mx.isnan(loss), mx.array(1.0, mx.float64), -loss), axis=-1)
        step, rows = max(1, _NUMBERS_AT_ONCE // max(1, p.a.shape[-2] * p.a.shape[-1])), mx.arange(p.a.shape[-2])
        for i in range(0, count, step):
            one = (order[..., i : min(i + step, count), None] == rows).astype(mx.float64)
            weights = p.w[..., None, :] * (1 - one) if kept is None else one @ kept
            t, found = logistic.refits(p.a, p.y, weights, p.l2, *at)
            refitted = ((one @ p.a)[..., None, :] @ t)[..., 0, :]
            refitted = mx.where(found[..., None], refitted, mx.zeros_like(refitted))
            replaced = one.mT @ found[..., None].astype(mx.float64) > 0
            logits = mx.where(replaced, one.mT @ refitted, logits)
    return nan_where_alone(p, logits)


def nan_where_alone(p: Rows, logits: mx.array) -> mx.array:
    """NaN instead of ``logits`` (..., m, c) for the only row of its class: without it, the intercept has no minimum."""
    if p.mean is None:
        return logits
    with on_cpu():
        own = mx.where(p.w > 0, p.w, mx.zeros_like(p.w))[..., None] * p.y
        others = mx.sum(own, axis=-2, keepdims=True) - own
        alone = mx.any(mx.logical_and(own > 0, others <= 1e-12 * own), axis=-1, keepdims=True)
        return mx.where(alone, mx.array(float("nan"), mx.float64), logits)
