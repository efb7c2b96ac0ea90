"""Statistics of what every linear layer of a language model reads, from one pass over some text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from .._lm import (
    CHECKPOINT,
    CHUNK,
    Checkpoint,
    Clock,
    LanguageModel,
    ModelLike,
    Split,
    TextReader,
    Texts,
    accumulate,
    check_batch_size,
    check_folder,
    first_array,
    load_model,
    pad,
    read_texts,
    reduced,
    reporting,
)
from .._mlx import fail
from ..streaming import ReadoutStatistics
from ._layers import block_names, check_blocks, linear_layers, record_inputs
from ._pending import Pending


@dataclass(frozen=True)
class ActivationStatistics:
    """Mean and centred Gram matrix, in float64, of the inputs of linear layers and of the outputs of decoder layers.

    Attributes:
        statistics: By the name of a linear layer (``"model.layers.0.mlp.down_proj"``) the statistics of its inputs, by
            the name of a decoder layer (``"model.layers.0"``) those of its outputs. Linear layers that read the same
            array share one object.
        skipped: Names of linear layers without statistics: no call of theirs has one input for each token.
        clock: Seconds that each part of the pass took, and the number of tokens on this process.
        resumed: Number of texts that a checkpoint held already.
    """

    statistics: dict[str, ReadoutStatistics] = field(repr=False)
    skipped: tuple[str, ...] = ()
    clock: Clock = field(default_factory=Clock, repr=False)
    resumed: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens of all texts."""
        return int(max((stats.count for stats in self.statistics.values()), default=0))

    def second_moment(self, name: str) -> NDArray[np.float64]:
        """The mean of ``x x^T`` over the tokens, ``(dims, dims)`` in float64, not centred.

        Raises:
            ValueError: There are no statistics of that name, or no tokens.
        """
        stats = self.statistics.get(name)
        if stats is None or not stats.count:
            rule = f"there must be statistics of {name}"
            fail("surgery", rule, "none", "Collect them on the same architecture, with these layers.")
        mean = np.array(stats.moments.x_mean)
        return np.array(stats.moments.xx) / stats.count + np.outer(mean, mean)


def collect(
    model: ModelLike,
    data: str | Path,
    *,
    layers: Sequence[int] | None = None,
    output: str | Path | None = None,
    batch_size: int = 16,
    max_length: int = 2048,
    save_every: float = 60.0,
    restart: bool = False,
    progress: bool = False,
    group: mx.distributed.Group | None = None,
) -> ActivationStatistics:
    r"""Mean and Gram matrix of what every linear layer reads and every decoder layer returns, in one pass.

    Every token of a text counts once, and padding not at all. The statistics are 8 :math:`D^2` bytes for inputs of size
    D, one matrix for all layers that read the same array (the projections to queries, keys and values, say): memory
    does not grow with the text. Under ``mlx.launch`` the processes share the texts and end with the same statistics.

    Args:
        model: A folder or repository for ``mlx_lm.load``, or the pair (model, tokenizer) that it returned.
        data (str): A ``.jsonl`` file with one object with the key ``text`` a line, or a folder with ``train.jsonl``.
        layers (list(int)): Decoder layers, 1 is the first as in :mod:`pinvnn.heads`. Default: all, and the linear
            layers outside of them.
        output (str): Folder for checkpoints: a run that finds one there continues from it. Remove them with the folder
            ``checkpoint`` when the statistics are no longer needed. Default: none are written.
        batch_size (int): Texts in one forward pass. Default: ``16``.
        max_length (int): Longer texts are cut to this number of tokens. Default: ``2048``.
        save_every (float): Seconds between checkpoints. Default: ``60``.
        restart (bool): Whether to ignore an existing checkpoint. Default: ``False``.
        progress (bool): Whether to show a progress bar. Default: ``False``.
        group (mx.distributed.Group): The processes that share the texts. Default: all.

    Returns:
        ActivationStatistics: What :func:`compensate` takes.

    Raises:
        ValueError: About the data (the message names file and line), the model or an argument; before any forward pass
            over the data, except for activations that are not finite.
    """
    source = load_model(model, max_length)
    group = group or mx.distributed.init()
    check_batch_size("surgery", batch_size)
    if output is not None and group.rank() == 0:
        check_folder(Path(output) / CHECKPOINT)
    split = read_texts(data, source)
    watched, followers, skipped = _to_watch(source, layers)
    dims = {name: size for name, (_, size) in watched.items()}
    reader = TextReader(source, batch_size, group.rank(), group.size(), progress)
    saved = None
    if output is not None:
        saved = Checkpoint(Path(output) / CHECKPOINT, identity(reader, split, statistics=dims), group.rank())

    def add(texts: Texts, statistics: Sequence[ReadoutStatistics]) -> None:
        named = zip(watched.items(), statistics, strict=True)
        pending = {id(module): Pending(name, stats, reader.clock) for (name, (module, _)), stats in named}
        for _, encoded in reader.batches(texts):
            _read_batch(reader, encoded, pending, [module for module, _ in watched.values()])
        for rows in pending.values():
            rows.flush()

    empty = [ReadoutStatistics(size, 0) for size in dims.values()]
    statistics, resumed = accumulate(reader, split, empty, add, saved, save_every=save_every, restart=restart)
    found = dict(zip(watched, reduced(reader, statistics, group), strict=True))
    found.update({name: found[leader] for name, leader in followers.items()})
    return ActivationStatistics(found, tuple(skipped), reader.clock, resumed)


def _to_watch(
    source: LanguageModel, layers: Sequence[int] | None
) -> tuple[dict[str, tuple[nn.Module, int]], dict[str, str], list[str]]:
    """What to watch, with its size; linear layers that read the array of another, with its name; those left out.

    Raises:
        ValueError: The model has no such layers.
    """
    blocks = block_names(source.model)
    chosen = [blocks[i - 1] for i in check_blocks(range(1, len(blocks) + 1) if layers is None else layers, len(blocks))]
    linear = {
        name: module
        for name, module in linear_layers(source.model).items()
        if layers is None or any(name.startswith(f"{block}.") for block in chosen)
    }
    modules = dict(source.model.named_modules())
    seen = record_inputs(source, [*linear.values(), *(modules[name] for name in chosen)])
    watched: dict[str, tuple[nn.Module, int]] = {}
    followers: dict[str, str] = {}
    skipped: list[str] = []
    leaders: dict[tuple[int, ...], str] = {}
    for name, module in linear.items():
        calls = seen.get(id(module))
        if calls is None:
            skipped.append(name)
            continue
        key = tuple(id(given) for given, _ in calls)
        if key in leaders:
            followers[name] = leaders[key]
        else:
            leaders[key] = name
            watched[name] = (module, calls[0][0].shape[-1])
    for name in chosen:
        if id(modules[name]) in seen:
            watched[name] = (modules[name], seen[id(modules[name])][0][1].shape[-1])
    return watched, followers, skipped


def _read_batch(
    reader: TextReader, encoded: list[list[int]], pending: dict[int, Pending], modules: list[nn.Module]
) -> None:
    """Send a batch through the model, layer by layer, and take the rows of its tokens."""
    tokens, lengths = pad(encoded)
    rows = rows_of_tokens(tokens, lengths)
    linear = {id(module) for module in linear_layers(reader.source.model).values()}

    def report(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        state = first_array([*args, *kwargs.values()]) if id(module) in linear else first_array(result)
        assert state is not None
        pending[id(module)].add(state.reshape(-1, state.shape[-1])[rows])

    with reporting(modules, report):
        reader.source.model(tokens)


def rows_of_tokens(tokens: mx.array, lengths: mx.array) -> mx.array:
    """Places of the tokens of all texts in ``tokens`` ``(batch, longest)``, without the padding, once it is flat."""
    return mx.array(np.flatnonzero(np.arange(tokens.shape[1]) < np.array(lengths)[:, None]))


def identity(reader: TextReader, split: Split, **settings: Any) -> dict[str, Any]:
    """The settings that statistics depend on: runs that agree in them may share a checkpoint."""
    return {
        "model": reader.source.name,
        "model type": reader.source.model_type,
        "data": split.digest,
        "longest text": reader.source.max_length,
        "batch size": reader.batch_size,
        "chunk": CHUNK,
        "processes": reader.ranks,
        **settings,
    }
