"""A tiny random model and folders of invented text."""

import warnings
from pathlib import Path

import pytest

from tests.support.topics import FILLER, TOPICS, load_example, write_folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder of a Llama model of three layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers has to say when it is imported
        import mlx_lm  # noqa: F401

        words = FILLER + sum(TOPICS.values(), [])
        return load_example("llm_model").write_tiny(tmp_path_factory.mktemp("models") / "tiny", words)


@pytest.fixture(scope="session")
def loaded(tiny):
    """The pair (model, tokenizer) of the tiny model."""
    from mlx_lm import load

    return load(str(tiny))[:2]


@pytest.fixture(scope="session")
def topics(tmp_path_factory) -> Path:
    """Folder of a classification with more training texts than one chunk."""
    return write_folder(tmp_path_factory.mktemp("data") / "topics", 300, 60)


@pytest.fixture(scope="session")
def lengths(tmp_path_factory) -> Path:
    """Folder of a regression: half the number of words."""
    return write_folder(tmp_path_factory.mktemp("data") / "lengths", 300, 60, regression=True)
