"""Corrections of linear layers as an adapter that mlx-lm loads."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from .._lm import write_whole
from .._mlx import fail
from ._layers import dense_weight, linear_layers
from ._low_rank import Correction

FILES = ("adapters.safetensors", "adapter_config.json")


class Adapter:
    """Low-rank corrections of linear layers, as :func:`compensate` finds them.

    Attributes:
        rank (int): Rank of each correction; smaller where a layer is smaller.
        skipped (tuple(str)): Names of quantized linear layers that are not corrected, for lack of statistics.
    """

    def __init__(self, corrections: Mapping[str, Correction], rank: int, skipped: tuple[str, ...] = ()) -> None:
        self._corrections = dict(corrections)
        self.rank: int = rank
        self.skipped: tuple[str, ...] = skipped

    def __repr__(self) -> str:
        return f"Adapter(layers={len(self._corrections)}, rank={self.rank})"

    @property
    def names(self) -> list[str]:
        """Names of the layers that are corrected."""
        return list(self._corrections)

    def truncated(self, rank: int) -> "Adapter":
        """The best corrections of a smaller rank, which are the first directions of these.

        Args:
            rank (int): From 0, for no correction, to :attr:`rank`.

        Raises:
            ValueError: If ``rank`` is not among these.
        """
        if not 0 <= rank <= self.rank:
            fail("Adapter.truncated", f"rank must be between 0 and {self.rank}", rank, "Compensate with a larger one.")
        parts = {
            name: c._replace(b=c.b[:, :rank], a=c.a[:rank], removed=c.removed[:rank])
            for name, c in self._corrections.items()
        }
        return Adapter(parts, rank, self.skipped)

    def errors(self) -> dict[str, tuple[float, float]]:
        """Relative error of each layer's output y, before and after: the root of ``mean(|dy|^2) / mean(|y|^2)``."""
        found = {}
        for name, c in self._corrections.items():
            after = max(c.error - float(c.removed.sum()), 0.0)
            size = c.size or 1.0
            found[name] = ((c.error / size) ** 0.5, (after / size) ** 0.5)
        return found

    def factors(self, name: str) -> tuple[mx.array, mx.array]:
        """The correction of a layer as mlx-lm's LoRA layers have it: ``x @ lora_a @ lora_b`` is added to the output.

        Args:
            name (str): Of the layer.

        Returns:
            tuple(array, array): ``lora_a`` ``(input_dims, rank)`` and ``lora_b`` ``(rank, output_dims)``, float32.
        """
        c = self._corrections[name]
        # Both factors of one size, so that neither leaves the range of half precision first.
        scale = np.sqrt(np.maximum(np.linalg.norm(c.a, axis=1), np.finfo(np.float32).tiny))
        a, b = (c.a / scale[:, None]).T, (c.b * scale).T
        missing = self.rank - a.shape[1]  # mlx-lm gives every layer the same rank
        a, b = np.pad(a, ((0, 0), (0, missing))), np.pad(b, ((0, missing), (0, 0)))
        return mx.array(a.astype(np.float32)), mx.array(b.astype(np.float32))

    def apply(self, model: nn.Module) -> nn.Module:
        """Put dense layers with the corrected weights into ``model`` in the place of its quantized ones.

        What ``mlx_lm.load`` makes of a saved adapter computes the same, and keeps the quantized weights.

        Args:
            model (nn.Module): The quantized model; it is changed.

        Returns:
            nn.Module: ``model``.
        """
        layers = linear_layers(model)
        dense = []
        for name, c in self._corrections.items():
            layer: Any = layers[name]
            weight = mx.array((dense_weight(layer) + c.b @ c.a).astype(np.float32))
            linear = nn.Linear(1, 1, bias="bias" in layer)
            linear.weight = weight.astype(layer.scales.dtype) if isinstance(layer, nn.QuantizedLinear) else weight
            if "bias" in layer:
                linear.bias = layer.bias
            dense.append((name, linear))
        model.update_modules(tree_unflatten(dense))
        mx.eval(model.parameters())
        return model

    def save(self, folder: str | Path) -> None:
        """Write ``adapters.safetensors`` and ``adapter_config.json``, which ``mlx_lm.load(adapter_path=)`` takes.

        Args:
            folder (str): Created if it does not exist.

        Raises:
            ValueError: If the rank is 0.
        """
        write_whole(Path(folder), self.writers())

    def writers(self) -> dict[str, Callable[[Path], Any]]:
        """For each file of :meth:`save` a function that writes it to the path that it is given."""
        if self.rank < 1:
            fail("Adapter.save", "the rank must be 1 or more", self.rank, "An adapter of rank 0 changes nothing.")
        arrays: dict[str, mx.array] = {}
        for name in self._corrections:
            arrays[f"{name}.lora_a"], arrays[f"{name}.lora_b"] = self.factors(name)
        # Keys are whole names, so that they hold for just these layers, wherever they are.
        lora = {"rank": self.rank, "scale": 1.0, "dropout": 0.0, "keys": self.names}
        config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": lora}
        text = json.dumps(config, indent=4) + "\n"
        return {
            FILES[0]: lambda path: mx.save_safetensors(str(path), arrays),
            FILES[1]: lambda path: path.write_text(text),
        }


@contextmanager
def applied(adapter: Adapter, model: nn.Module) -> Iterator[nn.Module]:
    """Context in which ``model`` is corrected; afterwards it has its quantized layers again."""
    layers = linear_layers(model)
    before = [(name, layers[name]) for name in adapter.names]
    try:
        yield adapter.apply(model)
    finally:
        model.update_modules(tree_unflatten(before))
