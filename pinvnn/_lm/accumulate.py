"""A pass over a file of texts that adds to statistics, is saved now and then, and goes on after an interruption."""

import time
from collections.abc import Callable, Sequence

import mlx.core as mx

from ..streaming import ReadoutStatistics
from .data import Split
from .files import Checkpoint
from .stream import CHUNK, TextReader, Texts


def accumulate(
    reader: TextReader,
    split: Split,
    statistics: Sequence[ReadoutStatistics],
    add: Callable[[Texts, Sequence[ReadoutStatistics]], None],
    saved: Checkpoint | None = None,
    *,
    save_every: float = 60.0,
    restart: bool = False,
    labelled: bool = False,
) -> tuple[list[ReadoutStatistics], int]:
    """The statistics of this rank's share of the texts of a file.

    Args:
        reader: Reads the texts.
        split: The file.
        statistics: Statistics without rows, which a checkpoint takes the place of.
        add: Adds the texts of a chunk to the statistics.
        saved: Where the checkpoints are. Default: there are none.
        save_every: Seconds between checkpoints.
        restart: Whether to ignore an existing checkpoint.
        labelled: Whether every text must have a label.

    Returns:
        The statistics, and how many texts came from a checkpoint.

    Raises:
        ValueError: The checkpoint was made with other settings.
    """
    found, chunks, tokens = list(statistics), 0, 0
    if saved is not None:
        if restart:
            saved.remove()
        elif (there := saved.load()) is not None:
            found, chunks, tokens = there
    resumed, last = min(chunks * CHUNK, split.rows), time.monotonic()
    for texts in reader.texts(split, chunks, tokens, labelled):
        add(texts, found)
        chunks, tokens = texts.index + 1, tokens + texts.tokens
        done = chunks * CHUNK >= split.rows
        if saved is not None and (done or time.monotonic() - last >= save_every):
            with reader.clock.measure("checkpoint"):
                saved.save(found, chunks, tokens)
            last = time.monotonic()
    return found, resumed


def reduced(
    reader: TextReader, statistics: Sequence[ReadoutStatistics], group: mx.distributed.Group
) -> list[ReadoutStatistics]:
    """The statistics of all processes of ``group``, from each one's own."""
    if group.size() == 1:
        return list(statistics)
    with reader.clock.measure("statistics"):
        return [stats.all_reduce(group) for stats in statistics]
