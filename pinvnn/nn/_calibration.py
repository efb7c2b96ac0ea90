"""Calibration: scores become logits by a common scale and a shift of each class."""

import numpy as np


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
        The scale, and the shift ``(c,)``, whose sum is 0.

    References:
        J. C. Platt, Probabilistic outputs for support vector machines, Advances in Large Margin Classifiers, MIT 1999.
    """
    classes = scores.shape[1]
    hot = np.eye(classes)[labels]
    doubt = 1 / (weights @ hot + 2)
    targets = np.where(hot > 0, 1 - doubt[labels, None], doubt[labels, None] / max(classes - 1, 1))
    point = np.concatenate([[1.0], np.zeros(classes)])
    value, slope, curvature = _cross_entropy(point, scores, targets, weights)
    for _ in range(100):
        # A shift that all classes share changes nothing, so the Hessian is singular: take the shortest step.
        step = -np.linalg.lstsq(curvature, slope, rcond=1e-12)[0]
        gain, length = -slope @ step, 1.0
        if gain <= 1e-12 * abs(value):
            break
        while length > 1e-6:
            trial = _cross_entropy(point + length * step, scores, targets, weights)
            if trial[0] <= value - 0.1 * length * gain:
                break
            length /= 2
        else:
            break
        point, (value, slope, curvature) = point + length * step, trial
    return float(point[0]), point[1:]


def _cross_entropy(point, scores, targets, weights):
    """Value, gradient and Hessian in (scale, shift)."""
    logits = point[0] * scores + point[1:]
    logits = logits - logits.max(axis=1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    p, w = np.exp(logs), weights[:, None]
    value = -np.sum(w * targets * logs)
    miss = w * (p - targets)
    slope = np.concatenate([[np.sum(miss * scores)], miss.sum(axis=0)])
    centred = scores - np.sum(p * scores, axis=1, keepdims=True)
    mixed = np.sum(w * p * centred, axis=0)
    curvature = np.zeros((len(point), len(point)))
    curvature[0, 0] = np.sum(w * p * centred * scores)
    curvature[0, 1:] = curvature[1:, 0] = mixed
    curvature[1:, 1:] = np.diag(np.sum(w * p, axis=0)) - p.T @ (w * p)
    return value, slope, curvature
