"""A head is one module on the model: saved, loaded, checked against the model, and trained through."""

import json
import shutil

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

from pinvnn.heads import Head, fit_head
from tests.support.families import build
from tests.support.topics import FILLER, TOPICS, load_example, rows

TEXTS = ["the cat and a dog", "old cheese", "a river in that country", "bird"]


@pytest.fixture
def fresh(tiny):
    """The pair (model, tokenizer), to be changed."""
    from mlx_lm import load

    return load(str(tiny))[:2]


@pytest.fixture(scope="module")
def head(tiny, topics):
    return fit_head(str(tiny), topics, 2, l2=[1.0], pooling="mean")


@pytest.fixture
def folder(head, tmp_path):
    head.save(tmp_path / "head")
    return tmp_path / "head"


def test_a_head_comes_back_as_it_was(head, folder, tiny):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "head.safetensors"]
    again = Head.load(folder)
    assert again.config == head.config
    assert mx.array_equal(again.readout.weight, head.readout.weight)
    assert again(TEXTS) == head(TEXTS)
    assert again(iter(TEXTS), batch_size=1) == head(TEXTS)
    assert set(head(TEXTS)) <= set(TOPICS)
    config = json.loads((folder / "config.json").read_text())
    assert config["labels"] == sorted(TOPICS)
    assert (config["model"], config["layer"], config["pooling"], config["l2"]) == (str(tiny), 2, "mean", 1.0)
    assert set(config["versions"]) == {"pinvnn", "mlx", "mlx-lm"}
    assert "layer=2" in repr(again)


def test_a_text_alone_is_no_list(head):
    with pytest.raises(TypeError, match=r"must be a list of strings, but got one string. Pass \[text\]"):
        head("the cat")
    with pytest.raises(ValueError, match="must not be empty"):
        head(["the cat", ""])
    assert head([]) == []


def test_the_same_weights_in_half_precision_fit(folder, fresh):
    model, tokenizer = fresh
    model.update(tree_map(lambda p: p.astype(mx.bfloat16), model.parameters()))
    assert len(Head.load(folder, (model, tokenizer))(TEXTS)) == len(TEXTS)


def other_weights(fresh, tmp_path):
    return load_example("llm_model").write_tiny(tmp_path / "m", FILLER + sum(TOPICS.values(), []), seed=1)


def other_depth(fresh, tmp_path):
    return load_example("llm_model").write_tiny(tmp_path / "m", FILLER + sum(TOPICS.values(), []), layers=2)


def other_size(fresh, tmp_path):
    return load_example("llm_model").write_tiny(tmp_path / "m", FILLER + sum(TOPICS.values(), []), dims=64)


def other_type(fresh, tmp_path):
    return build("gemma"), fresh[1]


def other_tokenizer(fresh, tmp_path):
    class Reversed:
        def encode(self, text):
            return fresh[1].encode(text)[::-1] + [5]

    return fresh[0], Reversed()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (other_weights, r"must have the weights of .*, but got .*m with a cosine of -?0.\d+ to the states of layer 2"),
        (other_depth, "with states 5, but got .* with 4"),
        (other_size, "with dims 32, but got .* with 64"),
        (other_type, "with model_type llama, but got .* with gemma"),
        (other_tokenizer, "the tokenizer must be that of"),
        (lambda *_: "/no/such/model", "the model must be a folder or a repository, but got neither"),
    ],
)
def test_a_head_refuses_another_model(folder, fresh, tmp_path, other, message):
    with pytest.raises(ValueError, match=message) as caught:
        Head.load(folder, other(fresh, tmp_path))
    assert "\n" not in str(caught.value)


def test_weights_that_changed_a_little_are_warned_about(folder, fresh):
    model, tokenizer = fresh

    def noisy(p):
        return p + 0.7 * mx.abs(p).mean() * mx.random.normal(p.shape, key=mx.random.key(0))

    model.update(tree_map(noisy, model.parameters()))
    with pytest.warns(UserWarning, match=r"weights should be those of .* cosine of 0\.[5-9]"):
        Head.load(folder, (model, tokenizer))


def no_config(folder):
    (folder / "config.json").unlink()


def no_weights(folder):
    (folder / "head.safetensors").unlink()


def cut_weights(folder):
    (folder / "head.safetensors").write_bytes((folder / "head.safetensors").read_bytes()[:-8])


def no_json(folder):
    (folder / "config.json").write_text("{")


def old_config(folder):
    (folder / "config.json").write_text('{"labels": []}')


def fewer_labels(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "labels": ["a"]}))


def no_model(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "model": ""}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_config, "the folder must hold a head, but got: .*No such file"),
        (no_weights, "the folder must hold a head, but got: "),
        (cut_weights, "the folder must hold a head, but got: "),
        (no_json, "the folder must hold a head, but got: Expecting"),
        (old_config, "the folder must hold a head, but got: .*missing"),
        (fewer_labels, r"the weight must be \(1, 32\) as in config.json, but got \(3, 32\)"),
        (no_model, "the head names no model"),
        (shutil.rmtree, "the folder must hold a head"),
    ],
)
def test_a_damaged_head_is_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        Head.load(folder)


def batch(head, count=48):
    found = rows(count, 5)
    classes = sorted(TOPICS)
    index = mx.array([classes.index(row["label"]) for row in found])[:, None]
    return *head.tokenize([row["text"] for row in found]), mx.where(index == mx.arange(3), 1.0, -1.0)


def leave_one_out(readout, x, y):
    return readout.loo_loss(x, y)


def support_and_query(readout, x, y):
    return ((readout.adapt(x[::2], y[::2], x[1::2]) - y[1::2]) ** 2).mean()


@pytest.mark.parametrize("error", [leave_one_out, support_and_query])
def test_a_head_is_trained_through_lora(tiny, topics, tmp_path, error):
    from mlx_lm.tuner.utils import linear_to_lora_layers

    head = fit_head(str(tiny), topics, 3, l2=[5.0], pooling="mean")
    head.freeze()
    mx.random.seed(0)
    linear_to_lora_layers(head.model, 3, {"rank": 8, "scale": 10.0, "dropout": 0.0})
    tokens, lengths, y = batch(head)
    assert {name.split(".")[-1] for name, _ in tree_flatten(head.trainable_parameters())} == {"lora_a", "lora_b"}

    def loss(head):
        return error(head.readout, head.features(tokens, lengths), y)

    step = nn.value_and_grad(head, loss)
    optimizer = optim.Adam(1e-3)
    losses = []
    for _ in range(20):
        value, gradient = step(head)
        optimizer.update(head, gradient)
        mx.eval(head.parameters(), optimizer.state)
        losses.append(value.item())
    assert losses[-1] < 0.7 * losses[0]

    # The readout is fitted to the model as it now is, and saved with a probe of it.
    head.readout.fit(head.features(tokens, lengths), y)
    head.save(tmp_path / "trained")
    again = Head.load(tmp_path / "trained", (head.model, head.source.tokenizer))
    assert mx.allclose(again.scores(tokens, lengths), head.scores(tokens, lengths))


def test_the_gradient_of_the_scores_reaches_the_model(head):
    tokens, lengths, y = batch(head, 8)
    head.unfreeze()
    _, gradient = nn.value_and_grad(head, lambda h: ((h.scores(tokens, lengths) - y) ** 2).mean())(head)
    flat = dict(tree_flatten(gradient))
    assert not any(name.startswith("readout") for name in flat)
    assert mx.abs(flat["model.model.layers.1.mlp.down_proj.weight"]).max() > 0
    # Layers above the one that the head reads have no part in it.
    assert mx.abs(flat["model.model.layers.2.mlp.down_proj.weight"]).max() == 0
