"""The linear layers of a model: names, weights, and which of them read the same input."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .._lm import PROBE, LanguageModel, first_array, reporting
from .._mlx import fail

LINEAR = (nn.Linear, nn.QuantizedLinear)


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of a model by name, quantized or not, in the order of their numbers and names."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, LINEAR)}

    def order(name: str) -> list[str]:
        return [part.zfill(9) if part.isdigit() else part for part in name.split(".")]

    return {name: found[name] for name in sorted(found, key=order)}


def block_names(model: nn.Module) -> list[str]:
    """Names of the decoder layers, ``"model.layers.0"`` and so on.

    Raises:
        ValueError: The model has no ``layers`` as mlx-lm's decoders have.
    """
    numbers = {id(layer): i for i, layer in enumerate(getattr(model, "layers", []))}
    found = {numbers[id(module)]: name for name, module in model.named_modules() if id(module) in numbers}
    if not found or len(found) < len(numbers):
        rule = "the model must have its decoder layers in `model.layers`, as mlx-lm's models do"
        fail("surgery", rule, type(model).__name__, "Load it with `mlx_lm.load`.")
    return [found[i] for i in range(len(found))]


def check_blocks(layers: Sequence[int], count: int) -> list[int]:
    """``layers``, if the model has them. They are counted as in :mod:`pinvnn.heads`: 1 is the first decoder layer.

    Raises:
        ValueError: The model has no such decoder layer.
    """
    for layer in layers:
        if not 1 <= layer <= count:
            fail("surgery", f"layers must be between 1 and {count}", layer, "1 is the first decoder layer.")
    return list(layers)


def dense_weight(layer: Any) -> np.ndarray:
    """The weight ``(output_dims, input_dims)`` of a linear layer in float64; that of a quantized one is unpacked."""
    weight = layer.weight
    if isinstance(layer, nn.QuantizedLinear):
        biases = layer.get("biases")
        parts = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
        weight = mx.dequantize(weight, layer.scales, biases, **parts)
    return np.array(weight if weight.dtype == mx.float64 else weight.astype(mx.float32), np.float64)


def weight_shape(layer: Any) -> tuple[int, int]:
    """``(output_dims, input_dims)`` of a linear layer, quantized or not."""
    rows, columns = layer.weight.shape
    return rows, columns * 32 // layer.bits if isinstance(layer, nn.QuantizedLinear) else columns


def record_inputs(source: LanguageModel, modules: Sequence[nn.Module]) -> dict[int, list[tuple[mx.array, mx.array]]]:
    """For each module, by ``id``, the first array of its arguments and of its result at each call, for one sentence.

    Nothing is computed: the arrays are lazy.
    """
    found: dict[int, list[tuple[mx.array, mx.array]]] = {}

    def report(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        given, made = first_array([*args, *kwargs.values()]), first_array(result)
        if given is not None and made is not None:
            found.setdefault(id(module), []).append((given, made))

    tokens = source.encode(PROBE)
    with reporting(modules, report):
        source.model(mx.array([tokens], dtype=mx.int32))
    shape = (1, len(tokens))
    return {key: calls for key, calls in found.items() if all(x.shape[:2] == shape for call in calls for x in call)}
