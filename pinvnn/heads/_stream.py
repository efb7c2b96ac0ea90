"""Texts into features: chunks of rows, sorted by length into batches, which the ranks share."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import mlx.core as mx

from ._data import Dataset, Row, Split, read_rows
from ._extract import Pooling, pad
from ._features import read_features
from ._model import LanguageModel

# Texts between two updates of the statistics: enough that an update costs little beside the forward passes, few enough
# that their features are small beside the statistics.
CHUNK = 256


class Chunk(NamedTuple):
    """Features of up to ``CHUNK`` texts of a file.

    Attributes:
        index: Number of the chunk in the file.
        tokens: Number of tokens of the chunk on all ranks.
        features: One array ``(rows, dims)`` in float32 for each layer read; an empty list if this rank has no rows.
        targets: ``(rows, output_dims)``: 1 for the class of a text and -1 for the others, or the number to regress on.
    """

    index: int
    tokens: int
    features: list[mx.array]
    targets: mx.array


@dataclass
class Clock:
    """How long the parts of a run took.

    Attributes:
        seconds: By the name of the part.
        tokens: Number of tokens that went through the model on this rank.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    tokens: int = 0

    @contextmanager
    def measure(self, part: str) -> Generator[None, None, None]:
        """Context whose time is added to ``part``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


@dataclass
class Reader:
    """Reads the texts of a split and turns them into features.

    Attributes:
        source: The model.
        dataset: The task and its classes.
        layers: The layers to read, counted from 0.
        pooling: How a text becomes one vector.
        batch_size: Texts in one forward pass.
        rank: Number of this process among ``ranks``, which take turns at the batches.
        ranks: Number of processes.
        progress: Whether to show a progress bar.
        clock: Where the time is counted.
    """

    source: LanguageModel
    dataset: Dataset
    layers: Sequence[int]
    pooling: Pooling
    batch_size: int
    rank: int = 0
    ranks: int = 1
    progress: bool = False
    clock: Clock = field(default_factory=Clock)

    def chunks(self, split: Split, start: int = 0, tokens: int = 0) -> Iterator[Chunk]:
        """The chunks of a file from number ``start`` on; those before it have ``tokens`` tokens."""
        rows = islice(read_rows(split.path), start * CHUNK, None)
        with _bar(split, tokens) if self.progress and self.rank == 0 else nullcontext() as shown:
            index = start
            while chunk := list(islice(rows, CHUNK)):
                yield self._chunk(index, chunk, shown)
                mx.clear_cache()  # batches differ in shape, and MLX would keep buffers for all of them
                index += 1

    def _chunk(self, index: int, rows: list[Row], shown: Any) -> Chunk:
        """Features of ``rows``; ``shown`` is a progress bar or None."""
        encoded = [self.source.encode(row.text) for row in rows]
        # Texts of similar length in a batch need little padding.
        order = sorted(range(len(rows)), key=lambda i: len(encoded[i]))
        parts: list[list[mx.array]] = []
        mine: list[Row] = []
        for number, first in enumerate(range(0, len(rows), self.batch_size)):
            batch = order[first : first + self.batch_size]
            if number % self.ranks == self.rank:
                mine += [rows[i] for i in batch]
                parts.append(self._forward([encoded[i] for i in batch]))
            if shown is not None:
                shown.update(sum(len(encoded[i]) for i in batch))
        with self.clock.measure("forward"):
            features = [mx.concatenate(list(layer)) for layer in zip(*parts, strict=True)]
            mx.eval(features)
        return Chunk(index, sum(map(len, encoded)), features, self.targets(mine))

    def _forward(self, encoded: list[list[int]]) -> list[mx.array]:
        with self.clock.measure("forward"):
            features = read_features(self.source.model, *pad(encoded), self.layers, self.pooling)
            mx.eval(features)
        self.clock.tokens += sum(map(len, encoded))
        return features

    def targets(self, rows: Sequence[Row]) -> mx.array:
        """Targets of the fit, ``(rows, output_dims)``: see :class:`Chunk`."""
        if not self.dataset.classes:
            return mx.array([float(row.label) for row in rows]).reshape(len(rows), 1)
        column = {label: i for i, label in enumerate(self.dataset.classes)}
        index = mx.array([column[row.label] for row in rows], dtype=mx.int32).reshape(len(rows), 1)
        return mx.where(index == mx.arange(len(column)), 1.0, -1.0)


def _bar(split: Split, done: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=split.tokens, initial=done, unit="tok", unit_scale=True, desc=split.path.stem, dynamic_ncols=True)
