"""One search for all rivals: as many random draws for each, from its own space, judged on inner splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Log:
    """Log-uniform between two positive numbers."""

    low: float
    high: float

    def at(self, u: float) -> float:
        return float(self.low * (self.high / self.low) ** u)


@dataclass(frozen=True)
class Choice:
    """One of several values, each as likely."""

    values: tuple

    def at(self, u: float):
        return self.values[int(u * len(self.values))]


Space = dict[str, Any]


def draws(space: Space, budget: int, seed: int = 0) -> list[dict]:
    """``budget`` settings from a space of :class:`Log`, :class:`Choice` and fixed values; the same for the same seed.

    A Latin hypercube: each parameter takes a value in each of ``budget`` equal parts of its range (McKay, Beckman and
    Conover 1979), so that few draws cover a space of one parameter like a grid.
    """
    rng = np.random.default_rng(seed)
    at = {name: (rng.permutation(budget) + rng.random(budget)) / budget for name in space}
    return [{name: s.at(at[name][i]) if hasattr(s, "at") else s for name, s in space.items()} for i in range(budget)]


def folds(rows: int, count: int, seed: int, labels=None) -> list[np.ndarray]:
    """Boolean masks ``(rows,)`` of ``count`` test folds that cover all rows; balanced in ``labels``, if given."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(rows)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(rows, int)
    fold[order] = np.arange(rows) % count
    return [fold == i for i in range(count)]


@dataclass(frozen=True)
class Split:
    """An outer test fold, and the inner folds into which the other rows are split for the search."""

    test: np.ndarray
    inner: list[np.ndarray]

    @property
    def train(self) -> np.ndarray:
        return ~self.test


def nested(rows: int, outer: int, inner: int, repeats: int = 1, labels=None) -> list[Split]:
    """Nested cross-validation: every inner validation fold lies in the training rows of its outer split."""
    found = []
    for repeat in range(repeats):
        for i, test in enumerate(folds(rows, outer, 100 * repeat, labels)):
            kept = np.flatnonzero(~test)
            parts = folds(len(kept), inner, 1 + 100 * repeat + i, None if labels is None else labels[kept])
            masks = []
            for part in parts:
                mask = np.zeros(rows, bool)
                mask[kept[part]] = True
                masks.append(mask)
            found.append(Split(test, masks))
    return found
