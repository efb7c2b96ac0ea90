"""Layers taken out: the fold is exact, the fit is the least squares solution, mlx-lm loads the result."""

import json
import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from pinvnn import surgery
from pinvnn.surgery._folder import renumbered, shorter_config
from tests.support.families import FAMILIES, Words, build


def load(folder):
    from mlx_lm import load

    return load(str(folder))[:2]


def states(model, tokens):
    """States after each layer, and what each down-projection reads, by the model's own modules."""
    h, found, read = model.model.embed_tokens(tokens), [], []
    for layer in model.layers:
        r = h + layer.self_attn(layer.input_layernorm(h), "causal", None)
        x = layer.post_attention_layernorm(r)
        read.append(nn.silu(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x))
        h = r + layer.mlp.down_proj(read[-1])
        found.append(h)
    return [np.array(s[0], np.float64) for s in found], [np.array(s[0], np.float64) for s in read]


@pytest.fixture(scope="module")
def rows(tiny, texts):
    """Of all training texts: states (layer, tokens, dims), and inputs of the down-projections."""
    model, tokenizer = load(tiny)
    lines = [json.loads(line)["text"] for line in (texts / "train.jsonl").read_text().splitlines()]
    parts = [states(model, mx.array([tokenizer.encode(text)])) for text in lines]
    return tuple(np.stack([np.vstack([p[k][i] for p in parts]) for i in range(4)]) for k in range(2))


@pytest.fixture(scope="module")
def found(tiny, texts):
    return surgery.replace_layers(str(tiny), texts, 2)


def change_of(shortened):
    return shortened._best.change


@pytest.mark.parametrize("l2", [0.0, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("start", [1, 2])
def test_the_change_solves_the_least_squares_problem(tiny, texts, rows, start, l2):
    h, a = rows
    shortened = surgery.replace_layers(str(tiny), texts, 2, start=start, l2=l2)
    before, after, x = h[start - 1], h[start + 1], a[start - 1]
    w = 1 / np.mean(after**2, axis=1)
    w /= w.mean()
    left = (x * w[:, None]).T @ x + l2 * np.eye(x.shape[1])
    right = (x * w[:, None]).T @ (after - before)
    np.testing.assert_allclose(change_of(shortened), np.linalg.solve(left, right).T, rtol=1e-3, atol=1e-4)

    error = after - before - x @ change_of(shortened).T
    size = np.sum(after**2, axis=1)
    fit = shortened.fits[0]
    assert fit["fitted"] == pytest.approx(np.sqrt(np.mean(np.sum(error**2, axis=1) / size)), rel=1e-4)
    drop = np.sqrt(np.mean(np.sum((after - before) ** 2, axis=1) / size))
    assert fit["dropped"] == pytest.approx(drop, rel=1e-5)


def test_the_penalty_is_the_one_of_gcv(rows, found):
    h, a = rows
    start = found.start
    before, after, x = h[start - 1], h[start + 1], a[start - 1]
    w = 1 / np.mean(after**2, axis=1)
    w /= w.mean()
    x, y = x * np.sqrt(w)[:, None], (after - before) * np.sqrt(w)[:, None]

    def gcv(l2):
        hat = x @ np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T)
        return len(x) * np.sum((y - hat @ y) ** 2) / (len(x) - np.trace(hat)) ** 2

    assert gcv(found.l2) <= min(gcv(found.l2 * step) for step in (0.1, 0.5, 2, 10))
    fit = next(fit for fit in found.fits if fit["start"] == start)
    inverse = np.mean(1 / np.sum(after**2, axis=1))  # what a weight of 1 stands for
    assert fit["predicted"] == pytest.approx(np.sqrt(gcv(found.l2) * inverse), rel=1e-3)
    assert fit["predicted"] == min(fit["predicted"] for fit in found.fits)


@pytest.mark.usefixtures("on_cpu")  # products of the network in another order
def test_the_shortened_model_computes_what_was_fitted(tiny, texts):
    model, tokenizer = load(tiny)
    shortened = surgery.replace_layers((model, tokenizer), texts, 2, start=2)
    tokens = mx.array([tokenizer.encode("the cat and the old dog in a city")])
    h, a = states(model, tokens)
    with shortened.applied():
        short, _ = states(model, tokens)
    expected = h[1] + a[1] @ change_of(shortened).T
    np.testing.assert_allclose(short[-1], expected, atol=1e-5 * np.abs(expected).max())
    after, _ = states(model, tokens)  # the model is as it was
    assert len(after) == 4 and np.array_equal(after[-1], h[-1])


def test_better_than_dropping_the_layers(found):
    assert len(found.fits) == 2
    for fit in found.fits:
        assert fit["fitted"] < fit["predicted"] < fit["dropped"]
    dropped, least = found.with_l2(math.inf), found.with_l2(0.0)
    assert all(fit["fitted"] == fit["dropped"] for fit in dropped.fits)
    assert not change_of(dropped).any()
    for a, b in zip(least.fits, found.fits, strict=True):
        assert a["fitted"] <= b["fitted"] * (1 + 1e-9) and b["predicted"] <= a["predicted"] * (1 + 1e-6)


def test_fewer_tokens_than_dimensions(tiny, tmp_path):
    (tmp_path / "few.jsonl").write_text('{"text": "the cat and a dog"}\n')
    shortened = surgery.replace_layers(str(tiny), tmp_path / "few.jsonl", 1)
    assert np.isfinite(change_of(shortened)).all() and 0 < shortened.l2 < math.inf
    least = shortened.with_l2(0.0)  # interpolates: GCV has no degrees of freedom left
    assert np.isfinite(change_of(least)).all() and all(fit["fitted"] < 1e-3 for fit in least.fits)


@pytest.mark.parametrize("l2", [None, math.inf])
def test_mlx_lm_loads_the_folder(tiny, texts, tmp_path, l2):
    shortened = surgery.replace_layers(str(tiny), texts, 2, l2=l2)
    shortened.save(tmp_path / "short")
    assert json.loads((tmp_path / "short" / "config.json").read_text())["num_hidden_layers"] == 2
    model, tokenizer = load(tmp_path / "short")
    assert len(model.layers) == 2
    tokens = mx.array([tokenizer.encode("the cat and the old dog")])
    with shortened.applied() as other:
        assert mx.array_equal(model(tokens), other(tokens))


def test_a_quantized_model(packed, texts, tmp_path):
    shortened = surgery.replace_layers(str(packed), texts, 2)
    shortened.save(tmp_path / "short")
    model, tokenizer = load(tmp_path / "short")
    kinds = [type(layer.mlp.down_proj) for layer in model.layers]
    assert kinds.count(nn.Linear) == 1 and isinstance(model.layers[0].mlp.up_proj, nn.QuantizedLinear)
    assert surgery.perplexity((model, tokenizer), texts / "valid.jsonl") > 1


# Decoder layers that do not simply add what their last linear layer returns: a norm or a sum of experts comes after.
OTHERS = {"gemma2", "gemma3", "qwen3_moe", "mixtral", "olmoe", "gpt_oss"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_folded_exactly_or_refused(family, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "word{i} and {i * i} more"}}\n' for i in range(5)))
    model = build(family)
    if family in OTHERS:
        with pytest.raises(ValueError, match="must add the output of its last linear layer to the state"):
            surgery.replace_layers((model, Words()), tmp_path / "a.jsonl", 1)
        return
    shortened = surgery.replace_layers((model, Words()), tmp_path / "a.jsonl", 1, start=1)
    assert shortened.fits[0]["fitted"] < shortened.fits[0]["dropped"]


def test_biases_are_refitted(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "word{i} and {i * i} more"}}\n' for i in range(5)))
    model = build("gpt2")
    shortened = surgery.replace_layers((model, Words()), tmp_path / "a.jsonl", 1, start=1, l2=1e9)
    # With a penalty that leaves no weight the bias is the mean of what the layer did.
    assert shortened.fits[0]["fitted"] < shortened.fits[0]["dropped"]
    assert np.abs(shortened._best.shift).max() > 0 and np.abs(change_of(shortened)).max() < 1e-6


def test_configurations():
    config = {"num_hidden_layers": 3, "n_layer": 7, "layer_types": ["a", "b", "c"], "text_config": {"n_layers": 3}}
    assert shorter_config(config, 3, [2]) == {
        "num_hidden_layers": 2,
        "n_layer": 7,
        "layer_types": ["a", "c"],
        "text_config": {"n_layers": 2},
    }
    names = [f"model.layers.{i}" for i in range(12)]
    settings = {"bits": 4, "lm_head": 1, **{f"model.layers.{i}.mlp": i for i in (1, 4, 11)}}
    expected = {"bits": 4, "lm_head": 1, "model.layers.1.mlp": 1, "model.layers.9.mlp": 11}
    assert renumbered(settings, names, [5, 6]) == expected


def test_a_model_whose_layers_depend_on_their_numbers_is_not_written(tiny, texts, tmp_path, monkeypatch):
    from mlx_lm.models import llama

    real = llama.LlamaModel.__init__

    def init(self, args):
        real(self, args)
        if args.num_hidden_layers == 3:
            self.norm.eps = 10.0

    monkeypatch.setattr(llama.LlamaModel, "__init__", init)
    shortened = surgery.replace_layers(str(tiny), texts, 1)
    with pytest.raises(ValueError, match="must be one that mlx-lm loads, but got one that computes something else"):
        shortened.save(tmp_path / "short")
    assert list((tmp_path / "short").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": 0}, "skip must be between 1 and 3, all decoder layers but one, but got 0"),
        ({"skip": 4}, "skip must be between 1 and 3"),
        ({"skip": 2, "start": 3}, "start must be between 1 and 2, but got 3"),
        ({"skip": 2, "l2": -1.0}, "l2 must be 0 or larger, or None, but got -1.0"),
        ({"skip": 2, "batch_size": 0}, "batch_size must be 1 or more, but got 0"),
    ],
)
def test_refused(loaded, texts, options, message):
    with pytest.raises(ValueError, match=message):
        surgery.replace_layers(loaded, texts, **options)


def test_a_loaded_model_has_no_folder(loaded, texts, tmp_path):
    with pytest.raises(ValueError, match="must have been given as a folder or a repository, but got a loaded one"):
        surgery.replace_layers(loaded, texts, 2, start=1).save(tmp_path / "short")
