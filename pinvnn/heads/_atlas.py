"""Closed-form heads for every layer and penalty at once, from one pass of the texts through the model."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..streaming import ReadoutStatistics
from ._data import Split, read_dataset
from ._extract import Pooling, check_pooling, tokens_needed
from ._features import check_layers
from ._files import Checkpoint
from ._grid import solve_grid
from ._head import Head
from ._model import load_model
from ._report import save
from ._result import Atlas
from ._score import Tally
from ._stream import CHUNK, Reader

L2_GRID = tuple(10.0**exponent for exponent in range(-2, 7))


def atlas(
    model: Any,
    data: str | Path,
    *,
    output: str | Path | None = None,
    layers: Sequence[int] | None = None,
    l2: Sequence[float] = L2_GRID,
    pooling: Pooling = "last",
    task: str = "auto",
    batch_size: int = 16,
    max_length: int = 2048,
    save_every: float = 60.0,
    restart: bool = False,
    progress: bool = False,
    group: mx.distributed.Group | None = None,
) -> Atlas:
    r"""Fit a readout on every layer of a model and for every penalty of a grid, in one pass of the texts.

    Of each layer only the statistics are kept, :math:`D^2 + Dk` numbers for states of size D and k outputs: memory does
    not grow with the text. Each layer is factored once for the whole grid. Under ``mlx.launch`` the processes share the
    texts and end with the same result.

    Args:
        model: A folder or repository for ``mlx_lm.load``, or the pair (model, tokenizer) that it returned.
        data (str): Folder with ``train.jsonl``, ``valid.jsonl`` and, if there is one, ``test.jsonl``.
        output (str): Folder for the report, the heat map and the best head, and meanwhile for checkpoints of the
            statistics: a run that finds one there goes on from it. Default: nothing is written.
        layers (list(int)): The layers: 0 is the embedding, 1 the first layer; -1 is the final norm. Default: all.
        l2 (list(float)): The grid of penalties, in the units of :func:`pinvnn.ridge` and scikit-learn's ``alpha``.
        pooling (str or int): ``"last"`` token, ``"mean"`` of the tokens, or a token position. Default: ``"last"``.
        task (str): ``"classification"``, ``"regression"``, or ``"auto"``, where labels written as numbers with a
            decimal point make it a regression. Default: ``"auto"``.
        batch_size (int): Texts a forward pass. Default: ``16``.
        max_length (int): Longer texts are cut to this number of tokens, or to the model's context if that is shorter.
            Default: ``2048``.
        save_every (float): Seconds between checkpoints. Default: ``60``.
        restart (bool): Ignore a checkpoint that is there. Default: ``False``.
        progress (bool): Whether to show a bar. Default: ``False``.
        group (mx.distributed.Group): The processes that share the texts. Default: all.

    Raises:
        ValueError: About the data (the message names file and line), the model or an argument; before any forward pass
            over the data, except for states that are not finite.
    """
    options = {"layers": layers, "l2": l2, "pooling": pooling, "task": task, "batch_size": batch_size}
    options |= {"max_length": max_length, "save_every": save_every, "restart": restart, "progress": progress}
    return run(model, data, output, write=save, group=group, **options)


def fit_head(model: Any, data: str | Path, layer: int, *, output: str | Path | None = None, **options: Any) -> Head:
    """Fit a head on one layer of a model.

    Args:
        model: A folder or repository for ``mlx_lm.load``, or the pair (model, tokenizer) that it returned.
        data (str): Folder with ``train.jsonl`` and, if there are such, ``valid.jsonl`` and ``test.jsonl``.
        layer (int): 0 is the embedding, 1 the first layer; -1 is the final norm.
        output (str): Folder for the head, and meanwhile for checkpoints. Default: nothing is written.
        **options: As of :func:`atlas`. Of several penalties ``l2`` the best is chosen by the validation texts or,
            without them, by generalized cross validation.
    """
    return run(model, data, output, write=save_head, required=("train",), layers=[layer], **options).head()


def save_head(result: Atlas, folder: str | Path) -> None:
    """Write the best head alone."""
    result.head().save(folder)


def run(
    model: Any,
    data: str | Path,
    output: str | Path | None,
    *,
    write: Callable[[Atlas, str | Path], None],
    required: tuple[str, ...] = ("train", "valid"),
    layers: Sequence[int] | None = None,
    l2: Sequence[float] | float = L2_GRID,
    pooling: Pooling = "last",
    task: str = "auto",
    batch_size: int = 16,
    max_length: int = 2048,
    save_every: float = 60.0,
    restart: bool = False,
    progress: bool = False,
    group: mx.distributed.Group | None = None,
) -> Atlas:
    """What :func:`atlas` and :func:`fit_head` share: ``write`` leaves the result in ``output``."""
    group = group or mx.distributed.init()
    grid, pooling = check_grid(l2), check_pooling(pooling)
    if batch_size < 1:
        raise ValueError(f"[pinvnn.heads] batch_size must be 1 or more, but got {batch_size}.")
    source = load_model(model, max_length)
    dataset = read_dataset(
        data,
        source,
        required=required,
        task=task,
        min_length=tokens_needed(pooling),
    )
    sizes = [state.shape[-1] for state in source.probe()[1]]
    numbers = check_layers(range(len(sizes)) if layers is None else layers, len(sizes))
    reader = Reader(source, dataset, numbers, pooling, batch_size, group.rank(), group.size(), progress)
    saved = None
    if output is not None:
        saved = Checkpoint(Path(output) / "checkpoint", _identity(reader, sizes), group.rank())
    statistics = [ReadoutStatistics(sizes[layer], dataset.output_dims) for layer in numbers]

    statistics, resumed = _accumulate(reader, statistics, saved, save_every, restart)
    if group.size() > 1:
        with reader.clock.measure("statistics"):
            statistics = [stats.all_reduce(group) for stats in statistics]
    with reader.clock.measure("solve"):
        solved = [solve_grid(stats, grid) for stats in statistics]
        mx.eval(solved)
    del statistics
    weights, biases, gcv = ([part[i] for part in solved] for i in range(3))
    table: Any = [scores.tolist() for scores in gcv]
    valid = test = None
    if (split := dataset.splits.get("valid")) is not None:
        valid = _score(reader, split, weights, biases, group)
    chosen = [_best_column(i, valid, table) for i in range(len(numbers))]
    if (split := dataset.splits.get("test")) is not None:
        best = [part[column : column + 1] for part, column in zip(weights, chosen, strict=True)]
        bias = [part[column : column + 1] for part, column in zip(biases, chosen, strict=True)]
        test = [scores[0] for scores in _score(reader, split, best, bias, group)]
    result = Atlas(
        source=source,
        dataset=dataset,
        pooling=pooling,
        states=len(sizes),
        layers=numbers,
        l2=grid,
        weights=weights,
        biases=biases,
        gcv=table,
        valid=valid,
        chosen=chosen,
        test=test,
        clock=reader.clock,
        resumed=resumed,
    )
    if output is not None and saved is not None:
        if group.rank() == 0:
            write(result, output)
        saved.remove()  # only now: until here the same call would have gone on from it
    return result


def check_grid(l2: Sequence[float] | float) -> list[float]:
    """The penalties as a list of numbers."""
    values = [float(value) for value in (l2 if isinstance(l2, Sequence) else [l2])]
    if not values or not all(0 <= value < float("inf") for value in values):
        raise ValueError(f"[pinvnn.heads] l2 must be one or more finite numbers, 0 or larger, but got {l2}.")
    return values


def _identity(reader: Reader, sizes: list[int]) -> dict[str, Any]:
    """All that decides on the statistics: two runs that agree in it may share a checkpoint."""
    train = reader.dataset.splits["train"]
    return {
        "model": reader.source.name,
        "model type": reader.source.model_type,
        "dims": sizes,
        "data": train.digest,
        "task": reader.dataset.task,
        "layers": list(reader.layers),
        "pooling": reader.pooling,
        "longest text": reader.source.max_length,
        "batch size": reader.batch_size,
        "chunk": CHUNK,
        "processes": reader.ranks,
    }


def _accumulate(
    reader: Reader, statistics: list[ReadoutStatistics], saved: Checkpoint | None, save_every: float, restart: bool
) -> tuple[list[ReadoutStatistics], int]:
    """The statistics of this process's share of the training texts, and how many texts were in a checkpoint."""
    split = reader.dataset.splits["train"]
    chunks = tokens = 0
    if saved is not None:
        if restart:
            saved.remove()
        elif (found := saved.load()) is not None:
            statistics, chunks, tokens = found
    resumed, last = min(chunks * CHUNK, split.rows), time.monotonic()
    for chunk in reader.chunks(split, chunks, tokens):
        if chunk.features:
            with reader.clock.measure("statistics"):
                for layer, stats, features in zip(reader.layers, statistics, chunk.features, strict=True):
                    _update(layer, stats, features, chunk.targets)
        chunks, tokens = chunk.index + 1, tokens + chunk.tokens
        done = chunks * CHUNK >= split.rows
        if saved is not None and (done or time.monotonic() - last >= save_every):
            with reader.clock.measure("checkpoint"):
                saved.save(statistics, chunks, tokens)
            last = time.monotonic()
    return statistics, resumed


def _update(layer: int, stats: ReadoutStatistics, features: mx.array, targets: mx.array) -> None:
    try:
        stats.update(features, targets)
    except ValueError as error:
        rule = f"states of layer {layer} must be finite, but got others"
        raise ValueError(f"[pinvnn.heads] {rule}. Use weights in float32 or bfloat16.") from error


def _score(
    reader: Reader, split: Split, weights: list[mx.array], biases: list[mx.array], group: mx.distributed.Group
) -> list[list[float]]:
    """Scores ``[layer][l2]`` of one split."""
    tally = Tally(weights, biases, classification=bool(reader.dataset.classes))
    for chunk in reader.chunks(split):
        if chunk.features:
            with reader.clock.measure("score"):
                tally.add(chunk.features, chunk.targets)
    return tally.scores(group)


def _best_column(index: int, valid: list[list[float]] | None, gcv: list[list[float]]) -> int:
    """The best penalty of a layer; of equals that with the better score of the other kind."""
    columns = range(len(gcv[index]))
    by_gcv = [value if value == value else float("inf") for value in gcv[index]]
    by_valid = [0.0] * len(by_gcv) if valid is None else valid[index]
    return max(columns, key=lambda column: (by_valid[column], -by_gcv[column]))
