"""Statistics of the inputs of every linear layer: those of all tokens and no padding, once each."""

import json

import mlx.core as mx
import numpy as np
import pytest

from pinvnn import surgery
from pinvnn._lm import stream
from tests.support.families import FAMILIES, Words, build
from tests.support.topics import write_rows

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def rows_of(data):
    return [json.loads(line)["text"] for line in (data / "train.jsonl").read_text().splitlines()]


def layer_inputs(pair, texts):
    """What down_proj of the second layer reads and what that layer returns, by the model's own modules."""
    model, tokenizer = pair
    found, outputs = [], []
    for text in texts:
        tokens = mx.array([tokenizer.encode(text)])
        h = model.model.embed_tokens(tokens)
        for i, layer in enumerate(model.layers[:2]):
            r = h + layer.self_attn(layer.input_layernorm(h), "causal", None)
            x = layer.post_attention_layernorm(r)
            inner = mx.sigmoid(layer.mlp.gate_proj(x)) * layer.mlp.gate_proj(x) * layer.mlp.up_proj(x)
            h = r + layer.mlp.down_proj(inner)
            if i == 1:
                found.append(np.array(inner[0], np.float64))
                outputs.append(np.array(h[0], np.float64))
    return np.vstack(found), np.vstack(outputs)


def test_statistics_are_those_of_all_tokens(loaded, texts):
    stats = surgery.collect(loaded, texts)
    x, h = layer_inputs(loaded, rows_of(texts))
    for name, rows in [("model.layers.1.mlp.down_proj", x), ("model.layers.1", h)]:
        m = stats.statistics[name].moments
        assert stats.statistics[name].count == stats.tokens == len(rows)
        np.testing.assert_allclose(m.x_mean, rows.mean(axis=0), atol=1e-6)
        centred = rows - rows.mean(axis=0)
        np.testing.assert_allclose(m.xx, centred.T @ centred, atol=1e-5 * np.abs(m.xx).max())
        np.testing.assert_allclose(stats.second_moment(name), rows.T @ rows / len(rows), atol=1e-6 * (rows**2).max())


def test_layers_that_read_the_same_share_one_matrix(loaded, texts):
    found = surgery.collect(loaded, texts).statistics
    for i in range(4):
        attention, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        assert found[attention + "q_proj"] is found[attention + "k_proj"] is found[attention + "v_proj"]
        assert found[mlp + "gate_proj"] is found[mlp + "up_proj"]
    assert len({id(stats) for stats in found.values()}) == 4 * 5
    assert len(found) == 4 * 8


def test_some_layers(loaded, texts):
    found = surgery.collect(loaded, texts, layers=[2]).statistics
    assert {name.split(".")[2] for name in found} == {"1"} and len(found) == 8


def test_batches_do_not_matter(loaded, texts):
    one, other = (surgery.collect(loaded, texts, batch_size=size) for size in (3, 64))
    for name, stats in one.statistics.items():
        a, b = np.array(stats.moments.xx), np.array(other.statistics[name].moments.xx)
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


def test_the_model_is_as_before(loaded, texts):
    model = loaded[0]
    before = [type(module) for module in model.modules()]
    surgery.collect(loaded, texts)
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", [{"text": f"word{i} and {i * i} more"} for i in range(5)])
    stats = surgery.collect((build(family), Words()), data)
    assert stats.tokens == 20
    assert all(stats.statistics[name].count == 20 for name in stats.statistics)
    # Every decoder layer, and in each the layers that read one state for each token.
    assert sum(name.split(".")[-1].isdigit() for name in stats.statistics) == 3
    assert len(stats.statistics) > 6


def test_an_interrupted_run_goes_on(loaded, texts, tmp_path, monkeypatch):
    whole = surgery.collect(loaded, texts)
    real = stream.TextReader.batches

    def batches(self, chunk):
        if chunk.index == 1:
            raise KeyboardInterrupt
        return real(self, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(stream.TextReader, "batches", batches)
        with pytest.raises(KeyboardInterrupt):
            surgery.collect(loaded, texts, output=tmp_path, save_every=0)
    with pytest.raises(ValueError, match="checkpoint must be of the same run, but got batch size 16 there and 8 now"):
        surgery.collect(loaded, texts, output=tmp_path, batch_size=8)
    resumed = surgery.collect(loaded, texts, output=tmp_path)
    assert resumed.resumed == 256
    for name, stats in whole.statistics.items():
        assert mx.array_equal(stats.moments.xx, resumed.statistics[name].moments.xx, stream=mx.cpu)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [5]}, "layers must be between 1 and 4, but got 5"),
        ({"layers": [0]}, "layers must be between 1 and 4, but got 0"),
        ({"batch_size": 0}, "batch_size must be 1 or more, but got 0"),
    ],
)
def test_refused(loaded, texts, options, message):
    with pytest.raises(ValueError, match=message):
        surgery.collect(loaded, texts, **options)


def test_mistakes_in_the_text_are_named(loaded, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "the cat"}\n{"word": "cat"}\n')
    with pytest.raises(ValueError, match='bad.jsonl:2: the object must have the key "text"'):
        surgery.collect(loaded, tmp_path / "bad.jsonl")
    with pytest.raises(ValueError, match="no.jsonl: the file must be readable"):
        surgery.collect(loaded, tmp_path / "no.jsonl")


def test_activations_that_are_not_finite_are_named(loaded, texts):
    loaded[0].layers[2].mlp.up_proj.weight = mx.full((64, 32), float("nan"))
    with pytest.raises(ValueError, match=r"activations of model.layers.2.mlp.down_proj must be finite, but got others"):
        surgery.collect(loaded, texts)
