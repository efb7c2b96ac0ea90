"""Erase a concept from the states of a layer, in one pass over labelled text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import numpy as np

from .._lm import (
    CHECKPOINT,
    Checkpoint,
    Chunk,
    LanguageModel,
    ModelLike,
    Pooling,
    Reader,
    Task,
    Texts,
    accumulate,
    check_batch_size,
    check_folder,
    check_pooling,
    hidden_states,
    load_model,
    pad,
    read_dataset,
    reduced,
    tokens_needed,
)
from .._mlx import fail
from ..streaming import ReadoutStatistics
from ._collect import identity, rows_of_tokens
from ._eraser import Eraser, EraserConfig
from ._layers import block_names


class Erasure(NamedTuple):
    """An eraser, and what it was made of.

    Attributes:
        eraser: The eraser.
        statistics: Of the states and the targets.
        reader: Reads the texts.
        resumed: Number of texts that a checkpoint held already.
    """

    eraser: Eraser
    statistics: ReadoutStatistics
    reader: Reader
    resumed: int


def erase(
    model: ModelLike,
    data: str | Path,
    layer: int,
    *,
    pooling: Pooling | Literal["tokens"] = "tokens",
    task: Task = "auto",
    output: str | Path | None = None,
    batch_size: int = 16,
    max_length: int = 2048,
    save_every: float = 60.0,
    restart: bool = False,
    progress: bool = False,
    group: mx.distributed.Group | None = None,
) -> Eraser:
    r"""The affine map of a layer's states that erases the labels of some texts and moves the states least.

    Of the rows that it was fitted to, once they are mapped, no linear readout (least squares, logistic, with any
    penalty) predicts the labels better than a constant does. It is applied to the state of every token: a mean of
    mapped states is the map of their mean. Fitted in one pass, in memory that does not grow with the text.

    Args:
        model: A folder or repository for ``mlx_lm.load``, or the pair (model, tokenizer) that it returned.
        data (str): Folder with ``train.jsonl``: one object with the keys ``text`` and ``label`` a line.
        layer (int): 0 is the embedding, 1 the first decoder layer, and so on. Layers after it may find the concept
            again in what they read from elsewhere: nothing is promised of their states.
        pooling (str or int): What the rows are: ``"tokens"``, every token with the label of its text, which keeps the
            model most nearly as it was; or one row for each text, the ``"last"`` token, the ``"mean"`` of the tokens,
            or a token position. Default: ``"tokens"``.
        task (str): ``"classification"``, ``"regression"`` or ``"auto"``, as in :func:`pinvnn.heads.atlas`.
        output (str): Folder for checkpoints, see :func:`collect`. Default: none are written.
        batch_size (int): Texts in one forward pass. Default: ``16``.
        max_length (int): Longer texts are cut to this number of tokens. Default: ``2048``.
        save_every (float): Seconds between checkpoints. Default: ``60``.
        restart (bool): Whether to ignore an existing checkpoint. Default: ``False``.
        progress (bool): Whether to show a progress bar. Default: ``False``.
        group (mx.distributed.Group): The processes that share the texts. Default: all.

    Returns:
        Eraser: A Module for :meth:`Eraser.install`.

    Raises:
        ValueError: About the data (the message names file and line), the model or an argument.

    References:
        N. Belrose et al., LEACE: Perfect linear concept erasure in closed form, NeurIPS 2023, arXiv 2306.03819, Theorem
        4.3. See :meth:`pinvnn.streaming.ReadoutStatistics.eraser`.
    """
    options = {"pooling": pooling, "task": task, "output": output, "batch_size": batch_size, "max_length": max_length}
    timing = {"save_every": save_every, "restart": restart, "progress": progress, "group": group}
    return run_erase(model, data, layer, **options, **timing).eraser


def run_erase(
    model: ModelLike,
    data: str | Path,
    layer: int,
    *,
    pooling: Pooling | str,
    task: Task,
    output: str | Path | None,
    batch_size: int,
    max_length: int,
    save_every: float,
    restart: bool,
    progress: bool,
    group: mx.distributed.Group | None = None,
) -> Erasure:
    """What :func:`erase` and the command share; the arguments are those of :func:`erase`."""
    tokens = pooling == "tokens"
    chosen = "mean" if tokens else check_pooling(pooling)
    pooling = "tokens" if tokens else chosen
    check_batch_size("surgery", batch_size)
    source = load_model(model, max_length)
    group = group or mx.distributed.init()
    layers = len(block_names(source.model))
    if not 0 <= layer <= layers:
        fail("erase", f"layer must be between 0 and {layers}", layer, "0 is the embedding, 1 the first decoder layer.")
    if output is not None and group.rank() == 0:
        check_folder(Path(output) / CHECKPOINT)
    dataset = read_dataset(data, source, task=task, min_length=tokens_needed(chosen))
    parts: dict[str, Any] = {"dataset": dataset, "layers": [layer], "pooling": chosen}
    reader = (TokenReader if tokens else Reader)(source, batch_size, group.rank(), group.size(), progress, **parts)
    split = dataset.splits["train"]
    saved = None
    if output is not None:
        settings = {"layer": layer, "pooling": pooling, "task": dataset.task}
        saved = Checkpoint(Path(output) / CHECKPOINT, identity(reader, split, **settings), group.rank())

    def add(texts: Texts, statistics: Sequence[ReadoutStatistics]) -> None:
        chunk = reader.chunk(texts)
        if chunk.features:
            with reader.clock.measure("statistics"):
                statistics[0].update(chunk.features[0], chunk.targets)

    empty = [ReadoutStatistics(_state_size(source, layer), dataset.output_dims)]
    timing: dict[str, Any] = {"save_every": save_every, "restart": restart, "labelled": True}
    statistics, resumed = accumulate(reader, split, empty, add, saved, **timing)
    (stats,) = reduced(reader, statistics, group)
    with reader.clock.measure("solve"):
        config = EraserConfig(source.name, source.model_type, layer, stats.input_dims, pooling, dataset.classes)
        eraser = Eraser(config, *factors(stats))
    return Erasure(eraser, stats, reader, resumed)


def factors(stats: ReadoutStatistics) -> tuple[mx.array, mx.array, mx.array]:
    r"""``read``, ``write`` and ``mean`` of an :class:`Eraser`, from statistics of states and targets.

    The map of :meth:`ReadoutStatistics.eraser` is x - M (x - m), where M has the rank of the cross-covariance S_xy.
    Here it is written as M = (read write)^T, and ``write`` is computed last, from ``read`` as float32 holds it:

        write^T (read^T S_xy) = S_xy.

    So S_xy is erased to the precision of float32 itself. As a matrix M is an oblique projector, whose entries may be
    large beside those of S_xy, and its rounding errors with them.
    """
    m = stats.moments
    xx, xy, yy = (np.array(part) for part in (m.xx, m.xy, m.yy))
    of_x, of_y = (np.sqrt(np.where(part > 0, part, 1.0)) for part in (xx.diagonal(), yy))
    weight, _ = stats.eraser()
    u, s, _ = np.linalg.svd(xy / of_x[:, None] / of_y, full_matrices=False)
    u = u[:, s > 1e-8 * max(s[0], 1e-300)] if s.size else u[:, :0]
    removed = np.eye(len(xx)) - np.array(weight, np.float64)
    read = (((u.T / of_x) @ removed).T).astype(np.float32)
    write = np.linalg.pinv(read.T @ (xy / of_y), rcond=1e-12).T @ (xy / of_y).T
    mean = np.array(m.x_mean)
    return tuple(mx.array(part.astype(np.float32)) for part in (read, write, mean))  # type: ignore[return-value]


class TokenReader(Reader):
    """Reads every token of a text as a row, with the label of the text."""

    def chunk(self, texts: Texts) -> Chunk:
        """States of the tokens of a chunk, and the target of each."""
        states, targets = [], []
        for rows, encoded in self.batches(texts):
            tokens, lengths = pad(encoded)
            with self.clock.measure("forward"):
                state = hidden_states(self.source.model, tokens)[self.layers[0]]
                states.append(state.reshape(-1, state.shape[-1])[rows_of_tokens(tokens, lengths)].astype(mx.float32))
                mx.eval(states[-1])
            texts_of_tokens = np.repeat(np.arange(len(rows)), [len(row) for row in encoded])
            targets.append(self.targets(rows)[mx.array(texts_of_tokens)])
        features = [mx.concatenate(states)] if states else []
        return Chunk(texts.index, texts.tokens, features, mx.concatenate(targets) if targets else self.targets([]))


def _state_size(source: LanguageModel, layer: int) -> int:
    return source.probe()[1][layer].shape[-1]
