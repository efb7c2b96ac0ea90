"""A model folder with fewer decoder layers, as mlx-lm reads and writes it."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .._lm import PROBE, LanguageModel
from .._mlx import fail
from ._layers import block_names

PARTIAL = ".partial"  # a folder in the output, while it is written
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".npz", ".pt")


@contextmanager
def without_layers(model: nn.Module, removed: Sequence[int]) -> Iterator[None]:
    """Context in which ``model`` lacks some decoder layers, of which 1 is the first."""
    path, _, _ = block_names(model)[0].rpartition(".")
    *parents, name = path.split(".")
    owner: Any = model
    for part in parents:
        owner = owner[int(part)] if isinstance(owner, list) else getattr(owner, part)
    before = getattr(owner, name)
    try:
        setattr(owner, name, [layer for i, layer in enumerate(before, 1) if i not in removed])
        yield
    finally:
        setattr(owner, name, before)


def shorter_config(config: dict[str, Any], layers: int, removed: Sequence[int]) -> dict[str, Any]:
    """The configuration of a model without some decoder layers: their number, and lists with one entry for each."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key in _COUNTS and value == layers:
            value = layers - len(removed)
        elif isinstance(value, list) and len(value) == layers:
            value = [entry for i, entry in enumerate(value, 1) if i not in removed]
        elif key == "text_config" and isinstance(value, dict):
            value = shorter_config(value, layers, removed)
        found[key] = value
    return found


def renumbered(settings: dict[str, Any], names: Sequence[str], removed: Sequence[int]) -> dict[str, Any]:
    """Settings of single layers, as a quantized model's configuration has them, with the numbers of the layers left."""
    left = [name for i, name in enumerate(names, 1) if i not in removed]
    moved = dict(zip(left, names, strict=False))
    found = {}
    for key, value in settings.items():
        owner = next((name for name in names if key.startswith(f"{name}.")), None)
        if owner is None:
            found[key] = value
        elif owner in moved:
            found[moved[owner] + key[len(owner) :]] = value
    return found


def write_folder(
    source: LanguageModel, model_folder: Path, output: Path, removed: Sequence[int], dense: str | None
) -> None:
    """Write ``source``, which lacks the layers ``removed`` already, into ``output``, and check what mlx-lm makes of it.

    Args:
        source: The shortened model.
        model_folder: Where the whole one is.
        output: Folder to write into. Its files appear once all are written and checked.
        removed: The decoder layers that were removed, of which 1 is the first.
        dense: Name of a linear layer that is not quantized any more, or None.

    Raises:
        ValueError: The model computes something else once it is loaded.
    """
    from mlx_lm.utils import save_config, save_model

    partial = output / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for path in sorted(model_folder.iterdir()):
            if path.is_file() and path.suffix not in _WEIGHTS and not path.name.endswith(".index.json"):
                shutil.copyfile(path, partial / path.name)
        save_model(partial, source.model)
        names = block_names(source.model)
        layers = len(names) + len(removed)
        config = shorter_config(json.loads((model_folder / "config.json").read_text()), layers, removed)
        before = [names[0].rpartition(".")[0] + f".{i}" for i in range(layers)]
        for key in ("quantization", "quantization_config"):
            if isinstance(config.get(key), dict):
                config[key] = renumbered(config[key], before, removed) | ({dense: False} if dense else {})
        save_config(config, partial / "config.json")
        _check(source, partial)
        # The configuration last: without it the folder is no model.
        for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, output / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(source: LanguageModel, folder: Path) -> None:
    from mlx_lm import load

    rule = "the shortened model must be one that mlx-lm loads"
    try:
        loaded = load(str(folder))[0]
    except Exception as error:  # mlx-lm raises many kinds
        fail("replace_layers", rule, " ".join(str(error).split())[:200], "Such models are not supported.")
    tokens = mx.array([source.encode(PROBE)], dtype=mx.int32)
    here, there = (model(tokens).astype(mx.float32) for model in (source.model, loaded))
    if not mx.max(mx.abs(here - there)).item() <= 1e-3 * mx.max(mx.abs(here)).item():  # type: ignore[operator]
        got = "one that computes something else, since its layers depend on their numbers"
        fail("replace_layers", rule, got, "Such models are not supported.")
