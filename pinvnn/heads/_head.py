"""A closed-form head on one layer of a language model: one module, saved as a folder."""

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..nn import LeastSquaresReadout
from ._data import Label
from ._extract import Pooling, pad
from ._features import encode_texts, read_features
from ._files import write_whole
from ._model import OTHER_MODEL, SAME_MODEL, LanguageModel, load_model, similarity

FILES = ("head.safetensors", "config.json")


def versions() -> dict[str, str]:
    """Versions of what a head was made with."""
    found = {}
    for package in ("pinvnn", "mlx", "mlx-lm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


@dataclass(frozen=True)
class HeadConfig:
    """What ``config.json`` of a head says.

    Attributes:
        model: Path or repository of the model.
        model_type: Architecture, as mlx-lm calls it.
        states: Number of the model's states: the embedding, the layers and the final norm.
        dims: Size of a state.
        layer: The state that the head reads, 0 for the embedding.
        pooling: How a text becomes one vector.
        max_length: Longer texts are cut to this number of tokens.
        task: ``"classification"`` or ``"regression"``.
        labels: The labels of a classification, in the order of the head's outputs.
        l2: Penalty of the fit.
        scores: By split, accuracy of a classification or R^2 of a regression.
        versions: Of the packages that made the head.
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


class Head(nn.Module):
    r"""A language model with a closed-form readout of one of its layers.

    It is one ``mlx.nn.Module``, with the model and the readout as its children, and differentiable from end to end:
    train LoRA layers of the model through ``head.readout.loo_loss(head.features(tokens, lengths), y)``.

    Args:
        config (HeadConfig): What the head is.
        source (LanguageModel): The model that it reads.
        readout (LeastSquaresReadout): The fitted readout.

    Examples:
        .. code-block:: python

            head = Head.load("atlas/head")
            head(["a small furry animal", "a country in Europe"])  # ['animal', 'location']
    """

    def __init__(self, config: HeadConfig, source: LanguageModel, readout: LeastSquaresReadout):
        super().__init__()
        self.config = config
        self.source = source
        self.model = source.model
        self.readout = readout

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
        """Pooled states of the head's layer, ``(batch, dims)`` in float32; differentiable in the model's parameters.

        Args:
            tokens (array): Token ids ``(batch, length)``, padded to the right; see :meth:`tokenize`.
            lengths (array): Tokens of each text, ``(batch,)``.
        """
        return read_features(self.model, tokens, lengths, [self.config.layer], self.config.pooling)[0]

    def scores(self, tokens: mx.array, lengths: mx.array) -> mx.array:
        """Outputs of the readout, ``(batch, outputs)``: one for each label, or the number of a regression."""
        return self.readout(self.features(tokens, lengths))

    def predict(self, texts: Iterable[str], batch_size: int = 16):
        """Labels and scores of some texts, one after the other, never more than a batch in memory.

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
            batch_size (int): Texts a forward pass. Default: ``16``.
        """
        if isinstance(texts, str):
            self.tokenize(texts)  # raises
        return [label for label, _ in self.predict(texts, batch_size)]

    def save(self, folder: str | Path) -> None:
        """Write ``head.safetensors`` and ``config.json`` into ``folder``; the model itself is not saved."""
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
    def load(cls, folder: str | Path, model: Any = None) -> "Head":
        """Read a head and put it on its model.

        Args:
            folder (str): Where :meth:`save` has written it.
            model: Another place of the same model, or the pair (model, tokenizer) that ``mlx_lm.load`` returned.
              Default: the model that the head names.

        Raises:
            ValueError: The folder is no head, or the head is of another model; the message says what does not fit.
        """
        config, arrays = _read(Path(folder))
        if model is None and not config.model:
            raise ValueError(f"[pinvnn.Head] {folder}: the head names no model, so pass one: Head.load(folder, model).")
        source = load_model(config.model if model is None else model, config.max_length)
        _check(Path(folder), config, arrays, source)
        readout = LeastSquaresReadout(config.dims, arrays["weight"].shape[0], l2=config.l2)
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
        raise ValueError(
            f"[pinvnn.Head] {folder}: the weight must be ({len(config.labels) or 1}, {config.dims}) as in "
            f"{FILES[1]}, but got {arrays['weight'].shape}. Fit the head again."
        )
    return config, arrays


def _check(folder: Path, config: HeadConfig, arrays: dict[str, mx.array], source: LanguageModel) -> None:
    """Whether the head was fitted on ``source``: its architecture, its tokenizer and, by the probe, its weights."""
    tokens, states = source.probe()
    here = {"model_type": source.model_type, "states": len(states), "dims": states[0].shape[-1]}
    for key, value in here.items():
        if getattr(config, key) != value:
            raise ValueError(
                f"[pinvnn.Head] {folder}: the model must be the one that the head was fitted on, {config.model}, "
                f"with {key} {getattr(config, key)}, but got {source.name} with {value}."
            )
    if tokens != arrays["probe.tokens"].tolist():
        rule = f"the tokenizer must be that of {config.model}"
        raise ValueError(f"[pinvnn.Head] {folder}: {rule}, but got another one in {source.name}.")
    cosine = similarity(arrays["probe.states"], states[config.layer])
    got = f"{source.name} with a cosine of {cosine:.2f} to the states of layer {config.layer} then"
    if not cosine >= OTHER_MODEL:
        raise ValueError(f"[pinvnn.Head] {folder}: the model must have the weights of {config.model}, but got {got}.")
    if cosine < SAME_MODEL:
        warnings.warn(
            f"[pinvnn.Head] {folder}: the weights should be those of {config.model}, but got {got}. Fit the head again "
            "if they were trained or quantized since.",
            stacklevel=3,
        )
