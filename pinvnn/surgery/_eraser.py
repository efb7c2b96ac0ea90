"""A concept erased from the states of a layer: a Module that sits in the model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .._lm import Label, first_array, reporting, versions, write_whole
from .._mlx import fail, matmul
from ._layers import block_names

FILES = ("eraser.safetensors", "config.json")


@dataclass(frozen=True)
class EraserConfig:
    """Contents of an eraser's ``config.json``.

    Attributes:
        model: Path or repository of the model.
        model_type: Architecture, as mlx-lm calls it.
        layer: The decoder layer whose output is changed; 0 is the embedding.
        dims: Size of a state.
        pooling: How a text became one vector when the eraser was fitted, or ``"tokens"``.
        labels: The labels of a classification that were erased; empty for numbers.
        versions: By package, the versions that the eraser was made with.
    """

    model: str
    model_type: str
    layer: int
    dims: int
    pooling: str | int
    labels: tuple[Label, ...] = ()
    versions: dict[str, str] = field(default_factory=versions)


class Eraser(nn.Module):
    r"""An affine map of states after which no linear readout of the erased labels is better than a constant.

    A Module without parameters, differentiable in its input. :func:`erase` fits it, and :meth:`install` puts it into a
    model.

    Args:
        config (EraserConfig): Where it belongs, and what it erases.
        read (array): What is read of a state, ``(dims, rank)``.
        write (array): What is taken off for it, ``(rank, dims)``: the map is ``x - (x - mean) @ read @ write``.
        mean (array): The mean of the states, ``(dims,)``.

    Shape:
        - x: ``(..., dims)``; the result has its shape and dtype.

    References:
        N. Belrose et al., LEACE: Perfect linear concept erasure in closed form, NeurIPS 2023, arXiv 2306.03819, Theorem
        4.3.

    Examples:
        .. code-block:: python

            eraser = surgery.erase((model, tokenizer), "DATA", layer=15)
            eraser.save("ERASER")
            surgery.Eraser.load("ERASER").install(model)
    """

    def __init__(self, config: EraserConfig, read: mx.array, write: mx.array, mean: mx.array) -> None:
        super().__init__()
        n, rank = config.dims, read.shape[-1]
        shapes = (n, rank), (rank, n), (n,)
        if (read.shape, write.shape, mean.shape) != shapes:
            rule = f"read, write and mean must have the shapes {shapes}"
            fail("Eraser", rule, f"{read.shape}, {write.shape} and {mean.shape}", "Fit it with erase.")
        self.config: EraserConfig = config
        # With an underscore they are no parameters: the closed form sets them and no optimizer, and a model in which
        # this sits has the parameters that it had, which mlx-lm saves and loads.
        self._read, self._write, self._mean = (part.astype(mx.float32) for part in (read, write, mean))

    @property
    def weight(self) -> mx.array:
        """The matrix of the map, ``(dims, dims)`` in float32."""
        return mx.eye(self.config.dims) - matmul(self._read, self._write).T

    @property
    def bias(self) -> mx.array:
        """The constant of the map, ``(dims,)`` in float32."""
        return matmul(matmul(self._mean[None], self._read), self._write)[0]

    def _extra_repr(self) -> str:
        return f"layer={self.config.layer}, dims={self.config.dims}, labels={len(self.config.labels)}"

    def __call__(self, x: mx.array) -> mx.array:
        """The states ``x`` ``(..., dims)`` without what a linear readout could tell of the labels."""
        state = x.astype(mx.float32)
        # Three TF32 products for one on a GPU: what one product leaves is a trace that a readout finds.
        return (state - matmul(matmul(state - self._mean, self._read), self._write)).astype(x.dtype)

    def install(self, model: nn.Module) -> nn.Module:
        """Let every later call of ``model`` go through this map at its layer.

        The eraser becomes a child of the decoder layer, with the name ``eraser``; the parameters of the model stay as
        they are, so that mlx-lm saves and loads them as before, and the eraser is saved by :meth:`save`.

        Args:
            model (nn.Module): As ``mlx_lm.load`` returns it; it is changed.

        Returns:
            nn.Module: ``model``.

        Raises:
            ValueError: The model has no such layer, states of another size, or an eraser there already.
        """
        block = self._block(model)
        if "eraser" in block:
            fail("Eraser.install", f"layer {self.config.layer} must have no eraser yet", "one", "Remove it first.")
        block.eraser = self
        block.__class__ = _erasing(type(block), self.config.layer == 0)
        return model

    def remove(self, model: nn.Module) -> nn.Module:
        """Undo :meth:`install`.

        Args:
            model (nn.Module): The model that it was installed in.

        Returns:
            nn.Module: ``model``.
        """
        block = self._block(model)
        if "eraser" in block:
            block.pop("eraser")
            block.__class__ = type(block).__mro__[1]
        return model

    @contextmanager
    def installed(self, model: nn.Module) -> Iterator[nn.Module]:
        """Context in which ``model`` has this eraser."""
        self.install(model)
        try:
            yield model
        finally:
            self.remove(model)

    def fold(self, model: nn.Module) -> nn.Module:
        """Put the map of layer 0 into the embedding: each of its rows e becomes the mapped e, and no module is needed.

        The map of another layer has no place in the weights: layers add to the state, and those before would read it.

        Args:
            model (nn.Module): As ``mlx_lm.load`` returns it; it is changed.

        Returns:
            nn.Module: ``model``.

        Raises:
            ValueError: The layer is not 0, the first decoder layer does not read the embedding as it is, or the model
                uses the embedding for its outputs, too.
        """
        rule = "the map must be of layer 0, of a model that reads its embedding there alone and as it is"
        embedding = _embedding(model, self._block(model)) if self.config.layer == 0 else None
        if embedding is None:
            fail("Eraser.fold", rule, f"layer {self.config.layer}", "Install it instead.")
        before, token = embedding.weight, mx.zeros((1, 1), mx.int32)
        expected = model(token)
        try:
            # Rows of other tokens matter only where the outputs come from the embedding, too.
            embedding.weight = before * (mx.arange(before.shape[0]) == 0)[:, None]
            tied = not mx.array_equal(model(token), expected)
        finally:
            embedding.weight = before
        if tied:
            fail("Eraser.fold", rule, "one with tied weights", "Install it instead.")
        embedding.weight = self(before)
        return model

    def _block(self, model: nn.Module) -> Any:
        """The decoder layer that the map follows, or for the embedding the one that it precedes."""
        names = block_names(model)
        if not 0 <= self.config.layer <= len(names):
            rule = f"the model must have the decoder layer {self.config.layer}"
            fail("Eraser.install", rule, f"{len(names)} layers", "Erase on this model.")
        return dict(model.named_modules())[names[max(self.config.layer - 1, 0)]]

    def save(self, folder: str | Path) -> None:
        """Write ``eraser.safetensors`` and ``config.json`` into ``folder``. The model itself is not saved."""
        write_whole(Path(folder), self.writers())

    def writers(self) -> dict[str, Any]:
        """For each file of :meth:`save` a function that writes it to the path that it is given."""
        arrays = {"read": self._read, "write": self._write, "mean": self._mean}
        config = json.dumps(asdict(self.config), indent=4) + "\n"
        return {
            FILES[0]: lambda path: mx.save_safetensors(str(path), arrays),
            FILES[1]: lambda path: path.write_text(config),
        }

    @classmethod
    def load(cls, folder: str | Path) -> "Eraser":
        """Read what :meth:`save` has written.

        Args:
            folder (str): Where it is.

        Raises:
            ValueError: The folder holds no eraser.
        """
        folder = Path(folder)
        try:
            values = json.loads((folder / FILES[1]).read_text())
            arrays: Any = mx.load(str(folder / FILES[0]))
            config = EraserConfig(**{**values, "labels": tuple(values["labels"])})
            return cls(config, arrays["read"], arrays["write"], arrays["mean"])
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"[pinvnn.Eraser] {folder}: the folder must hold an eraser, but got: {reason}") from None


def _embedding(model: nn.Module, first: nn.Module) -> Any:
    """The embedding whose output is what the first decoder layer reads, or None."""
    made: list[tuple[nn.Module, mx.array]] = []
    read: list[mx.array | None] = []

    def report(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if module is first:
            read.append(first_array([*args, *kwargs.values()]))
        else:
            made.append((module, result))

    embeddings = [module for module in model.modules() if type(module) is nn.Embedding]
    with reporting([*embeddings, first], report):
        model(mx.zeros((1, 1), mx.int32))
    return next((module for module, result in made if any(result is x for x in read)), None)


@cache
def _erasing(cls: type, before: bool) -> type:
    """A subclass of a decoder layer's class that changes its state by its child ``eraser``."""

    def call(self: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        if before:
            return cls.__call__(self, self.eraser(x), *args, **kwargs)
        result = cls.__call__(self, x, *args, **kwargs)
        if isinstance(result, tuple | list):  # a state, and more
            return type(result)([self.eraser(result[0]), *result[1:]])
        return self.eraser(result)

    return type(cls.__name__, (cls,), {"__call__": call})
