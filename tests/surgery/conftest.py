"""A tiny random model, the same in 2 bits, and folders of invented text."""

import json
import shutil
import warnings
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from tests.support.topics import FILLER, TOPICS, load_example, write_folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder of a Llama model of four layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers has to say when it is imported
        import mlx_lm  # noqa: F401

        words = FILLER + sum(TOPICS.values(), [])
        folder = tmp_path_factory.mktemp("models") / "tiny"
        return load_example("llm_model").write_tiny(folder, words, dims=32, layers=4)


@pytest.fixture
def loaded(tiny):
    """The pair (model, tokenizer) of the tiny model."""
    from mlx_lm import load

    return load(str(tiny))[:2]


@pytest.fixture(scope="session")
def packed(tiny, tmp_path_factory) -> Path:
    """Folder of the tiny model in 2 bits."""
    from mlx_lm import load

    folder = tmp_path_factory.mktemp("models") / "packed"
    shutil.copytree(tiny, folder)
    model = load(str(tiny))[0]
    nn.quantize(model, group_size=32, bits=2)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = {"group_size": 32, "bits": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    """Folder with more training texts than one chunk."""
    return write_folder(tmp_path_factory.mktemp("data") / "texts", 300, 60)
