"""Erase a concept from the states of a layer, in one pass over labelled text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from .._lm import (
    CHECKPOINT,
    Checkpoint,
    LanguageModel,
    ModelLike,
    Pooling,
    Reader,
    Task,
    Texts,
    accumulate,
    check_folder,
    check_pooling,
    load_model,
    read_dataset,
    tokens_needed,
)
from .._mlx import fail
from ..streaming import ReadoutStatistics
from ._collect import identity
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
    pooling: Pooling = "mean",
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

    Of the pooled states that it maps, no linear readout (least squares, logistic, with any penalty) predicts the labels
    of these texts better than a constant does. It is applied to the state of every token: a mean of mapped states is
    the map of their mean. Fitted in one pass, in memory that does not grow with the text.

    Args:
        model: A folder or repository for ``mlx_lm.load``, or the pair (model, tokenizer) that it returned.
        data (str): Folder with ``train.jsonl``: one object with the keys ``text`` and ``label`` a line.
        layer (int): 0 is the embedding, 1 the first decoder layer, and so on. Layers after it may find the concept
            again in what they read from elsewhere: nothing is promised of their states.
        pooling (str or int): ``"last"`` token, ``"mean"`` of the tokens, or a token position. Default: ``"mean"``.
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
    chosen = check_pooling(pooling)
    if batch_size < 1:
        fail("surgery", "batch_size must be 1 or more", batch_size, "Pass 16, say.")
    source = load_model(model, max_length)
    group = group or mx.distributed.init()
    layers = len(block_names(source.model))
    if not 0 <= layer <= layers:
        fail("erase", f"layer must be between 0 and {layers}", layer, "0 is the embedding, 1 the first decoder layer.")
    if output is not None and group.rank() == 0:
        check_folder(Path(output) / CHECKPOINT)
    dataset = read_dataset(data, source, task=task, min_length=tokens_needed(chosen))
    parts: dict[str, Any] = {"dataset": dataset, "layers": [layer], "pooling": chosen}
    reader = Reader(source, batch_size, group.rank(), group.size(), progress, **parts)
    split = dataset.splits["train"]
    saved = None
    if output is not None:
        settings = {"layer": layer, "pooling": chosen, "task": dataset.task}
        saved = Checkpoint(Path(output) / CHECKPOINT, identity(reader, split, **settings), group.rank())

    def add(texts: Texts, statistics: Sequence[ReadoutStatistics]) -> None:
        chunk = reader.chunk(texts)
        if chunk.features:
            with reader.clock.measure("statistics"):
                statistics[0].update(chunk.features[0], chunk.targets)

    empty = [ReadoutStatistics(_state_size(source, layer), dataset.output_dims)]
    timing: dict[str, Any] = {"save_every": save_every, "restart": restart, "labelled": True}
    (stats,), resumed = accumulate(reader, split, empty, add, saved, **timing)
    if group.size() > 1:
        stats.all_reduce(group)
    with reader.clock.measure("solve"):
        weight, bias = stats.eraser()
        config = EraserConfig(source.name, source.model_type, layer, len(bias), chosen, dataset.classes)
        eraser = Eraser(config, weight, bias)
        mx.eval(eraser.weight, eraser.bias)
    return Erasure(eraser, stats, reader, resumed)


def _state_size(source: LanguageModel, layer: int) -> int:
    return source.probe()[1][layer].shape[-1]
