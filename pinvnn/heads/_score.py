"""Scores of many readouts in one pass over the texts: accuracy or R^2."""

from typing import Any

import mlx.core as mx

from .._mlx import on_cpu


class Tally:
    """Sums from which the scores of the readouts of every layer and penalty follow.

    Args:
        weights: One array for each layer, ``(penalties, outputs, dims)``.
        biases: One array for each layer, ``(penalties, outputs)``.
        classification: Whether to count right labels, or to add up squared errors.
    """

    def __init__(self, weights: list[mx.array], biases: list[mx.array], classification: bool) -> None:
        self.weights, self.biases, self.classification = weights, biases, classification
        with on_cpu():
            self._sums = mx.zeros((len(weights), weights[0].shape[0]), mx.float64)
            self._moments = mx.zeros((3,), mx.float64)  # of the targets: count, sum, sum of squares

    def add(self, features: list[mx.array], targets: mx.array) -> None:
        """Add the features of some rows, ``(rows, dims)`` for each layer, and their targets ``(rows, outputs)``."""
        layers = zip(self.weights, self.biases, features, strict=True)
        sums = mx.stack([self._layer(*layer, targets) for layer in layers])
        mx.eval(sums)
        with on_cpu():
            y = targets.astype(mx.float64)
            self._sums = self._sums + sums.astype(mx.float64)
            self._moments = self._moments + mx.stack([mx.array(y.shape[0], mx.float64), mx.sum(y), mx.sum(y * y)])
            mx.eval(self._sums, self._moments)

    def _layer(self, weight: mx.array, bias: mx.array, features: mx.array, targets: mx.array) -> mx.array:
        """Right labels or squared errors of each penalty, ``(penalties,)``."""
        penalties, outputs, dims = weight.shape
        # One product for the whole grid.
        flat = mx.addmm(bias.reshape(-1), features, weight.reshape(-1, dims).T)
        predicted = flat.reshape(-1, penalties, outputs)
        if self.classification:
            right = mx.argmax(predicted, axis=-1) == mx.argmax(targets, axis=-1)[:, None]
            return right.astype(mx.float32).sum(axis=0)
        with on_cpu():  # the square of a number of 1e20 is no number of float32
            error = predicted.astype(mx.float64) - targets[:, None, :].astype(mx.float64)
            return (error * error).sum(axis=(0, 2))

    def scores(self, group: mx.distributed.Group) -> list[list[float]]:
        """Accuracy or R^2 over the rows of all processes in ``group``, ``[layer][penalty]``."""
        with on_cpu():
            sums = mx.distributed.all_sum(self._sums, group=group)
            count, total, squares = mx.distributed.all_sum(self._moments, group=group)
            scores: Any = sums / count if self.classification else 1.0 - sums / (squares - total * total / count)
            return scores.tolist()
