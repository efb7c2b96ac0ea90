"""Texts into features: chunks of rows, sorted by length into batches, which the ranks share."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import mlx.core as mx

from .._mlx import fail
from .data import Dataset, Row, Split, read_rows
from .extract import Pooling, pad, read_features
from .model import LanguageModel

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


class Texts(NamedTuple):
    """Up to ``CHUNK`` rows of a file, before they go through the model.

    Attributes:
        index: Number of the chunk in the file.
        rows: The rows.
        encoded: Their token ids.
        shown: The progress bar, or None.
    """

    index: int
    rows: list[Row]
    encoded: list[list[int]]
    shown: Any

    @property
    def tokens(self) -> int:
        """Number of tokens of the rows."""
        return sum(map(len, self.encoded))


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


def check_batch_size(name: str, batch_size: int) -> None:
    """Raise ValueError in the name of a module unless ``batch_size`` is 1 or more."""
    if batch_size < 1:
        fail(name, "batch_size must be 1 or more", batch_size, "Pass 16, say.")


@dataclass
class TextReader:
    """Reads the texts of a file in chunks, and each chunk in batches that the ranks share.

    Attributes:
        source: The model.
        batch_size: Texts in one forward pass.
        rank: Number of this process among ``ranks``, which take turns at the batches.
        ranks: Number of processes.
        progress: Whether to show a progress bar.
        clock: Where the time is counted.
    """

    source: LanguageModel
    batch_size: int
    rank: int = 0
    ranks: int = 1
    progress: bool = False
    clock: Clock = field(default_factory=Clock)

    def texts(self, split: Split, start: int = 0, tokens: int = 0, labelled: bool = False) -> Iterator[Texts]:
        """The chunks of a file from number ``start`` on.

        Args:
            split: The file.
            start: Number of the first chunk to read.
            tokens: How many tokens the chunks before it have.
            labelled: Whether every row must have a label.
        """
        rows = islice(read_rows(split.path, labelled), start * CHUNK, None)
        with _bar(split, tokens) if self.progress and self.rank == 0 else nullcontext() as shown:
            index = start
            while chunk := list(islice(rows, CHUNK)):
                yield Texts(index, chunk, [self.source.encode(row.text) for row in chunk], shown)
                mx.clear_cache()  # batches differ in shape, and MLX would keep buffers for all of them
                index += 1

    def batches(self, texts: Texts) -> Iterator[tuple[list[Row], list[list[int]]]]:
        """This rank's batches of a chunk: rows, and their token ids."""
        rows, encoded = texts.rows, texts.encoded
        # Texts of similar length in a batch need little padding.
        order = sorted(range(len(rows)), key=lambda i: len(encoded[i]))
        for number, first in enumerate(range(0, len(rows), self.batch_size)):
            batch = order[first : first + self.batch_size]
            count = sum(len(encoded[i]) for i in batch)
            if number % self.ranks == self.rank:
                yield [rows[i] for i in batch], [encoded[i] for i in batch]
                self.clock.tokens += count
            if texts.shown is not None:
                texts.shown.update(count)


@dataclass
class Reader(TextReader):
    """Reads the texts of a split and turns them into features.

    Attributes:
        dataset: The task and its classes.
        layers: The layers to read, counted from 0.
        pooling: How a text becomes one vector.
    """

    dataset: Dataset = field(kw_only=True)
    layers: Sequence[int] = field(kw_only=True)
    pooling: Pooling = field(kw_only=True)

    def chunks(self, split: Split, start: int = 0, tokens: int = 0) -> Iterator[Chunk]:
        """The chunks of a file from number ``start`` on; those before it have ``tokens`` tokens."""
        for texts in self.texts(split, start, tokens, labelled=True):
            yield self.chunk(texts)

    def chunk(self, texts: Texts) -> Chunk:
        """Features of the rows of a chunk."""
        parts: list[list[mx.array]] = []
        mine: list[Row] = []
        for rows, encoded in self.batches(texts):
            mine += rows
            parts.append(self._forward(encoded))
        with self.clock.measure("forward"):
            features = [mx.concatenate(list(layer)) for layer in zip(*parts, strict=True)]
            mx.eval(features)
        return Chunk(texts.index, texts.tokens, features, self.targets(mine))

    def _forward(self, encoded: list[list[int]]) -> list[mx.array]:
        with self.clock.measure("forward"):
            features = read_features(self.source.model, *pad(encoded), self.layers, self.pooling)
            mx.eval(features)
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
