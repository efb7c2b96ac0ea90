"""Scores of many readouts in one pass over the texts: accuracy or R^2, and how good the probabilities are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from .._mlx import addmm, on_cpu

BINS = 15  # of the expected calibration error
SCALES = 23  # how many scales of the probabilities are tried


class Scores(NamedTuple):
    """Scores of the readouts, each as a list ``[layer][penalty]``.

    Attributes:
        score: Accuracy or R^2.
        scale: What the scores are multiplied by to be the logits of probabilities: the one with the smallest
            cross-entropy, for Platt's smoothed targets.
        log_loss: Mean cross-entropy of these probabilities.
        calibration_error: Expected calibration error: the mean difference of confidence and accuracy over equal bins of
            the confidence, weighted by the texts in them.

    References:
        J. C. Platt, Probabilistic outputs for support vector machines, Advances in Large Margin Classifiers, 1999.
        C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On calibration of modern neural networks, ICML 2017, arXiv
        1706.04599, Eq. 3 and section 4.2.
    """

    score: list[list[float]]
    scale: list[list[float]] | None = None
    log_loss: list[list[float]] | None = None
    calibration_error: list[list[float]] | None = None


def scales_to_try(spread: mx.array, bias: mx.array) -> mx.array:
    """Scales for softmax(scale * scores), spaced geometrically over all that may be the best.

    Args:
        spread: Standard deviation of the scores over the texts, ``(penalties,)``.
        bias: ``(penalties, outputs)``. Where a strong penalty leaves little else, it limits the scale.

    Returns:
        Shape ``(penalties, SCALES)``.
    """
    spread = mx.where(spread > 0, spread, 1.0)
    low, high = 2.0**-4 / mx.maximum(spread, mx.std(bias, axis=1)), 2.0**7 / spread
    steps = mx.arange(SCALES) / (SCALES - 1)
    return low[:, None] * mx.power((high / low)[:, None], steps)


class Tally:
    """Sums from which the scores of the readouts of every layer and penalty follow.

    Args:
        weights: One array for each layer, ``(penalties, outputs, dims)``.
        biases: One array for each layer, ``(penalties, outputs)``.
        classification: Whether to count right labels, or to add up squared errors.
        scales: For each layer the scales of the probabilities to try, ``(penalties, S)``. Default: no probabilities.
    """

    def __init__(
        self,
        weights: list[mx.array],
        biases: list[mx.array],
        classification: bool,
        scales: Sequence[mx.array] | None = None,
    ) -> None:
        self.weights, self.biases, self.classification = weights, biases, classification
        self.scales = scales if classification else None
        shape = (len(weights), weights[0].shape[0])
        with on_cpu():
            self._sums = mx.zeros(shape, mx.float64)
            self._moments = mx.zeros((3,), mx.float64)  # of the targets: count, sum, sum of squares
            if self.scales is not None:
                # Cross-entropies, and of each bin the confidences, the right labels.
                self._losses = mx.zeros((*shape, self.scales[0].shape[1]), mx.float64)
                self._bins = mx.zeros((*self._losses.shape, 2, BINS), mx.float64)
                # For each class its number of rows, and the sums of their scores: of this class, and of all classes.
                self._classes = mx.zeros((*shape, 3, weights[0].shape[1]), mx.float64)

    def add(self, features: list[mx.array], targets: mx.array) -> None:
        """Add the features of some rows, ``(rows, dims)`` for each layer, and their targets ``(rows, outputs)``."""
        predicted = [self._predict(i, x) for i, x in enumerate(features)]
        layers = [self._layer(scores, targets) for scores in predicted]
        mx.eval(layers)
        with on_cpu():
            sums, y = mx.stack(layers), targets.astype(mx.float64)
            self._sums = self._sums + sums.astype(mx.float64)
            self._moments = self._moments + mx.stack([mx.array(y.shape[0], mx.float64), mx.sum(y), mx.sum(y * y)])
            mx.eval(self._sums, self._moments)
        if self.scales is not None:
            self._add_probabilities(predicted, self.scales, targets)

    def _predict(self, layer: int, features: mx.array) -> mx.array:
        """Outputs ``(rows, penalties, outputs)`` of the readouts of a layer: one product for the whole grid."""
        weight, bias = self.weights[layer], self.biases[layer]
        features = features.astype(mx.float32)
        flat = addmm(bias.reshape(-1), features, weight.reshape(-1, weight.shape[2]).T)
        return flat.reshape(-1, *weight.shape[:2])

    def _layer(self, predicted: mx.array, targets: mx.array) -> mx.array:
        """Right labels or squared errors of each penalty, ``(penalties,)``."""
        if self.classification:
            right = mx.argmax(predicted, axis=-1) == mx.argmax(targets, axis=-1)[:, None]
            return right.astype(mx.float32).sum(axis=0)
        with on_cpu():  # the square of a number of 1e20 is no number of float32
            error = predicted.astype(mx.float64) - targets[:, None, :].astype(mx.float64)
            return (error * error).sum(axis=(0, 2))

    def _add_probabilities(self, predicted: list[mx.array], scales: Sequence[mx.array], targets: mx.array) -> None:
        truth = mx.argmax(targets, axis=-1)[:, None, None]
        mine = (truth == mx.arange(targets.shape[1])).astype(mx.float32)
        found, classes = [], []
        for scores, scale in zip(predicted, scales, strict=True):
            right = mx.argmax(scores, axis=-1) == truth[..., 0]
            parts = []
            for i in range(scale.shape[1]):  # one at a time: memory is that of the scores
                logits = scores * scale[:, i, None]
                total = mx.logsumexp(logits, axis=-1)
                confidence = mx.exp(mx.max(logits, axis=-1) - total)
                loss = total - mx.take_along_axis(logits, truth, axis=-1)[..., 0]
                index = mx.clip(mx.ceil(confidence * BINS) - 1, 0, BINS - 1)[..., None] == mx.arange(BINS)
                bins = mx.stack([mx.sum(mx.where(index, x[..., None], 0), axis=0) for x in (confidence, right)], axis=1)
                parts.append((mx.sum(loss, axis=0), bins.astype(mx.float32)))
                mx.eval(parts[-1])
            found.append([mx.stack(list(part), axis=1) for part in zip(*parts, strict=True)])
            sums = [mx.broadcast_to(mine, scores.shape), mine * scores, mine * mx.sum(scores, axis=-1, keepdims=True)]
            classes.append(mx.stack([mx.sum(x, axis=0) for x in sums], axis=1))
            mx.eval(classes[-1])
        with on_cpu():
            losses, bins = (mx.stack(list(part)).astype(mx.float64) for part in zip(*found, strict=True))
            self._losses, self._bins = self._losses + losses, self._bins + bins
            self._classes = self._classes + mx.stack(classes).astype(mx.float64)
            mx.eval(self._losses, self._bins, self._classes)

    def scores(self, group: mx.distributed.Group) -> Scores:
        """The scores over the rows of all processes in ``group``, with the best of the scales."""
        with on_cpu():
            sums = mx.distributed.all_sum(self._sums, group=group)
            count, total, squares = mx.distributed.all_sum(self._moments, group=group)
            score: Any = sums / count if self.classification else 1.0 - sums / (squares - total * total / count)
            if self.scales is None:
                return Scores(score.tolist())
            scales = mx.stack(list(self.scales)).astype(mx.float64)
            losses = mx.distributed.all_sum(self._losses, group=group)
            smoothed = losses + scales * self._smoothing(mx.distributed.all_sum(self._classes, group=group))[..., None]
            losses = losses / count
            confidence, right = mx.moveaxis(mx.distributed.all_sum(self._bins, group=group), -2, 0)
            errors = mx.sum(mx.abs(confidence - right), axis=-1) / count
            best = mx.argmin(smoothed, axis=-1)[..., None]
            parts: Any = [mx.take_along_axis(part, best, axis=-1)[..., 0] for part in (losses, errors)]
            scale: Any = mx.take_along_axis(scales, best, axis=-1)[..., 0]
            return Scores(score.tolist(), scale.tolist(), *(part.tolist() for part in parts))

    def _smoothing(self, classes: mx.array) -> mx.array:
        """What Platt's targets add to the sum of cross-entropies, for a scale of 1, ``(layers, penalties)``.

        The target of a row of class c, of which there are n, is 1 - 1 / (n + 2) instead of 1, and the other classes
        share the rest: the best scale is then finite even where the labels of all texts are right.
        """
        count, own, total = mx.moveaxis(classes, -2, 0)
        rest = 1 / (count + 2)
        return mx.sum(rest * own - rest / (count.shape[-1] - 1) * (total - own), axis=-1)
