"""A closed-form head on one layer of a language model: one module, saved as a folder."""

import json
import warnings
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import mlx.nn as nn

from .._lm import (
    OTHER_MODEL,
    SAME_MODEL,
    Label,
    LanguageModel,
    ModelLike,
    Pooling,
    load_model,
    pad,
    read_features,
    similarity,
    versions,
    write_whole,
)
from .._mlx import fail
from ..nn import LeastSquaresReadout, LogisticReadout
from ._features import encode_texts
from ._options import ReadoutKind

FILES = ("head.safetensors", "config.json")


@dataclass(frozen=True)
class HeadConfig:
    """Contents of a head's ``config.json``.

    Attributes:
        model: Path or repository of the model.
        model_type: Architecture, as mlx-lm calls it.
        states: How many states the model has: the embedding, the layers and the final norm.
        dims: Size of a state.
        layer: Number of the state that the head reads; 0 is the embedding.
        pooling: How a text becomes one vector.
        max_length: Longer texts are cut to this number of tokens.
        task: ``"classification"`` or ``"regression"``.
        labels: The labels of a classification, in the order of the head's outputs.
        l2: Penalty of the fit.
        scores: By split, accuracy of a classification or R^2 of a regression; and of a classification with validation
            texts the log-loss and the expected calibration error of its probabilities.
        scale: Probabilities are ``softmax(scale * scores)``; None if no validation texts have set it.
        versions: By package, the versions that the head was made with.
        readout: ``"ridge"`` or ``"logistic"``.
    """

    model: str
    model_type: str
    states: int
    dims: int
    layer: int
    pooling: Pooling
    max_length: int
    task: str
    labels: tuple[Label, ...]
    l2: float
    scores: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)
    scale: float | None = None
    readout: ReadoutKind = "ridge"


def readout_of(kind: ReadoutKind, weight: mx.array, l2: float) -> LeastSquaresReadout | LogisticReadout:
    """A layer for weights ``(outputs, dims)`` of that kind."""
    make = LogisticReadout if kind == "logistic" else LeastSquaresReadout
    return make(weight.shape[1], weight.shape[0], l2=l2)


class Head(nn.Module):
    r"""A language model with a closed-form readout of one of its layers.

    It is one ``mlx.nn.Module`` with the model and the readout as its children, differentiable from end to end: train
    LoRA layers of the model through ``head.readout.loo_loss(head.features(tokens, lengths), y)``.

    Args:
        config (HeadConfig): The model, the layer, the pooling and the labels.
        source (LanguageModel): The model whose states it reads.
        readout (LeastSquaresReadout): The fitted readout.

    Examples:
        .. code-block:: python

            head = Head.load("atlas/head")
            head(["a small furry animal", "a country in Europe"])  # ['animal', 'location']
    """

    def __init__(
        self, config: HeadConfig, source: LanguageModel, readout: LeastSquaresReadout | LogisticReadout
    ) -> None:
        super().__init__()
        self.config: HeadConfig = config
        self.source: LanguageModel = source
        self.model: nn.Module = source.model
        self.readout: LeastSquaresReadout | LogisticReadout = readout

    def _extra_repr(self) -> str:
        return f"layer={self.config.layer}, pooling={self.config.pooling!r}, outputs={self.readout.weight.shape[0]}"

    def tokenize(self, texts: Sequence[str]) -> tuple[mx.array, mx.array]:
        """Token ids ``(batch, length)`` and lengths ``(batch,)`` of some texts.

        Raises:
            TypeError: ``texts`` is one string.
            ValueError: A text is empty, or too short for the pooling.
        """
        return pad(encode_texts(self.source, texts, self.config.pooling, "Head"))

    def features(self, tokens: mx.array, lengths: mx.array) -> mx.array:
        """Pooled states of the head's layer, differentiable with respect to the model's parameters.

        Args:
            tokens (array): Token ids ``(batch, length)``, padded to the right; see :meth:`tokenize`.
            lengths (array): Number of tokens of each text, ``(batch,)``.

        Returns:
            array: ``(batch, dims)`` in float32.
        """
        return read_features(self.model, tokens, lengths, [self.config.layer], self.config.pooling)[0]

    def scores(self, tokens: mx.array, lengths: mx.array) -> mx.array:
        """Outputs of the readout for token ids as in :meth:`features`.

        Returns:
            array: ``(batch, outputs)``: one for each label, or the number of a regression.
        """
        return self.readout(self.features(tokens, lengths))

    def probabilities(self, tokens: mx.array, lengths: mx.array) -> mx.array:
        """Probabilities of the labels for token ids as in :meth:`features`.

        Returns:
            array: ``(batch, labels)`` in float32: the softmax of the scores times the scale with the smallest log-loss
            on the validation texts.

        Raises:
            ValueError: The head is a regression, or no validation texts have set its scale.
        """
        if self.config.scale is None:
            rule = "a head with probabilities must be a classification fitted with valid.jsonl"
            fail("Head", rule, f"a {self.config.task} without a scale", "Fit it with validation texts.")
        return mx.softmax(self.config.scale * self.scores(tokens, lengths), axis=-1)

    def predict(
        self, texts: Iterable[str], batch_size: int = 16
    ) -> Generator[tuple[Label, list[float]], None, None]:
        """Labels and scores of some texts, one after the other, with one batch of them in memory.

        Args:
            texts (list(str)): The texts.
            batch_size (int): Texts in one forward pass. Default: ``16``.

        Yields:
            tuple(label, list(float)): The label, or the number of a regression, and the outputs of the readout.
        """
        texts = iter(texts)
        while batch := list(islice(texts, batch_size)):
            rows: Any = self.scores(*self.tokenize(batch)).tolist()
            for scores in rows:
                yield self._label(scores), scores

    def _label(self, scores: list[float]) -> Label:
        return self.config.labels[scores.index(max(scores))] if self.config.labels else scores[0]

    def __call__(self, texts: Iterable[str], batch_size: int = 16) -> list[Label]:
        """Labels of some texts, or numbers in a regression.

        Args:
            texts (list(str)): The texts.
            batch_size (int): Texts in one forward pass. Default: ``16``.
        """
        if isinstance(texts, str):
            self.tokenize(texts)  # raises
        return [label for label, _ in self.predict(texts, batch_size)]

    def save(self, folder: str | Path) -> None:
        """Write ``head.safetensors`` and ``config.json`` into ``folder``. The model itself is not saved."""
        tokens, states = self.source.probe()
        arrays = {
            "weight": self.readout.weight,
            "bias": self.readout.bias,
            "probe.tokens": mx.array(tokens),
            "probe.states": states[self.config.layer],
        }
        config = json.dumps(asdict(self.config), indent=4) + "\n"
        write_whole(
            Path(folder),
            {
                FILES[0]: lambda path: mx.save_safetensors(str(path), arrays),
                FILES[1]: lambda path: path.write_text(config),
            },
        )

    @classmethod
    def load(cls, folder: str | Path, model: ModelLike | None = None) -> "Head":
        """Load a head and the model that it belongs to.

        Args:
            folder (str): Where :meth:`save` has written it.
            model: Another place of the same model, or the pair (model, tokenizer) that ``mlx_lm.load`` returned.
                Default: the model that the head names.

        Raises:
            ValueError: The folder holds no head, or the head belongs to another model; the message says why.
        """
        config, arrays = _read(Path(folder))
        if model is None and not config.model:
            rule = f"{folder}: the head names no model, so one must be passed"
            fail("Head", rule, "none", "Use Head.load(folder, model).")
        source = load_model(config.model if model is None else model, config.max_length)
        _check(Path(folder), config, arrays, source)
        readout = readout_of(config.readout, arrays["weight"], config.l2)
        readout.load_weights([("weight", arrays["weight"]), ("bias", arrays["bias"])])
        return cls(replace(config, model=source.name or config.model), source, readout)


def _read(folder: Path) -> tuple[HeadConfig, dict[str, mx.array]]:
    try:
        values = json.loads((folder / FILES[1]).read_text())
        arrays: Any = mx.load(str(folder / FILES[0]))
        config = HeadConfig(**{**values, "labels": tuple(values["labels"])})
        dims = arrays["weight"].shape[1]
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"[pinvnn.Head] {folder}: the folder must hold a head, but got: {reason}") from None
    if dims != config.dims or arrays["weight"].shape[0] != (len(config.labels) or 1):
        rule = f"{folder}: the weight must be ({len(config.labels) or 1}, {config.dims}) as in {FILES[1]}"
        fail("Head", rule, arrays["weight"].shape, "Fit the head again.")
    _check_config(folder, config)
    return config, arrays


def _check_config(folder: Path, config: HeadConfig) -> None:
    """Raise ValueError for a ``config.json`` that was edited, or is of another version."""
    number = (int, float)
    good = {
        "layer": isinstance(config.layer, int) and isinstance(config.states, int) and 0 <= config.layer < config.states,
        "pooling": config.pooling in ("last", "mean") or isinstance(config.pooling, int),
        "max_length": isinstance(config.max_length, int) and config.max_length > 0,
        "task": config.task == ("classification" if config.labels else "regression"),
        "readout": config.readout in get_args(ReadoutKind),
        "l2": isinstance(config.l2, number) and config.l2 >= 0,
        "scale": config.scale is None or isinstance(config.scale, number) and config.scale > 0,
    }
    for key in [key for key, is_good in good.items() if not is_good]:
        rule = f"{folder}: {key} in {FILES[1]} must be as it was written"
        fail("Head", rule, repr(getattr(config, key)), "Fit the head again.")


def _check(folder: Path, config: HeadConfig, arrays: dict[str, mx.array], source: LanguageModel) -> None:
    """Raise ValueError unless the head was fitted on ``source``: its architecture, tokenizer and, by probe, weights."""
    tokens, states = source.probe()
    here = {"model_type": source.model_type, "states": len(states), "dims": states[0].shape[-1]}
    for key, value in here.items():
        if getattr(config, key) != value:
            rule = f"{folder}: the model must be the one that the head was fitted on, {config.model}, with {key} "
            fail("Head", rule + str(getattr(config, key)), f"{source.name} with {value}", "Fit a head on this model.")
    if tokens != arrays["probe.tokens"].tolist():
        rule = f"{folder}: the tokenizer must be that of {config.model}"
        fail("Head", rule, f"another one in {source.name}", "Fit a head on this model.")
    cosine = similarity(arrays["probe.states"], states[config.layer])
    got = f"{source.name} with a cosine of {cosine:.2f} to the states of layer {config.layer} then"
    if not cosine >= OTHER_MODEL:
        fail("Head", f"{folder}: the model must have the weights of {config.model}", got, "Fit a head on this model.")
    if cosine < SAME_MODEL:
        warnings.warn(
            f"[pinvnn.Head] {folder}: the weights should be those of {config.model}, but got {got}. Fit the head again "
            "if they were trained or quantized since.",
            stacklevel=3,
        )
