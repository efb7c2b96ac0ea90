"""A language model of mlx-lm with its tokenizer, and how a head recognises it."""

import operator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn

from .._mlx import fail
from .extract import context_length, hidden_states

# A head keeps the states of these words at its layer, by which it recognises its model.
PROBE = "The quick brown fox jumps over the lazy dog."
# Limits for the mean cosine between those states and the present ones. The same weights reach 0.999 in half precision
# or 8 bits, and 0.8 to 0.99 in 4 bits, where predictions begin to suffer; other weights of the same shape are near 0.
SAME_MODEL, OTHER_MODEL = 0.95, 0.5


@dataclass
class LanguageModel:
    """A model and its tokenizer, as ``mlx_lm.load`` returns them, with a name and the longest text.

    Attributes:
        name: Path or repository.
        model: The decoder model.
        tokenizer: Its tokenizer.
        max_length: Longer texts are cut to this number of tokens.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    max_length: int = 2048

    def __post_init__(self) -> None:
        if self.max_length < 1:
            fail("heads", "the longest text must have 1 token or more", self.max_length, "Raise max_length.")
        self.max_length = min(self.max_length, context_length(self.model) or self.max_length)

    def tokens(self, text: str, where: str = "text") -> list[int]:
        """Token ids of ``text``, of any length.

        Raises:
            ValueError: The tokenizer refuses the text; the message begins with ``where``.
        """
        try:
            ids = [operator.index(token) for token in self.tokenizer.encode(text)]
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # tokenizers raise many kinds; a panic of Rust is no Exception
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            fail("heads", f"{where}: the tokenizer must take the text", reason, "Leave it out.")
        if ids and not 0 <= min(ids) <= max(ids) < self._vocabulary:
            rule = f"{where}: tokens must be among the {self._vocabulary} that the model has an embedding of"
            fail("heads", rule, f"{min(ids)} to {max(ids)}", "Take the model's own tokenizer.")
        return ids

    @cached_property
    def _vocabulary(self) -> float:
        """The most rows that an embedding of the model has. MLX reads beyond them without an error."""
        kinds = nn.Embedding, nn.QuantizedEmbedding
        rows = [module.weight.shape[0] for module in self.model.modules() if isinstance(module, kinds)]
        return max(rows, default=float("inf"))

    def encode(self, text: str, where: str = "text") -> list[int]:
        """Token ids of ``text``, the first :attr:`max_length` of them; raises as :meth:`tokens`."""
        return self.tokens(text, where)[: self.max_length]

    def probe(self) -> tuple[list[int], list[mx.array]]:
        """Token ids of one fixed sentence and its states in every layer, ``(tokens, dims)`` in float32 each."""
        ids = self.encode(PROBE)
        states = hidden_states(self.model, mx.array([ids], dtype=mx.int32))
        return ids, [state[0].astype(mx.float32) for state in states]

    @property
    def model_type(self) -> str:
        """The architecture, as mlx-lm calls it."""
        return str(getattr(self.model, "model_type", type(self.model).__name__))


#: A folder or repository for ``mlx_lm.load``, the pair (model, tokenizer) that it returned, or a loaded model.
ModelLike: TypeAlias = str | Path | tuple[nn.Module, Any] | LanguageModel


def load_model(model: ModelLike, max_length: int = 2048) -> LanguageModel:
    """Load a model by name, or take one that was loaded.

    Args:
        model: A folder or repository for ``mlx_lm.load``, or the pair (model, tokenizer) that it returned.
        max_length (int): Longer texts are cut to this number of tokens, or to the model's context if that is shorter.

    Raises:
        ValueError: There is no such model, or mlx-lm cannot read it.
        ImportError: mlx-lm is not installed.
    """
    if isinstance(model, LanguageModel):
        return model
    if isinstance(model, tuple):
        return LanguageModel("", *model, max_length=max_length)
    try:
        from mlx_lm import load
    except ImportError as error:
        raise ImportError("[pinvnn.heads] mlx-lm must be installed: pip install 'pinvnn[heads]'.") from error
    name = str(model)
    # A path that is not there must not be asked for on the hub.
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        fail("heads", f"{name}: the model must be a folder or a repository", "neither", "Check the path.")
    try:
        loaded, tokenizer, *_ = load(name)
    except Exception as error:  # mlx-lm, transformers and the hub raise many kinds, with messages of many lines
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"[pinvnn.heads] {name}: mlx-lm must be able to load the model, but got: {reason}") from error
    return LanguageModel(name, loaded, tokenizer, max_length)


def versions() -> dict[str, str]:
    """Installed versions of pinvnn, mlx and mlx-lm; ``"unknown"`` for what is not installed."""
    found = {}
    for package in ("pinvnn", "mlx", "mlx-lm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def similarity(a: mx.array, b: mx.array) -> float:
    """Mean over the tokens of the cosine between two sets of states ``(tokens, dims)``."""
    lengths = mx.sqrt(mx.sum(a * a, axis=1)) * mx.sqrt(mx.sum(b * b, axis=1))
    return float(mx.mean(mx.sum(a * b, axis=1) / mx.maximum(lengths, 1e-30)))
