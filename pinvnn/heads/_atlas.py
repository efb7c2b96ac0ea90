"""Closed-form heads for every layer and penalty at once, from one pass of the texts through the model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

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
    reduced,
    tokens_needed,
)
from .._mlx import fail
from ..streaming import ReadoutStatistics
from ._grid import score_spread, solve_grid
from ._head import FILES, Head
from ._logistic import RowCheckpoint, Rows, fit_layers
from ._options import Options, ReadoutKind
from ._report import BEST_HEAD, PICTURE, REPORT, save
from ._result import Atlas
from ._score import Scores, Tally, scales_to_try

Group: TypeAlias = mx.distributed.Group


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
    readout: ReadoutKind = Options.readout,
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
        readout (str): ``"ridge"``, or ``"logistic"`` for a classification by cross-entropy, see
            :class:`pinvnn.nn.LogisticReadout`: the features of all training texts are then kept, in memory and in the
            checkpoints, 4 D bytes a text and layer, and the ridge readouts are fitted and scored besides. It needs
            ``valid.jsonl``, positive penalties and one process. Default: ``"ridge"``.
        group (mx.distributed.Group): The processes that share the texts. Default: all.

    Returns:
        Atlas: Readouts, scores and the best head.

    Raises:
        ValueError: About the data (the message names file and line), the model or an argument; before any forward pass
            over the data, except for states that are not finite.
    """
    options = Options(layers, l2, pooling, task, batch_size, max_length, save_every, restart, progress, readout)
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
        # Now, not after the forward passes.
        files = {"": (REPORT, PICTURE), BEST_HEAD: FILES} if write is save else {"": FILES}
        for folder, names in {**files, CHECKPOINT: ()}.items():
            check_folder(Path(output) / folder, names)
    logistic = options.readout == "logistic"
    if logistic and group.size() > 1:
        fail("heads", "a logistic readout needs one process", f"{group.size()}", "Fit ridge readouts, or run one.")
    reader, sizes = _reader(model, data, options, required + ("valid",) * logistic, group)
    if logistic and not reader.dataset.classes:
        fail("heads", "a logistic readout needs a classification", "a regression", 'Pass readout="ridge".')
    saved, rows = None, Rows(len(reader.layers)) if logistic else None
    if output is not None:
        folder, run_of = Path(output) / CHECKPOINT, {**_identity(reader, sizes), "readout": options.readout}
        saved = Checkpoint(folder, run_of, group.rank())
        if rows is not None:
            saved = RowCheckpoint(folder, run_of, group.rank(), rows, CHUNK)
    statistics = [ReadoutStatistics(sizes[layer], reader.dataset.output_dims) for layer in reader.layers]
    statistics, resumed = _accumulate(reader, statistics, saved, options, rows)
    statistics = reduced(reader, statistics, group)
    with reader.clock.measure("solve"):
        solved = [solve_grid(stats, options.grid) for stats in statistics]
        spreads = [score_spread(stats, weights) for stats, (weights, *_) in zip(statistics, solved, strict=True)]
        mx.eval(solved, spreads)
    del statistics  # gigabytes of a large model
    weights, biases, gcv = ([part[i] for part in solved] for i in range(3))
    candidates = [Candidate("ridge", weights, biases, gcv, spreads)]
    if rows is not None:
        with reader.clock.measure("logistic"):
            fitted = fit_layers(rows, options.grid, reader.dataset.output_dims)
            candidates.insert(0, Candidate("logistic", *fitted))
    result, *others = _choose(reader, candidates, options.grid, len(sizes), resumed, group)
    result.ridge = others[0] if others else None
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
    reader: Reader,
    statistics: list[ReadoutStatistics],
    saved: Checkpoint | None,
    options: Options,
    rows: Rows | None = None,
) -> tuple[list[ReadoutStatistics], int]:
    """The statistics of this rank's share of the training texts, and how many texts came from a checkpoint."""

    def add(texts: Texts, statistics: Sequence[ReadoutStatistics]) -> None:
        chunk = reader.chunk(texts)
        if chunk.features:
            with reader.clock.measure("statistics"):
                for layer, stats, features in zip(reader.layers, statistics, chunk.features, strict=True):
                    _update(layer, stats, features, chunk.targets)
                if rows is not None:
                    rows.add(chunk.features, chunk.targets)

    train, every = reader.dataset.splits["train"], {"save_every": options.save_every, "restart": options.restart}
    return accumulate(reader, train, statistics, add, saved, **every, labelled=True)


def _update(layer: int, stats: ReadoutStatistics, features: mx.array, targets: mx.array) -> None:
    try:
        stats.update(features, targets)
    except ValueError as error:
        rule = f"states of layer {layer} must be finite"
        raise ValueError(f"[pinvnn.heads] {rule}, but got others. Use weights in float32 or bfloat16.") from error


class Candidate(NamedTuple):
    """Readouts of one kind for every layer and penalty.

    Attributes:
        kind: "ridge" or "logistic".
        weights: For each layer ``(penalties, outputs, dims)``.
        biases: For each layer ``(penalties, outputs)``.
        gcv: For each layer the GCV scores ``(penalties,)``; None for those that have none.
        spreads: For each layer the standard deviations of the scores, see :func:`score_spread`, where probabilities
            need a scale; None where the scores are logits.
    """

    kind: ReadoutKind
    weights: list[mx.array]
    biases: list[mx.array]
    gcv: list[mx.array] | None = None
    spreads: list[mx.array] | None = None


def _choose(
    reader: Reader, candidates: list[Candidate], grid: list[float], states: int, resumed: int, group: Group
) -> list[Atlas]:
    """Score the readouts of every kind, layer and penalty, and choose the best penalty of each layer.

    Args:
        reader: Reads the validation and test texts, once for all candidates.
        candidates: The readouts.
        grid: The penalties.
        states: How many states the model has.
        resumed: How many texts came from a checkpoint.
        group: The processes that share the texts.
    """
    splits, every = reader.dataset.splits, range(len(reader.layers))
    valid: list[Scores | None] = [None for _ in candidates]
    test: list[Scores | None] = [None for _ in candidates]
    if "valid" in splits:
        parts = []
        for c in candidates:
            scales = [mx.ones((len(grid), 1)) for _ in every]
            if c.spreads is not None:
                scales = [scales_to_try(spread, bias) for spread, bias in zip(c.spreads, c.biases, strict=True)]
            parts.append((c.weights, c.biases, scales))
        valid = list(_score(reader, splits["valid"], parts, group))
    tables: list[Any] = [_tie_breakers(c, v, len(grid)) for c, v in zip(candidates, valid, strict=True)]
    chosen = [
        [_best_column(i, v.score if v else None, table) for i in every]
        for v, table in zip(valid, tables, strict=True)
    ]
    if "test" in splits:
        parts = []
        for c, v, of in zip(candidates, valid, chosen, strict=True):
            best, bias = ([x[i : i + 1] for x, i in zip(xs, of, strict=True)] for xs in (c.weights, c.biases))
            scales = None
            if v is not None and v.scale is not None:
                scales = [mx.array([[row[i]]]) for row, i in zip(v.scale, of, strict=True)]
            parts.append((best, bias, scales))
        test = list(_score(reader, splits["test"], parts, group))
    nothing = [[float("nan")] * len(grid) for _ in every]
    return [
        Atlas(
            source=reader.source,
            dataset=reader.dataset,
            pooling=reader.pooling,
            states=states,
            layers=list(reader.layers),
            l2=grid,
            weights=c.weights,
            biases=c.biases,
            gcv=nothing if c.gcv is None else table,
            valid=v and v.score,
            chosen=of,
            test=t and _first(t.score),
            clock=reader.clock,
            resumed=resumed,
            scale=v and v.scale,
            valid_log_loss=v and v.log_loss,
            valid_calibration_error=v and v.calibration_error,
            test_log_loss=t and _first(t.log_loss),
            test_calibration_error=t and _first(t.calibration_error),
            readout=c.kind,
        )
        for c, v, t, of, table in zip(candidates, valid, test, chosen, tables, strict=True)
    ]


def _tie_breakers(candidate: Candidate, valid: Scores | None, penalties: int) -> list[list[float]]:
    """What decides between penalties of equal accuracy, the smaller the better: GCV scores, or log-losses."""
    if candidate.gcv is not None:
        return [scores.tolist() for scores in candidate.gcv]  # type: ignore[misc]
    assert valid is not None and valid.log_loss is not None
    return valid.log_loss


def _first(scores: list[list[float]] | None) -> list[float] | None:
    return None if scores is None else [row[0] for row in scores]


def _score(
    reader: Reader,
    split: Split,
    readouts: Sequence[tuple[list[mx.array], list[mx.array], list[mx.array] | None]],
    group: Group,
) -> list[Scores]:
    """Scores of one split for each of ``readouts``, which are arguments of :class:`Tally`, in one pass."""
    classes = bool(reader.dataset.classes)
    tallies = [Tally(weights, biases, classes, scales) for weights, biases, scales in readouts]
    for chunk in reader.chunks(split):
        if chunk.features:
            with reader.clock.measure("score"):
                for tally in tallies:
                    tally.add(chunk.features, chunk.targets)
    return [tally.scores(group) for tally in tallies]


def _best_column(index: int, valid: list[list[float]] | None, gcv: list[list[float]]) -> int:
    """Index of the best penalty of a layer: by the validation score, and among equal ones by GCV."""
    columns = range(len(gcv[index]))
    by_gcv = [value if value == value else float("inf") for value in gcv[index]]
    by_valid = [0.0] * len(by_gcv) if valid is None else valid[index]
    return max(columns, key=lambda column: (by_valid[column], -by_gcv[column]))
