"""Logistic readouts for a grid of penalties, from features that are kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .._factor import newton
from .._lm import Checkpoint, write_whole
from ..streaming import ReadoutStatistics

# Relative accuracy of the objective. What it leaves is far below what a split resolves.
ACCURACY = 1e-4
_FILE = "rows.safetensors"


class Rows:
    """Features of all training texts in memory, 4 m D bytes a layer, and their labels."""

    def __init__(self, layers: int) -> None:
        self.features: list[list[mx.array]] = [[] for _ in range(layers)]
        self.labels: list[mx.array] = []

    def add(self, features: Sequence[mx.array], targets: mx.array) -> None:
        """Add the features of some rows, and their targets, 1 for the class of a row and -1 for the others."""
        for kept, new in zip(self.features, features, strict=True):
            kept.append(new)
        self.labels.append(mx.argmax(targets, axis=-1))
        mx.eval(self.labels[-1])

    def save(self, folder: Path) -> None:
        """Write all rows into a file of ``folder``."""
        if not self.labels:
            return
        arrays = {str(i): mx.concatenate(kept) for i, kept in enumerate(self.features)}
        arrays["labels"] = mx.concatenate(self.labels)
        write_whole(folder, {_FILE: lambda path: mx.save_safetensors(str(path), arrays)})

    def load(self, folder: Path, count: int) -> None:
        """Read the first ``count`` rows: a run that was interrupted while it saved has written more."""
        arrays: Any = mx.load(str(folder / _FILE))
        self.features = [[arrays[str(i)][:count]] for i in range(len(self.features))]
        self.labels = [arrays["labels"][:count]]
        mx.eval(self.features, self.labels)


class RowCheckpoint(Checkpoint):
    """A checkpoint that holds the rows, too. They are written first: there are never fewer than it counts."""

    def __init__(self, folder: Path, run: dict[str, Any], rank: int, rows: Rows, chunk: int) -> None:
        super().__init__(folder, run, rank)
        self.rows, self.chunk = rows, chunk

    def save(self, statistics: Sequence[ReadoutStatistics], chunks: int, tokens: int) -> None:
        self.rows.save(self.folder / f"rank{self.rank}-rows")
        super().save(statistics, chunks, tokens)

    def load(self) -> tuple[list[ReadoutStatistics], int, int] | None:
        found = super().load()
        if found is not None:
            self.rows.load(self.folder / f"rank{self.rank}-rows", found[1] * self.chunk)
        return found


def fit_grid(features: mx.array, labels: mx.array, l2: Sequence[float], classes: int) -> tuple[mx.array, mx.array]:
    """Logistic readouts for every penalty, strong to weak, each started from those before.

    Args:
        features: ``(m, n)``.
        labels: ``(m,)``, from 0 to ``classes - 1``.
        l2: G positive penalties.
        classes: Number of classes c.

    Returns:
        Weights ``(G, c, n)`` and biases ``(G, c)`` in float32.
    """
    xp = newton.NumPy()
    x = np.asarray(features).astype(np.float64)
    mean = x.mean(axis=0)
    w = np.ones(len(x))
    a, y = np.column_stack([x - mean, w]), np.eye(classes)[np.asarray(labels)]
    path, found = newton.Path(xp, a, y, w), dict[float, tuple[Any, Any]]()
    for penalty in sorted(set(l2), reverse=True):
        t = path.next(penalty, ACCURACY)
        found[penalty] = t[:-1].T, t[-1] - mean @ t[:-1]
    weights, biases = (np.stack([found[penalty][i] for penalty in l2]).astype(np.float32) for i in range(2))
    return mx.array(weights), mx.array(biases - biases.mean(axis=-1, keepdims=True))


def fit_layers(rows: Rows, l2: Sequence[float], classes: int) -> tuple[list[mx.array], list[mx.array]]:
    """:func:`fit_grid` of each layer: weights and biases. Releases the features."""
    labels, weights, biases = mx.concatenate(rows.labels), [], []
    for kept in rows.features:
        weight, bias = fit_grid(mx.concatenate(kept), labels, l2, classes)
        weights.append(weight)
        biases.append(bias)
        kept.clear()
    return weights, biases
