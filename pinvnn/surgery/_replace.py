"""Decoder layers that are replaced by a linear map, folded into the layer before."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from .._lm import (
    CHECKPOINT,
    Checkpoint,
    Clock,
    LanguageModel,
    ModelLike,
    TextReader,
    Texts,
    accumulate,
    check_batch_size,
    check_folder,
    load_model,
    read_texts,
    reduced,
)
from .._mlx import fail
from ..streaming import ReadoutStatistics
from ._collect import identity
from ._folder import without_layers, write_folder
from ._layers import block_names, dense_weight
from ._pending import Pending
from ._spans import Fit, Spans, find_blocks, read_spans


class Shortened:
    """A span of decoder layers that is replaced by a change of one weight, as :func:`replace_layers` finds it.

    Attributes:
        start (int): The decoder layer before the span, of which the last weight changes; 1 is the first.
        skip (int): Number of decoder layers that are removed.
        l2 (float): The penalty; infinity if the layers are dropped and no weight changes.
        fits (list): For each span that was considered its start, penalty, and the relative errors of the state behind
            it: if the layers are dropped, on the texts that were read, and as predicted for other texts.
        tokens (int): Number of tokens that were read.
        clock (Clock): Seconds that each part took.
        resumed (int): Number of texts that a checkpoint held already.
    """

    def __init__(
        self, source: LanguageModel, spans: Spans, fits: Sequence[Fit], clock: Clock, resumed: int = 0
    ) -> None:
        self._source, self._spans, self._fits = source, spans, list(fits)
        self._best = min(fits, key=_predicted)
        self.start: int = self._best.start
        self.skip: int = spans.skip
        self.l2: float = self._best.l2
        self.tokens: int = spans.tokens
        self.clock: Clock = clock
        self.resumed: int = resumed

    def __repr__(self) -> str:
        return f"Shortened(start={self.start}, skip={self.skip}, l2={self.l2:.3g})"

    @property
    def fits(self) -> list[dict[str, float]]:
        """Errors of every span, see above."""
        keys = ("start", "l2", "dropped", "fitted", "predicted")
        return [{key: getattr(fit, key) for key in keys} for fit in self._fits]

    @property
    def removed(self) -> list[int]:
        """The decoder layers that are removed; 1 is the first."""
        return list(range(self.start + 1, self.start + self.skip + 1))

    def with_l2(self, l2: float | None) -> "Shortened":
        """The best span for another penalty, from the same statistics.

        Args:
            l2 (float): As of :func:`replace_layers`.
        """
        fits = fit_all(self._spans, check_l2(l2))
        return Shortened(self._source, self._spans, fits, self.clock, self.resumed)

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Context in which the model that was read is the shortened one."""
        model, block = self._source.model, self._spans.blocks[self.start]
        try:
            if self.l2 != math.inf:
                model.update_modules(tree_unflatten([(block.name, self._refitted())]))
            with without_layers(model, self.removed):
                yield model
        finally:
            model.update_modules(tree_unflatten([(block.name, block.linear)]))

    def _refitted(self) -> nn.Linear:
        """The last linear layer of the decoder layer before the span, with its new weight."""
        layer: Any = self._spans.blocks[self.start].linear
        dtype = layer.scales.dtype if isinstance(layer, nn.QuantizedLinear) else layer.weight.dtype
        linear = nn.Linear(1, 1, bias="bias" in layer)
        linear.weight = mx.array((dense_weight(layer) + self._best.change).astype(np.float32)).astype(dtype)
        if self._best.shift is not None:
            linear.bias = layer.bias + mx.array(self._best.shift.astype(np.float32)).astype(dtype)
        mx.eval(linear.parameters())
        return linear

    def save(self, folder: str | Path) -> None:
        """Write the shortened model as a folder that ``mlx_lm.load`` reads, with its tokenizer.

        The folder is loaded and compared with the model in memory before its files get their names.

        Args:
            folder (str): Created if it does not exist.

        Raises:
            ValueError: The model has no folder, or computes something else once it is loaded.
        """
        where = Path(self._source.name)
        if self._source.name and not where.exists():
            from mlx_lm.utils import hf_repo_to_path

            where = Path(hf_repo_to_path(self._source.name))
        if not self._source.name or not (where / "config.json").exists():
            rule = "the model must have been given as a folder or a repository"
            fail("Shortened.save", rule, "a loaded one", "Its configuration and tokenizer are copied from there.")
        block = self._spans.blocks[self.start]
        dense = block.name if isinstance(block.linear, nn.QuantizedLinear) and self.l2 != math.inf else None
        with self.applied():
            write_folder(self._source, where, Path(folder), self.removed, dense)


def check_l2(l2: float | None) -> float | None:
    """``l2``, or ValueError if it is no penalty."""
    if l2 is not None and not l2 >= 0:
        fail("replace_layers", "l2 must be 0 or larger, or None", l2, "None chooses it.")
    return l2


def fit_all(spans: Spans, l2: float | None) -> list[Fit]:
    """The fit of every span, with weights for the one of which GCV predicts the best state."""
    found = [spans.fit(start, l2, with_change=False) for start in spans.blocks]
    best = min(range(len(found)), key=lambda i: _predicted(found[i]))
    found[best] = spans.fit(found[best].start, found[best].l2)
    return found


def _predicted(fit: Fit) -> float:
    """The predicted error, or infinity if there is no prediction."""
    return fit.predicted if fit.predicted == fit.predicted else math.inf


def replace_layers(
    model: ModelLike,
    data: str | Path,
    skip: int = 4,
    *,
    start: int | None = None,
    l2: float | None = None,
    output: str | Path | None = None,
    batch_size: int = 16,
    max_length: int = 2048,
    save_every: float = 60.0,
    restart: bool = False,
    progress: bool = False,
    group: mx.distributed.Group | None = None,
) -> Shortened:
    r"""Take decoder layers out of a model, and refit the last weight of the layer before them to do their work.

    The model after ``start`` layers goes on with layer ``start + skip + 1``. So that the state there is as it was, the
    weight W of the last linear layer of layer ``start`` (the down-projection of its MLP), which reads a, becomes W + D:

    .. math::
        \min_D \sum_t |h_{start+skip,t} - h_{start,t} - D a_t|^2 / |h_{start+skip,t}|^2 + l_2 |D|^2.

    The residual stream stays as it is, so that the shortened model computes just what was fitted: nothing is
    approximated by folding. Errors are relative to the size of the state, since every layer begins with a norm. Of all
    spans of ``skip`` layers the one is taken whose state generalized cross validation (GCV) predicts best.

    The statistics of a span are :math:`8 (D^2 + D n)` bytes for D inputs of that linear layer and states of size n;
    there is one for each possible start, so pass ``start`` where memory is short. The first layer is always kept.

    Args:
        model: A folder or repository for ``mlx_lm.load``, or the pair (model, tokenizer) that it returned.
        data (str): A ``.jsonl`` file with one object with the key ``text`` a line, or a folder with ``train.jsonl``.
        skip (int): Number of decoder layers to remove. Default: ``4``.
        start (int): The decoder layer before them; 1 is the first. Default: the best.
        l2 (float): The penalty. 0 is plain least squares, infinity leaves all weights as they are. Default: chosen by
            GCV.
        output (str): Folder for checkpoints, see :func:`collect`. Default: none are written.
        batch_size (int): Texts in one forward pass. Default: ``16``.
        max_length (int): Longer texts are cut to this number of tokens. Default: ``2048``.
        save_every (float): Seconds between checkpoints. Default: ``60``.
        restart (bool): Whether to ignore an existing checkpoint. Default: ``False``.
        progress (bool): Whether to show a progress bar. Default: ``False``.
        group (mx.distributed.Group): The processes that share the texts. Default: all.

    Returns:
        Shortened: What was found. The model itself is not changed; ``save`` writes the shortened one.

    Raises:
        ValueError: About the data (the message names file and line), the model or an argument.

    References:
        D. Shopkhoev et al., ReplaceMe: Network simplification via depth pruning and transformer block linearization,
        2025, arXiv 2505.02819, section 3: there a map T of the output of W, which is the case D = (T - I) W.

    Examples:
        .. code-block:: python

            shortened = surgery.replace_layers("MODEL", "DATA", skip=4)
            shortened.save("SHORTER")
            model, tokenizer = mlx_lm.load("SHORTER")
    """
    source, l2 = load_model(model, max_length), check_l2(l2)
    group = group or mx.distributed.init()
    check_batch_size("surgery", batch_size)
    starts = _starts(source, skip, start)
    if output is not None and group.rank() == 0:
        check_folder(Path(output) / CHECKPOINT)
    split = read_texts(data, source)
    spans = Spans.empty(find_blocks(source, starts), skip)
    spans.tokens = split.tokens
    reader = TextReader(source, batch_size, group.rank(), group.size(), progress)
    saved = None
    if output is not None:
        settings = {"layers removed": skip, "starts": list(spans.blocks)}
        saved = Checkpoint(Path(output) / CHECKPOINT, identity(reader, split, **settings), group.rank())

    def add(texts: Texts, statistics: Sequence[ReadoutStatistics]) -> None:
        named = zip(spans.blocks.items(), statistics, strict=True)
        pending = {i: Pending(block.name, stats, reader.clock) for (i, block), stats in named}
        for _, encoded in reader.batches(texts):
            read_spans(reader, encoded, spans, pending)
        for rows in pending.values():
            rows.flush()

    options: dict[str, Any] = {"save_every": save_every, "restart": restart}
    statistics, resumed = accumulate(reader, split, spans.statistics, add, saved, **options)
    spans.statistics = reduced(reader, statistics, group)
    with reader.clock.measure("solve"):
        fits = fit_all(spans, l2)
    return Shortened(source, spans, fits, reader.clock, resumed)


def _starts(source: LanguageModel, skip: int, start: int | None) -> list[int]:
    layers = len(block_names(source.model))
    if not isinstance(skip, int) or not 1 <= skip < layers:
        rule = f"skip must be between 1 and {layers - 1}, all decoder layers but one"
        fail("replace_layers", rule, skip, "Remove fewer layers.")
    if start is None:
        return list(range(1, layers - skip + 1))
    if not 1 <= start <= layers - skip:
        rule = f"start must be between 1 and {layers - skip}"
        fail("replace_layers", rule, start, "1 is the first decoder layer.")
    return [start]
