"""Low-rank corrections: the best there are, finite for any text, and loaded by mlx-lm as they are."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from pinvnn import surgery
from pinvnn.surgery._low_rank import correction
from tests.support.topics import rows, write_rows

NORMS = ("activations", "diagonal", "plain")


def load(folder, **options):
    from mlx_lm import load

    return load(str(folder), **options)[:2]


def problem(o, n, tokens, seed=0, spread=3.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, n)) @ rng.normal(size=(n, n)) * np.exp(spread * rng.normal(size=n))
    x = x + 5 * rng.normal(size=n)
    w = rng.normal(size=(o, n))
    return w, w + 0.1 * rng.normal(size=(o, n)), x


SHAPES = [(12, 20, 200), (20, 12, 200), (12, 20, 8), (20, 12, 5), (1, 6, 30), (6, 1, 30), (12, 12, 1)]


@pytest.mark.parametrize(("o", "n", "tokens"), SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 30])
def test_the_error_is_the_one_of_eckart_and_young(o, n, tokens, rank):
    w, q, x = problem(o, n, tokens)
    c = correction(w, q, x.T @ x / tokens, rank, "activations")
    singular = np.linalg.svd((w - q) @ x.T / np.sqrt(tokens), compute_uv=False)
    left = np.sum(((w - q - c.b @ c.a) @ x.T) ** 2) / tokens
    np.testing.assert_allclose(left, np.sum(singular[rank:] ** 2), rtol=1e-6, atol=1e-10 * c.error)
    np.testing.assert_allclose(c.error - c.removed.sum(), left, rtol=1e-6, atol=1e-10 * c.error)
    np.testing.assert_allclose([c.error, c.size], [np.sum((y @ x.T) ** 2) / tokens for y in (w - q, w)], rtol=1e-9)
    # Orthonormal directions of E: never larger than E itself, whatever the text does not reach.
    assert np.linalg.norm(c.b @ c.a, 2) <= np.linalg.norm(w - q, 2) * (1 + 1e-9)
    assert np.linalg.norm(w - q - c.b @ c.a) <= np.linalg.norm(w - q)


@pytest.mark.parametrize("units", [1e-6, 1.0, 1e6])
def test_units_of_the_activations_do_not_matter(units):
    w, q, x = problem(12, 20, 8)
    one, other = (correction(w, q, (s * x).T @ (s * x), 6, "activations") for s in (1.0, units))
    np.testing.assert_allclose(one.b @ one.a, other.b @ other.a, atol=1e-8)


@pytest.mark.parametrize("norm", ["diagonal", "plain"])
def test_the_others_are_their_papers_formulas(norm):
    w, q, x = problem(12, 20, 200)
    second = x.T @ x / len(x)
    scale = np.sqrt(second.diagonal()) if norm == "diagonal" else np.ones(20)
    u, s, v = np.linalg.svd((w - q) * scale, full_matrices=False)
    c = correction(w, q, second, 4, norm)
    np.testing.assert_allclose(c.b @ c.a, (u[:, :4] * s[:4]) @ v[:4] / scale, atol=1e-9)
    left = np.sum(((w - q - c.b @ c.a) @ x.T) ** 2) / len(x)
    np.testing.assert_allclose(c.error - c.removed.sum(), left, rtol=1e-9)


def test_a_rank_beyond_the_text_takes_what_is_left_of_the_weight():
    w, q, x = problem(12, 20, 2)
    c = correction(w, q, x.T @ x / 2, 12, "activations")
    np.testing.assert_allclose(c.b @ c.a, w - q, atol=1e-10)
    c = correction(w, q, np.zeros((20, 20)), 4, "activations")
    u, s, v = np.linalg.svd(w - q)
    np.testing.assert_allclose(c.b @ c.a, (u[:, :4] * s[:4]) @ v[:4], atol=1e-10)


@pytest.fixture(scope="module")
def stats(tiny, texts):
    return surgery.collect(load(tiny), texts)


def test_in_every_layer_the_exact_correction_is_the_best(tiny, packed, stats):
    model, quantized = load(tiny)[0], load(packed)[0]
    errors = {norm: surgery.compensate(quantized, model, stats, rank=4, norm=norm).errors() for norm in NORMS}
    assert len(errors["plain"]) == 4 * 7
    for name, (before, after) in errors["activations"].items():
        assert after < before
        for norm in ("diagonal", "plain"):
            assert after <= errors[norm][name][1] * (1 + 1e-9) and errors[norm][name][0] == before


def test_ranks_are_nested(tiny, packed, stats):
    model, quantized = load(tiny)[0], load(packed)[0]
    adapter = surgery.compensate(quantized, model, stats, rank=8)
    small, direct = adapter.truncated(3).errors(), surgery.compensate(quantized, model, stats, rank=3).errors()
    for name in small:
        np.testing.assert_allclose(small[name], direct[name], rtol=1e-9)
    assert all(before == after for before, after in adapter.truncated(0).errors().values())
    with pytest.raises(ValueError, match="rank must be between 0 and 8, but got 9"):
        adapter.truncated(9)


@pytest.mark.usefixtures("on_cpu")  # products of the network in another order
def test_mlx_lm_loads_the_adapter(tiny, packed, texts, stats, tmp_path):
    tokens = mx.array([[3, 9, 5, 12, 7, 4]])
    original, (plain, _) = load(tiny)[0](tokens), load(packed)
    before = mx.linalg.norm(plain(tokens) - original, stream=mx.cpu)
    adapter = surgery.compensate(plain, load(tiny)[0], stats, rank=40)  # above the size of the key projections
    adapter.save(tmp_path / "adapter")
    repaired = load(packed, adapter_path=str(tmp_path / "adapter"))[0]
    dense = adapter.apply(load(packed)[0])
    assert mx.allclose(repaired(tokens), dense(tokens), atol=1e-4)
    # All ranks together: only the embedding is in 2 bits still.
    embedding = load(tiny)[0]
    embedding.model.embed_tokens = plain.model.embed_tokens
    assert mx.allclose(repaired(tokens), embedding(tokens), atol=1e-3)
    assert mx.linalg.norm(repaired(tokens) - original, stream=mx.cpu) < before
    assert surgery.perplexity((repaired, load(packed)[1]), texts / "valid.jsonl") > 1


def test_fewer_tokens_than_dimensions_and_float64(tiny, packed, tmp_path):
    # 10 tokens for 32 and 64 dimensions; the same model in float32 and float64.
    data = write_rows(tmp_path / "few.jsonl", [{"text": "a small cat and"}, {"text": "the old city of new bread"}])
    quantized, found = load(packed)[0], {}
    for dtype in (mx.float32, mx.float64):
        model, tokenizer = load(tiny)
        with mx.stream(mx.cpu):
            model.update(tree_map(lambda p, dtype=dtype: p.astype(dtype), model.parameters()))
            stats = surgery.collect((model, tokenizer), data)
        assert stats.tokens == 10
        found[dtype] = surgery.compensate(quantized, model, stats, rank=4)
    for name, (before, after) in found[mx.float32].errors().items():
        np.testing.assert_allclose((before, after), found[mx.float64].errors()[name], rtol=1e-3)
        products = [np.array(a @ b) for a, b in (found[dtype].factors(name) for dtype in found)]
        np.testing.assert_allclose(products[0], products[1], atol=1e-3 * np.abs(products[1]).max())


def test_only_quantized_layers_with_statistics_are_repaired(tiny, texts, stats):
    model, mixed = load(tiny)[0], load(tiny)[0]
    nn.quantize(mixed, 32, 2, class_predicate=lambda name, module: "down_proj" in name)
    assert surgery.compensate(mixed, model, stats, 2).names == [f"model.layers.{i}.mlp.down_proj" for i in range(4)]
    some = surgery.collect(load(tiny), texts, layers=[1])
    with pytest.raises(ValueError, match="there must be statistics of model.layers.1.mlp.down_proj, but got none"):
        surgery.compensate(mixed, model, some, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be a whole number, 1 or more, but got 0"),
        ({"rank": 1.5}, "rank must be a whole number"),
        ({"norm": "exact"}, "norm must be one of .*but got 'exact'"),
    ],
)
def test_refused(tiny, packed, stats, options, message):
    with pytest.raises(ValueError, match=message):
        surgery.compensate(load(packed)[0], load(tiny)[0], stats, **options)


def test_other_models_are_refused(tiny, packed, stats, tmp_path):
    from tests.support.families import build

    model = load(tiny)[0]
    with pytest.raises(ValueError, match="must have quantized linear layers, but got none"):
        surgery.compensate(model, model, stats)
    with pytest.raises(ValueError, match="the original must have the linear layer"):
        surgery.compensate(load(packed)[0], build("gpt2"), stats)


def test_an_adapter_of_rank_0_is_not_written(tiny, packed, stats, tmp_path):
    adapter = surgery.compensate(load(packed)[0], load(tiny)[0], stats, rank=1).truncated(0)
    with pytest.raises(ValueError, match="the rank must be 1 or more, but got 0"):
        adapter.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_perplexity_is_that_of_each_text_alone(loaded, tmp_path):
    data = write_rows(tmp_path / "t.jsonl", rows(20, seed=3))
    model, tokenizer = loaded
    losses = []
    for row in rows(20, seed=3):
        tokens = mx.array([tokenizer.encode(row["text"])])
        losses += np.array(nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])).ravel().tolist()
    assert surgery.perplexity(loaded, data, batch_size=7) == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    with pytest.raises(ValueError, match="a text must have two or more tokens, but got none"):
        surgery.perplexity(loaded, write_rows(tmp_path / "one.jsonl", [{"text": "cat"}]))
