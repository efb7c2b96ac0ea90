"""Hidden states from every family of mlx-lm, and pooling that no padding can reach."""

import gc

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from pinvnn._lm.extract import check_pooling, context_length, pad, tokens_needed
from pinvnn.heads import extract, hidden_states, pool
from tests.support.families import DIMS, FAMILIES, LAYERS, VOCABULARY, build

POOLINGS = ["last", "mean", 1, -2]
# Long enough together that mixtures of experts sort the tokens by expert.
ROWS = [[(7 * i + 3 * j) % VOCABULARY for j in range(n)] for i, n in enumerate([19, 2, 7, 12, 3, 18])]


def features(model, rows, pooling, padding=0):
    """(states, rows, dims)"""
    tokens, lengths = pad(rows, padding)
    return mx.stack([pool(state, lengths, pooling) for state in hidden_states(model, tokens)])


def one_by_one(model, rows, pooling):
    return mx.concatenate([features(model, [row], pooling) for row in rows], axis=1)


def cosine(a, b):
    sizes = [mx.linalg.norm(x, axis=-1, stream=mx.cpu) for x in (a, b)]
    return mx.sum(a * b, axis=-1) / sizes[0] / sizes[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_all_its_states_and_no_padding_leaks(family):
    model = build(family)
    states = hidden_states(model, pad(ROWS)[0])
    assert [state.shape for state in states] == [(len(ROWS), 19, DIMS)] * (LAYERS + 2)
    for pooling in POOLINGS:
        found = features(model, ROWS, pooling)
        assert mx.array_equal(found, features(model, ROWS, pooling, padding=5))
        assert mx.abs(found - one_by_one(model, ROWS, pooling)).max() < 1e-4
        # The texts differ, so features that ignore them would not pass.
        assert mx.abs(found[:, 0] - found[:, 1]).max() > 1e-2


# MLX multiplies no experts in half precision on a CPU.
KINDS = {
    "float16": ["llama", "qwen3", "gemma"],
    "bfloat16": ["llama", "phi", "gemma"],
    "quantized": ["llama", "gemma", "mixtral"],
}


@pytest.mark.parametrize(("kind", "family"), [(kind, family) for kind in KINDS for family in KINDS[kind]])
def test_half_and_quantized_models_do_not_depend_on_the_batch(kind, family):
    model = build(family)
    if kind == "quantized":
        nn.quantize(model, group_size=32, bits=8)
    else:
        model.update(tree_map(lambda p: p.astype(getattr(mx, kind)), model.parameters()))
    for pooling in POOLINGS:
        found = features(model, ROWS, pooling)
        assert found.dtype == mx.float32
        assert cosine(found, one_by_one(model, ROWS, pooling)).min() >= 0.999


def test_the_states_are_those_that_the_model_computes():
    model = build("llama")
    tokens = pad(ROWS)[0]
    h = model.model.embed_tokens(tokens)
    expected = [h]
    for layer in model.model.layers:
        h = layer(h, "causal", None)
        expected.append(h)
    expected.append(model.model.norm(h))
    for state, value in zip(hidden_states(model, tokens), expected, strict=True):
        assert mx.allclose(state, value, atol=1e-6)
    assert mx.allclose(model.lm_head(expected[-1]), model(tokens), atol=1e-5)


def test_the_final_norm_is_found_beside_the_layers():
    # Here the module around the layers returns logits; the norm's output is inside it.
    model = build("gpt_neox")
    states = hidden_states(model, pad(ROWS)[0])
    assert mx.allclose(states[-1], model.model.final_layer_norm(states[-2]), atol=1e-6)


def test_the_model_is_as_before_also_after_an_error():
    model = build("llama")
    before = [type(module) for module in model.modules()]
    hidden_states(model, mx.array([[1, 2]]))
    assert [type(module) for module in model.modules()] == before

    layer = model.layers[1]
    layer.mlp = None
    before = [type(module) for module in model.modules()]
    with pytest.raises(TypeError):
        hidden_states(model, mx.array([[1, 2]]))
    assert [type(module) for module in model.modules()] == before


def test_nothing_is_left_in_memory():
    model, tokens = build("llama"), mx.zeros((4, 20), dtype=mx.int32)
    used = []
    gc.disable()  # States that only the collector of cycles could free would pile up between its runs.
    try:
        for _ in range(3):
            mx.eval(hidden_states(model, tokens))
            used.append(mx.get_active_memory())
    finally:
        gc.enable()
    assert used[1] == used[2]


def test_states_above_the_last_one_read_are_not_computed():
    model = build("llama")

    class Failing(nn.Module):
        def __call__(self, x):
            # Built like any other graph, but reading it raises: an SVD of NaN does not converge.
            return x + mx.linalg.svd(mx.full((2, 2), float("nan")), compute_uv=False, stream=mx.cpu).sum()

    model.layers[2].mlp = Failing()
    states = hidden_states(model, mx.array([[1, 2, 3]]))
    mx.eval(states[:3])
    with pytest.raises(RuntimeError):
        mx.eval(states[3])


def test_states_are_differentiable_in_the_parameters():
    model = build("llama")
    tokens, lengths = pad(ROWS)
    weight = model.layers[0].mlp.down_proj.weight

    def loss(w):
        model.layers[0].mlp.down_proj.weight = w
        return (pool(hidden_states(model, tokens)[2], lengths, "mean") ** 2).sum()

    gradient = mx.grad(loss)(weight)
    direction = mx.random.normal(weight.shape, key=mx.random.key(0))
    step = 1e-2
    slope = (loss(weight + step * direction) - loss(weight - step * direction)) / (2 * step)
    assert abs(float(slope / (gradient * direction).sum()) - 1) < 1e-2


def test_padding_of_nan_does_not_reach_the_mean():
    state = mx.array([[[1.0], [3.0], [float("nan")]]])
    assert pool(state, mx.array([2]), "mean").item() == 2.0


class NoDecoder(nn.Module):
    layers = []


class Streams(nn.Module):
    """Layers that pass several states a token."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Identity())

    @property
    def layers(self):
        return self.inner.layers

    def __call__(self, tokens):
        return self.inner(mx.zeros((*tokens.shape, 2, 4)))


@pytest.mark.parametrize(
    ("model", "message"),
    [(NoDecoder(), r"decoder layers in `model.layers`"), (Streams(), r"must pass a state of shape .*\(1, 2, 2, 4\)")],
)
def test_other_models_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        hidden_states(model, mx.array([[1, 2]]))


@pytest.mark.parametrize(
    ("given", "pooling", "needed"), [("last", "last", 1), ("mean", "mean", 1), ("3", 3, 4), (-2, -2, 2), ("-1", -1, 1)]
)
def test_poolings(given, pooling, needed):
    assert check_pooling(given) == pooling
    assert tokens_needed(pooling) == needed


def test_a_pooling_of_another_name_is_refused():
    with pytest.raises(ValueError, match=r'pooling must be "last", "mean" or a token position, but got \'max\''):
        check_pooling("max")


def test_the_context_is_read_from_the_configuration():
    assert context_length(build("llama")) == 128
    assert context_length(build("gpt2")) == 128
    assert context_length(build("gemma")) is None


def test_extract_keeps_the_order_of_the_texts(loaded):
    texts = ["the cat", "a small old dog and the bird", "bread", "the very large mountain"]
    together = extract(loaded, texts, batch_size=3)
    assert [part.shape for part in together] == [(4, 32)] * 5
    for i, text in enumerate(texts):
        for part, single in zip(together, extract(loaded, [text]), strict=True):
            assert np.allclose(part[i], single[0], atol=1e-5)
    (last,) = extract(loaded, texts, layers=[-1])
    assert mx.array_equal(last, together[-1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"texts": "one"}, TypeError, "must be a list of strings, but got one string"),
        ({"texts": ["cat", " "]}, ValueError, "must not be empty and have 1 or more tokens, but got ' ' as number 1"),
        ({"texts": ["cat"], "pooling": 2}, ValueError, "have 3 or more tokens, but got 'cat' as number 0, with 1"),
        ({"texts": ["cat"], "layers": [5]}, ValueError, "layer must be between -5 and 4, but got 5"),
        ({"texts": ["cat"], "max_length": 0}, ValueError, "longest text must have 1 token or more, but got 0"),
    ],
)
def test_extract_refuses(loaded, arguments, error, message):
    with pytest.raises(error, match=message):
        extract(loaded, **arguments)
