"""A concept erased: nothing left for a linear readout, inside a model, differentiable, saved."""

import json
import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from pinvnn import surgery
from pinvnn.heads import extract, hidden_states
from pinvnn.nn import LogisticReadout
from pinvnn.streaming import ReadoutStatistics
from pinvnn.surgery import Eraser, EraserConfig
from pinvnn.surgery._erase import factors
from tests.support.families import FAMILIES, Words, build
from tests.support.topics import write_folder

POOLINGS = ["mean", "last", 1]


def rows_of(data, name="train"):
    rows = [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]
    return [row["text"] for row in rows], np.array([row["label"] for row in rows])


def majority(labels):
    return max(np.mean(labels == label) for label in set(labels))


def standardized(x):
    x = np.array(x, np.float64)
    return (x - x.mean(axis=0)) / np.where(x.std(axis=0) > 0, x.std(axis=0), 1)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_no_readout_is_better_than_the_majority(loaded, texts, layer, pooling):
    eraser = surgery.erase(loaded, texts, layer, pooling=pooling)
    words, labels = rows_of(texts)
    (before,) = extract(loaded, words, layers=[layer], pooling=pooling)
    with eraser.installed(loaded[0]):
        # Behind the first layer, whose input is changed, the embedding is seen through its own eraser only.
        (after,) = extract(loaded, words, layers=[layer], pooling=pooling) if layer else (eraser(before),)
    assert np.allclose(after, eraser(before), atol=1e-4)
    for readout in (RidgeClassifier(1e-3), LogisticRegression(max_iter=1000)):
        assert readout.fit(standardized(before), labels).score(standardized(before), labels) > majority(labels) + 0.1
        x = np.array(after, np.float64) / np.array(before, np.float64).std(axis=0)
        assert readout.fit(x, labels).score(x, labels) == pytest.approx(majority(labels), abs=0.01)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_cross_covariance_is_gone_at_every_scale(scale):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    y = np.where(labels[:, None] == np.arange(3), 1.0, -1.0)
    x = scale * (rng.normal(size=(400, 20)) @ rng.normal(size=(20, 20)) + y @ rng.normal(size=(3, 20)) + 3)
    stats = ReadoutStatistics(20, 3).update(x.astype(np.float32), y)
    eraser = Eraser(EraserConfig("", "", 1, 20, "mean"), *factors(stats))
    weight, bias = stats.eraser()
    np.testing.assert_allclose(eraser.weight, weight, atol=1e-4)
    np.testing.assert_allclose(eraser.bias, bias, atol=1e-3 * scale)
    left = np.array(eraser(mx.array(x.astype(np.float32))), np.float64)

    def covariance(x):
        return np.linalg.norm((x - x.mean(axis=0)).T @ (y - y.mean(axis=0)))

    assert covariance(left) < 1e-6 * covariance(x)
    erased = mx.array(left.astype(np.float32) / scale)
    readout = LogisticReadout(20, 3, l2=1.0).fit(erased, mx.array(labels))
    assert float(mx.mean(readout.predict(erased) == mx.array(labels))) == pytest.approx(majority(labels), abs=0.01)


def test_every_token_is_a_row(loaded, texts):
    model, tokenizer = loaded
    eraser = surgery.erase(loaded, texts, 2)
    words, labels = rows_of(texts)
    states = [hidden_states(model, mx.array([tokenizer.encode(text)]))[2][0] for text in words]
    x, y = np.array(eraser(mx.concatenate(states))), np.repeat(labels, [len(state) for state in states])
    before = np.array(mx.concatenate(states), np.float64)
    readout = RidgeClassifier(1e-3).fit(standardized(before), y)
    assert readout.score(standardized(before), y) > majority(y) + 0.05
    x = x.astype(np.float64) / before.std(axis=0)
    assert RidgeClassifier(1e-3).fit(x, y).score(x, y) == pytest.approx(majority(y), abs=0.01)


def test_it_sits_in_the_model_and_leaves_its_parameters(loaded, texts, tmp_path):
    model, tokenizer = loaded
    tokens = mx.array([tokenizer.encode("the cat and the old dog in a city")])
    plain, names = hidden_states(model, tokens), [name for name, _ in tree_flatten(model.parameters())]
    eraser = surgery.erase(loaded, texts, 2, pooling="mean")
    eraser.save(tmp_path / "eraser")
    again = Eraser.load(tmp_path / "eraser")
    assert again.config == eraser.config and mx.array_equal(again.weight, eraser.weight)
    assert again.config.labels == ("animal", "food", "place")

    again.install(model)
    states = hidden_states(model, tokens)
    assert mx.array_equal(states[1], plain[1]) and mx.allclose(states[2], eraser(plain[2]), atol=1e-5)
    assert not mx.allclose(states[3], plain[3], atol=1e-3)
    assert [name for name, _ in tree_flatten(model.parameters())] == names
    with pytest.raises(ValueError, match="layer 2 must have no eraser yet, but got one"):
        eraser.install(model)
    again.remove(model)
    again.remove(model)
    assert all(mx.array_equal(a, b) for a, b in zip(hidden_states(model, tokens), plain, strict=True))


def test_the_embedding(loaded, texts):
    model, tokenizer = loaded
    tokens = mx.array([tokenizer.encode("the cat and the old dog in a city")])
    eraser = surgery.erase(loaded, texts, 0, pooling="mean")
    expected = model.layers[0](eraser(model.model.embed_tokens(tokens)), "causal", None)
    with eraser.installed(model):
        assert mx.allclose(hidden_states(model, tokens)[1], expected, atol=1e-5)


def test_the_map_of_the_embedding_folds_into_it():
    model, tokens = build("llama"), mx.array([Words().encode("some words and more")])
    write = 0.1 * mx.random.normal((1, 32), key=mx.random.key(0))
    eraser = Eraser(EraserConfig("", "", 0, 32, "mean"), mx.ones((32, 1)), write, mx.ones((32,)))
    with eraser.installed(model):
        expected = model(tokens)
    assert mx.allclose(eraser.fold(model)(tokens), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "layer", "message"),
    [("llama", 1, "layer 1"), ("gemma", 0, "layer 0"), ("cohere2", 0, "one with tied weights")],
)
def test_other_maps_do_not_fold(family, layer, message):
    model, tokens = build(family), mx.array([Words().encode("some words and more")])
    plain = model(tokens)
    eraser = Eraser(EraserConfig("", "", layer, 32, "mean"), mx.ones((32, 1)), 0.1 * mx.ones((1, 32)), mx.ones((32,)))
    with pytest.raises(ValueError, match=f"the map must be of layer 0, .*but got {message}. Install it instead."):
        eraser.fold(model)
    assert mx.array_equal(model(tokens), plain)


def test_gradients_go_through(loaded, texts):
    model, tokenizer = loaded
    tokens = mx.array([tokenizer.encode("the cat and the old dog")])
    eraser = surgery.erase(loaded, texts, 2, pooling="mean")
    weight = model.layers[0].mlp.down_proj.weight

    def loss(w):
        model.layers[0].mlp.down_proj.weight = w
        return (hidden_states(model, tokens)[2] ** 2).sum()

    with eraser.installed(model):
        gradient, direction = mx.grad(loss)(weight), mx.random.normal(weight.shape, key=mx.random.key(0))
        slope = (loss(weight + 1e-2 * direction) - loss(weight - 1e-2 * direction)) / 2e-2
    assert abs(float(slope / (gradient * direction).sum()) - 1) < 1e-2
    assert not eraser.trainable_parameters()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    model, tokens = build(family), mx.array([Words().encode("some words and more")])
    plain = hidden_states(model, tokens)[2]
    eraser = Eraser(EraserConfig("", "", 2, 32, "mean"), 0.5 * mx.eye(32), mx.eye(32), mx.ones((32,)))
    with eraser.installed(model):
        assert mx.allclose(hidden_states(model, tokens)[2], eraser(plain), atol=1e-4)
    assert mx.array_equal(hidden_states(model, tokens)[2], plain)


def test_numbers_are_erased(loaded, tmp_path):
    data = write_folder(tmp_path / "data", 200, 20, regression=True)
    eraser = surgery.erase(loaded, data, 1, pooling="mean")
    words, lengths = rows_of(data)
    (x,) = extract(loaded, words, layers=[1], pooling="mean")
    x = standardized(eraser(x))
    assert np.abs(x.T @ standardized(lengths[:, None])).max() / len(x) < 1e-4
    assert eraser.config.labels == ()


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (5, {}, "layer must be between 0 and 4, but got 5"),
        (-1, {}, "layer must be between 0 and 4, but got -1"),
        (1, {"pooling": "max"}, 'pooling must be "last", "mean" or a token position'),
        (1, {"batch_size": 0}, "batch_size must be 1 or more, but got 0"),
    ],
)
def test_refused(loaded, texts, layer, options, message):
    with pytest.raises(ValueError, match=message):
        surgery.erase(loaded, texts, layer, **options)


def test_mistakes_of_erasers(loaded, tmp_path):
    with pytest.raises(ValueError, match="the folder must hold an eraser, but got"):
        Eraser.load(tmp_path)
    with pytest.raises(ValueError, match=r"read, write and mean must have the shapes \(\(3, 4\), \(4, 3\), \(3,\)\)"):
        Eraser(EraserConfig("", "", 1, 3, "mean"), mx.eye(4), mx.eye(4), mx.zeros((4,)))
    with pytest.raises(ValueError, match="the model must have the decoder layer 7, but got 4 layers"):
        Eraser(EraserConfig("", "", 7, 32, "mean"), mx.eye(32), mx.eye(32), mx.zeros((32,))).install(loaded[0])


def test_an_eraser_of_half_precision_states(loaded, texts):
    eraser = surgery.erase(loaded, texts, 2, pooling="mean")
    x = mx.random.normal((3, 32), key=mx.random.key(1))
    assert eraser(x.astype(mx.bfloat16)).dtype == mx.bfloat16
    assert math.isfinite(float(mx.sum(eraser(x.astype(mx.float16)))))
