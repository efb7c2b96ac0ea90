"""Closed-form heads for every layer and penalty at once, from one pass of the texts through the model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from .._lm import (
    CHECKPOINT,
    CHUNK,
    Checkpoint,
    ModelLike,
    Pooling,
    Reader,
    Split,
    Task,
    Texts,
    accumulate,
    check_folder,
    check_layers,
    load_model,
    read_dataset,
    tokens_needed,
)
from ..streaming import ReadoutStatistics
from ._grid import score_spread, solve_grid
from ._head import Head
from ._options import Options
from ._report import BEST_HEAD, save
from ._result import Atlas
from ._score import Scores, Tally, scales_to_try


def atlas(
    model: ModelLike,
    data: str | Path,
    *,
    output: str | Path | None = None,
    layers: Sequence[int] | None = Options.layers,
    l2: Sequence[float] | float = Options.l2,
    pooling: Pooling = Options.pooling,
    task: Task = Options.task,
    batch_size: int = Options.batch_size,
    max_length: int = Options.max_length,
    save_every: float = Options.save_every,
    restart: bool = Options.restart,
    progress: bool = Options.progress,
    group: mx.distributed.Group | None = None,
) -> Atlas:
    r"""Fit a readout on every layer of a model and for every penalty of a grid, in one pass of the texts.

    Of each layer only the statistics are kept, :math:`D^2 + Dk` numbers for states of size D and k outputs: memory does
    not grow with the text. Each layer is factored once for the whole grid. Under ``mlx.launch`` the processes share the
    texts and end with the same result.

    Args:
        model: A folder or repository for ``mlx_lm.load``, or the pair (model, tokenizer) that it returned.
        data (str): Folder with ``train.jsonl``, ``valid.jsonl`` and, if there is one, ``test.jsonl``.
        output (str): Folder for the report, the heat map and the best head, and until these are written for checkpoints
            of the statistics: a run that finds a checkpoint there continues from it. Default: nothing is written.
        layers (list(int)): The layers: 0 is the embedding, 1 the first layer; -1 is the final norm. Default: all.
        l2 (list(float)): The grid of penalties, in the units of :func:`pinvnn.ridge` and scikit-learn's ``alpha``.
            Default: the powers of ten from 0.01 to 1e6.
        pooling (str or int): ``"last"`` token, ``"mean"`` of the tokens, or a token position. Default: ``"last"``.
        task (str): ``"classification"``, ``"regression"``, or ``"auto"``: a regression if labels are numbers written
            with a decimal point. Default: ``"auto"``.
        batch_size (int): Texts in one forward pass. Default: ``16``.
        max_length (int): Longer texts are cut to this number of tokens, or to the model's context if that is shorter.
            Default: ``2048``.
        save_every (float): Seconds between checkpoints. Default: ``60``.
        restart (bool): Whether to ignore an existing checkpoint. Default: ``False``.
        progress (bool): Whether to show a progress bar. Default: ``False``.
        group (mx.distributed.Group): The processes that share the texts. Default: all.

    Returns:
        Atlas: Readouts, scores and the best head.

    Raises:
        ValueError: About the data (the message names file and line), the model or an argument; before any forward pass
            over the data, except for states that are not finite.
    """
    options = Options(layers, l2, pooling, task, batch_size, max_length, save_every, restart, progress)
    return run(model, data, output, options, write=save, group=group)


def fit_head(
    model: ModelLike, data: str | Path, layer: int, *, output: str | Path | None = None, **options: Any
) -> Head:
    """Fit a head on one layer of a model.

    Args:
        model: A folder or repository for ``mlx_lm.load``, or the pair (model, tokenizer) that it returned.
        data (str): Folder with ``train.jsonl`` and, if they exist, ``valid.jsonl`` and ``test.jsonl``.
        layer (int): 0 is the embedding, 1 the first layer; -1 is the final norm.
        output (str): Folder for the head, and until it is written for checkpoints. Default: nothing is written.
        **options: As of :func:`atlas`, from ``l2`` to ``group``. Of several penalties ``l2`` the best is chosen by the
            validation texts or, without them, by generalized cross validation.

    Returns:
        Head: The head with the best penalty.

    Raises:
        ValueError: As :func:`atlas`.
    """
    group = options.pop("group", None)
    chosen = Options(layers=[layer], **options)
    return run(model, data, output, chosen, write=save_head, required=("train",), group=group).head()


def save_head(result: Atlas, folder: str | Path) -> None:
    """Write the best head alone."""
    result.head().save(folder)


def run(
    model: ModelLike,
    data: str | Path,
    output: str | Path | None,
    options: Options,
    *,
    write: Callable[[Atlas, str | Path], None],
    required: tuple[str, ...] = ("train", "valid"),
    group: mx.distributed.Group | None = None,
) -> Atlas:
    """What :func:`atlas` and :func:`fit_head` share.

    Args:
        model: As of :func:`atlas`.
        data: As of :func:`atlas`.
        output: As of :func:`atlas`.
        options: As of :func:`atlas`.
        write: Writes the result into ``output``.
        required: The files of ``data`` that must exist.
        group: As of :func:`atlas`.
    """
    group = group or mx.distributed.init()
    if output is not None and group.rank() == 0:
        for folder in ("", CHECKPOINT, *([BEST_HEAD] if write is save else [])):  # now, not after the forward passes
            check_folder(Path(output) / folder)
    reader, sizes = _reader(model, data, options, required, group)
    saved = None
    if output is not None:
        saved = Checkpoint(Path(output) / CHECKPOINT, _identity(reader, sizes), group.rank())
    statistics = [ReadoutStatistics(sizes[layer], reader.dataset.output_dims) for layer in reader.layers]
    statistics, resumed = _accumulate(reader, statistics, saved, options)
    if group.size() > 1:
        with reader.clock.measure("statistics"):
            statistics = [stats.all_reduce(group) for stats in statistics]
    with reader.clock.measure("solve"):
        solved = [solve_grid(stats, options.grid) for stats in statistics]
        spreads = [score_spread(stats, weights) for stats, (weights, *_) in zip(statistics, solved, strict=True)]
        mx.eval(solved, spreads)
    del statistics  # gigabytes of a large model
    result = _choose(reader, solved, spreads, options.grid, len(sizes), resumed, group)
    if output is not None and saved is not None:
        if group.rank() == 0:
            write(result, output)
        saved.remove()  # not earlier: a run that is interrupted while it writes continues from the checkpoint
    return result


def _reader(
    model: ModelLike, data: str | Path, options: Options, required: tuple[str, ...], group: mx.distributed.Group
) -> tuple[Reader, list[int]]:
    """Load the model and check the data; a reader of the layers asked for, and the sizes of all states."""
    source = load_model(model, options.max_length)
    needed = tokens_needed(options.pooling)
    dataset = read_dataset(data, source, required=required, task=options.task, min_length=needed)
    sizes = [state.shape[-1] for state in source.probe()[1]]
    numbers = check_layers(range(len(sizes)) if options.layers is None else options.layers, len(sizes))
    parts = {"dataset": dataset, "layers": numbers, "pooling": options.pooling}
    reader = Reader(source, options.batch_size, group.rank(), group.size(), options.progress, **parts)
    return reader, sizes


def _identity(reader: Reader, sizes: list[int]) -> dict[str, Any]:
    """The settings that the statistics depend on: runs that agree in them may share a checkpoint."""
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
    reader: Reader, statistics: list[ReadoutStatistics], saved: Checkpoint | None, options: Options
) -> tuple[list[ReadoutStatistics], int]:
    """The statistics of this rank's share of the training texts, and how many texts came from a checkpoint."""

    def add(texts: Texts, statistics: Sequence[ReadoutStatistics]) -> None:
        chunk = reader.chunk(texts)
        if chunk.features:
            with reader.clock.measure("statistics"):
                for layer, stats, features in zip(reader.layers, statistics, chunk.features, strict=True):
                    _update(layer, stats, features, chunk.targets)

    train, every = reader.dataset.splits["train"], {"save_every": options.save_every, "restart": options.restart}
    return accumulate(reader, train, statistics, add, saved, **every, labelled=True)


def _update(layer: int, stats: ReadoutStatistics, features: mx.array, targets: mx.array) -> None:
    try:
        stats.update(features, targets)
    except ValueError as error:
        rule = f"states of layer {layer} must be finite"
        raise ValueError(f"[pinvnn.heads] {rule}, but got others. Use weights in float32 or bfloat16.") from error


def _choose(
    reader: Reader,
    solved: list[tuple[mx.array, mx.array, mx.array]],
    spreads: list[mx.array],
    grid: list[float],
    states: int,
    resumed: int,
    group: mx.distributed.Group,
) -> Atlas:
    """Score the readouts of every layer and penalty, and choose the best penalty of each layer.

    Args:
        reader: Reads the validation and test texts.
        solved: Weights, biases and GCV scores of each layer, see :func:`solve_grid`.
        spreads: Standard deviations of the scores of each layer, see :func:`score_spread`.
        grid: The penalties.
        states: How many states the model has.
        resumed: How many texts came from a checkpoint.
        group: The processes that share the texts.
    """
    weights, biases, gcv = ([part[i] for part in solved] for i in range(3))
    table: Any = [scores.tolist() for scores in gcv]
    splits = reader.dataset.splits
    valid = test = None
    if "valid" in splits:
        scales = [scales_to_try(spread, bias) for spread, bias in zip(spreads, biases, strict=True)]
        valid = _score(reader, splits["valid"], weights, biases, scales, group)
    chosen = [_best_column(i, valid.score if valid else None, table) for i in range(len(weights))]
    if "test" in splits:
        best, bias = ([part[i : i + 1] for part, i in zip(parts, chosen, strict=True)] for parts in (weights, biases))
        scales = None
        if valid is not None and valid.scale is not None:
            scales = [mx.array([[row[i]]]) for row, i in zip(valid.scale, chosen, strict=True)]
        test = _score(reader, splits["test"], best, bias, scales, group)
    return Atlas(
        source=reader.source,
        dataset=reader.dataset,
        pooling=reader.pooling,
        states=states,
        layers=list(reader.layers),
        l2=grid,
        weights=weights,
        biases=biases,
        gcv=table,
        valid=valid and valid.score,
        chosen=chosen,
        test=test and _first(test.score),
        clock=reader.clock,
        resumed=resumed,
        scale=valid and valid.scale,
        valid_log_loss=valid and valid.log_loss,
        valid_calibration_error=valid and valid.calibration_error,
        test_log_loss=test and _first(test.log_loss),
        test_calibration_error=test and _first(test.calibration_error),
    )


def _first(scores: list[list[float]] | None) -> list[float] | None:
    return None if scores is None else [row[0] for row in scores]


def _score(
    reader: Reader,
    split: Split,
    weights: list[mx.array],
    biases: list[mx.array],
    scales: list[mx.array] | None,
    group: mx.distributed.Group,
) -> Scores:
    """Scores of one split; the arguments are those of :class:`Tally`."""
    tally = Tally(weights, biases, bool(reader.dataset.classes), scales)
    for chunk in reader.chunks(split):
        if chunk.features:
            with reader.clock.measure("score"):
                tally.add(chunk.features, chunk.targets)
    return tally.scores(group)


def _best_column(index: int, valid: list[list[float]] | None, gcv: list[list[float]]) -> int:
    """Index of the best penalty of a layer: by the validation score, and among equal ones by GCV."""
    columns = range(len(gcv[index]))
    by_gcv = [value if value == value else float("inf") for value in gcv[index]]
    by_valid = [0.0] * len(by_gcv) if valid is None else valid[index]
    return max(columns, key=lambda column: (by_valid[column], -by_gcv[column]))
