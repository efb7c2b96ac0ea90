"""Texts into features: chunks of rows, sorted by length into batches, shared among the ranks."""

import time
from collections.abc import Iterator, Sequence
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
    """Features of some texts of a file.

    Attributes:
        index: Number of the chunk in the file.
        tokens: Tokens of the chunk, those of all ranks.
        features: One array ``(rows, dims)`` in float32 for each layer asked for; no array if this rank has no rows.
        targets: ``(rows, output_dims)``: 1 for the class of a text and -1 for the others, or the number to regress on.
    """

    index: int
    tokens: int
    features: list[mx.array]
    targets: mx.array


@dataclass
class Clock:
    """Seconds and tokens of the parts of a run."""

    seconds: dict[str, float] = field(default_factory=dict)
    tokens: int = 0

    @contextmanager
    def measure(self, part: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


@dataclass
class Reader:
    """Turns the texts of a split into features.

    Attributes:
        source: The model.
        dataset: Says what the labels mean.
        layers: The layers to read.
        pooling: How a text becomes one vector.
        batch_size: Texts a forward pass.
        rank: Which of the ``ranks`` processes this is; they take turns at the batches.
        progress: Whether to show a bar.
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
        """The chunks of a file from number ``start`` on, before which it has that many ``tokens``."""
        rows = islice(read_rows(split.path), start * CHUNK, None)
        with _bar(split, tokens) if self.progress and self.rank == 0 else nullcontext() as shown:
            index = start
            while chunk := list(islice(rows, CHUNK)):
                yield self._chunk(index, chunk, shown)
                mx.clear_cache()  # batches differ in shape, and MLX would keep buffers for all of them
                index += 1

    def _chunk(self, index: int, rows: list[Row], shown: Any) -> Chunk:
        encoded = [self.source.encode(row.text) for row in rows]
        # Texts of one length in a batch need little padding.
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
        """What the readout is fitted to."""
        if not self.dataset.classes:
            return mx.array([float(row.label) for row in rows]).reshape(len(rows), 1)
        column = {label: i for i, label in enumerate(self.dataset.classes)}
        index = mx.array([column[row.label] for row in rows], dtype=mx.int32).reshape(len(rows), 1)
        return mx.where(index == mx.arange(len(column)), 1.0, -1.0)


def _bar(split: Split, done: int):
    from tqdm import tqdm

    return tqdm(total=split.tokens, initial=done, unit="tok", unit_scale=True, desc=split.path.stem, dynamic_ncols=True)
