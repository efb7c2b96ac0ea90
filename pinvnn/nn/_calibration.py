"""Calibration: scores become logits by a common scale and a shift of each class."""

from typing import NamedTuple

import numpy as np

# Shifts are used if they lower the leave-one-out cross-entropy by this many standard errors of that difference ...
STANDARD_ERRORS = 3.0
# ... and if the row that is left out moves no logit by more than this through the intercept. A row takes its target out
# of the mean of the targets, so its own class loses by about 2 w / sum(w). If that is no longer small once scaled, the
# scores of rows left out and those of new rows differ by it, and shifts fitted to the former are wrong for the latter.
LARGEST_OFFSET = 0.1


def calibrated(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    r"""A positive scale and shifts that make ``softmax(scale * scores + shift)`` probabilities.

    The scale alone cannot change a label. It minimizes the cross-entropy of ``softmax(scale * scores)``; if no positive
    scale lowers it below that of equal probabilities, the scale is 1. That happens with one row a class, and where a
    strong penalty leaves little but the intercept, which without the row speaks against the row's own class. Shifts do
    change labels, so they are 0 unless the rows show that they are needed: see ``STANDARD_ERRORS`` and
    ``LARGEST_OFFSET``.

    Args:
        scores: Leave-one-out scores ``(m, c)``.
        labels: ``(m,)``, integers from 0 to c - 1.
        weights: ``(m,)``, positive.

    Returns:
        The scale, positive, and the shift ``(c,)``, whose sum is 0.

    References:
        C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On calibration of modern neural networks, ICML 2017, arXiv
        1706.04599, for the scale alone; their section 4.2 on why it leaves the accuracy as it is.
    """
    classes = scores.shape[1]
    spread = np.std(scores, axis=1).max(initial=0.0)
    if not spread > 0:
        return 1.0, np.zeros(classes)
    targets, scores = _smoothed(labels, weights, classes), scores / spread
    plain = _minimum(scores, targets, weights, shifts=False)
    constant = _cross_entropy(np.zeros(1), scores, targets, weights).value
    if not (plain.point[0] > 0 and constant - plain.value > 1e-9 * constant):
        return 1.0, np.zeros(classes)
    shifted = _minimum(scores, targets, weights, shifts=True)
    best = shifted if _shifts_are_needed(plain, shifted, scores, targets, weights, spread) else plain
    return float(best.point[0] / spread), np.append(best.point[1:], np.zeros(1 + classes - len(best.point)))


def calibrate(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    r"""The scale s and shift b that minimize the weighted cross-entropy of ``softmax(s * scores + b)``.

    The target of a row of class c, of which there are :math:`n_c`, is the probability :math:`1 - 1 / (n_c + 2)` instead
    of 1, and the rest is shared by the other classes (Platt 1999): the scale is then finite, even if the scores
    separate the classes perfectly. The problem is convex; it is solved by Newton's method with a line search.

    Args:
        scores: ``(m, c)``.
        labels: ``(m,)``, integers from 0 to c - 1.
        weights: ``(m,)``, non-negative and not all zero.

    Returns:
        The scale, which may be negative, and the shift ``(c,)``, whose sum is 0.

    References:
        J. C. Platt, Probabilistic outputs for support vector machines, Advances in Large Margin Classifiers, MIT 1999.
    """
    point = _minimum(scores, _smoothed(labels, weights, scores.shape[1]), weights, shifts=True).point
    return float(point[0]), point[1:]


class _State(NamedTuple):
    """The cross-entropy at a point (scale,) or (scale, shift): value, gradient by row, and Hessian."""

    point: np.ndarray
    value: float
    slopes: np.ndarray
    curvature: np.ndarray


def _smoothed(labels, weights, classes):
    """Platt's targets ``(m, c)``."""
    hot = np.eye(classes)[labels]
    doubt = 1 / (weights @ hot + 2)
    return np.where(hot > 0, 1 - doubt[labels, None], doubt[labels, None] / max(classes - 1, 1))


def _minimum(scores, targets, weights, shifts: bool) -> _State:
    """The minimum over the scale, and over the shift of each class if ``shifts``."""
    state = _cross_entropy(np.append(1.0, np.zeros(scores.shape[1] * shifts)), scores, targets, weights)
    for _ in range(100):
        # A shift that all classes share changes nothing, so the Hessian is singular: take the shortest step.
        slope = state.slopes.sum(axis=0)
        step = -np.linalg.lstsq(state.curvature, slope, rcond=1e-12)[0]
        gain, length = -slope @ step, 1.0
        if gain <= 1e-12 * abs(state.value):
            break
        while length > 1e-6:
            trial = _cross_entropy(state.point + length * step, scores, targets, weights)
            if trial.value <= state.value - 0.1 * length * gain:
                break
            length /= 2
        else:
            break
        state = trial
    return state


def _cross_entropy(point, scores, targets, weights) -> _State:
    logs = _log_probabilities(point[:1, None], point[1:], scores)
    p, w = np.exp(logs), weights[:, None]
    miss = w * (p - targets)
    slopes = np.sum(miss * scores, axis=1, keepdims=True)
    centred = scores - np.sum(p * scores, axis=1, keepdims=True)
    curvature = np.sum(w * p * centred * scores)[None, None]
    if len(point) > 1:
        mixed = np.sum(w * p * centred, axis=0)[:, None]
        curvature = np.block([[curvature, mixed.T], [mixed, np.diag(np.sum(w * p, axis=0)) - p.T @ (w * p)]])
        slopes = np.hstack([slopes, miss])
    return _State(point, -np.sum(w * targets * logs), slopes, curvature)


def _log_probabilities(scale, shift, scores):
    logits = scale * scores + (shift if shift.size else 0)
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def _shifts_are_needed(plain: _State, shifted: _State, scores, targets, weights, spread) -> bool:
    scale, largest = shifted.point[0] / spread, weights.max()
    if not (scale > 0 and 2 * scale * largest <= LARGEST_OFFSET * (weights.sum() - largest)):
        return False
    gain = _left_out(plain, scores, targets, weights) - _left_out(shifted, scores, targets, weights)
    return bool(gain.sum() > STANDARD_ERRORS * np.sqrt(len(gain)) * gain.std())


def _left_out(state: _State, scores, targets, weights):
    """The cross-entropy of each row, weighted, at the minimum without that row: one Newton step from that with it."""
    steps = np.linalg.lstsq(state.curvature, state.slopes.T, rcond=1e-12)[0].T
    points = state.point + steps
    return -weights * np.sum(targets * _log_probabilities(points[:, :1], points[:, 1:], scores), axis=1)
