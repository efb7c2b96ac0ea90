"""Scores of readouts against plain NumPy."""

import mlx.core as mx
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from pinvnn.heads import Head, atlas, extract, report
from pinvnn.heads._report import table
from pinvnn.heads._score import BINS, Tally
from tests.support.topics import rows as texts_of


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_r_squared_of_numbers_whose_squares_float32_cannot_hold(size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4)).astype(np.float32)
    w = rng.normal(size=(1, 4)).astype(np.float32)
    y = ((x @ w.T + rng.normal(size=(30, 1))) * size).astype(np.float32)
    weight = mx.array((w * size).astype(np.float32))
    tally = Tally([weight[None]], [mx.zeros((1, 1))], classification=False)
    for rows in (slice(0, 12), slice(12, 30)):
        tally.add([mx.array(x[rows])], mx.array(y[rows]))
    found = tally.scores(mx.distributed.init()).score[0][0]
    y64, predicted = y.astype(np.float64), x.astype(np.float64) @ np.array(weight, dtype=np.float64).T
    assert found == pytest.approx(1 - np.sum((y64 - predicted) ** 2) / np.sum((y64 - y64.mean()) ** 2), abs=1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_scores_of_a_half_precision_model_are_float32(tiny, topics, dtype):
    from mlx_lm import load

    model, tokenizer = load(str(tiny))[:2]
    model.set_dtype(dtype)
    result = atlas((model, tokenizer), topics, layers=[1], l2=[1.0])
    head: Head = result.head()
    tokens, lengths = head.tokenize(["the cat", "a bread with soup"])
    assert head.features(tokens, lengths).dtype == mx.float32
    assert head.scores(tokens, lengths).dtype == mx.float32
    assert result.weights[0].dtype == result.biases[0].dtype == mx.float32


def calibration_error(probabilities, labels):
    """By scikit-learn's curve: mean confidence and accuracy of the bins that hold a text."""
    right, confidence = np.argmax(probabilities, axis=1) == labels, np.max(probabilities, axis=1)
    accuracy, mean = calibration_curve(right, confidence, n_bins=BINS)
    counts = np.histogram(confidence, np.linspace(0, 1, BINS + 1))[0]
    return np.sum(np.abs(accuracy - mean) * counts[counts > 0]) / len(labels)


def smoothed_loss(labels, logits):
    """Cross-entropy for the targets of Platt: 1 - 1 / (n + 2) for the own class of a row, of which there are n."""
    rest = 1 / (np.bincount(labels, minlength=logits.shape[1])[labels] + 2)
    targets = np.repeat(rest[:, None] / (logits.shape[1] - 1), logits.shape[1], axis=1)
    targets[np.arange(len(labels)), labels] = 1 - rest
    return -np.mean(np.sum(targets * log_softmax(logits, axis=1), axis=1))


@pytest.fixture(scope="module")
def classified(tiny, topics):
    return atlas(str(tiny), topics, l2=[0.1, 10.0, 1e6], pooling="mean")


def held(loaded, result, split):
    seed = {"valid": 1, "test": 2}[split]
    found = texts_of(60, seed)
    classes = list(result.dataset.classes)
    features = extract(loaded, [row["text"] for row in found], pooling="mean")
    return [np.array(x, np.float64) for x in features], np.array([classes.index(row["label"]) for row in found])


def scores_of(result, layer, column, x):
    return x @ np.array(result.weights[layer][column], np.float64).T + np.array(result.biases[layer][column])


def test_log_loss_and_calibration_error_are_those_of_scikit_learn(classified, loaded):
    result = classified
    valid, labels = held(loaded, result, "valid")
    for layer in range(5):
        for column in range(3):
            scores, scale = scores_of(result, layer, column, valid[layer]), result.scale[layer][column]
            p = softmax(scale * scores, axis=1)
            assert result.valid_log_loss[layer][column] == pytest.approx(log_loss(labels, p), rel=1e-3)
            error = result.valid_calibration_error[layer][column]
            assert error == pytest.approx(calibration_error(p, labels), abs=1e-3)

            best = minimize_scalar(lambda t, s=scores: smoothed_loss(labels, np.exp(t) * s), (-1, 1))
            # Scales are tried in steps of a factor 1.4, and where the penalty leaves little but the bias of up to 2.5.
            assert smoothed_loss(labels, scale * scores) < (1.1 if column == 2 else 1.02) * best.fun
    test, labels = held(loaded, result, "test")
    for layer in range(5):
        column = result.chosen[layer]
        p = softmax(result.scale[layer][column] * scores_of(result, layer, column, test[layer]), axis=1)
        assert result.test_log_loss[layer] == pytest.approx(log_loss(labels, p), rel=1e-3)
        assert result.test_calibration_error[layer] == pytest.approx(calibration_error(p, labels), abs=1e-3)


@pytest.mark.usefixtures("on_cpu")  # a head with stored weights is a linear layer
def test_a_head_has_the_probabilities_that_its_report_scores(classified, loaded, topics, tmp_path):
    found = texts_of(60, 2)
    head = classified.head()
    tokens, lengths = head.tokenize([row["text"] for row in found])
    labels = np.array([classified.dataset.classes.index(row["label"]) for row in found])
    p = np.array(head.probabilities(tokens, lengths), np.float64)
    assert head.config.scores["test_log_loss"] == pytest.approx(log_loss(labels, p / p.sum(1, keepdims=True)), rel=1e-3)
    head.save(tmp_path)
    again = Head.load(tmp_path, loaded)
    assert mx.allclose(again.probabilities(tokens, lengths), head.probabilities(tokens, lengths), atol=1e-6)


def test_the_report_and_the_table_have_both_scores(classified):
    layers = report(classified)["layers"]
    assert [len(layer["valid_log_loss"]) for layer in layers] == [3] * 5
    assert all(0 <= layer["test_calibration_error"] <= 1 for layer in layers)
    head, *lines = table(classified).splitlines()
    names = "layer l2 valid accuracy test accuracy valid log-loss valid ECE test log-loss test ECE"
    assert head.split() == names.split()
    assert float(lines[0].split()[6]) == pytest.approx(classified.test_log_loss[0], abs=1e-4)


def test_a_regression_and_a_fit_without_validation_texts_have_no_probabilities(tiny, topics, lengths, tmp_path):
    from pinvnn.heads import fit_head

    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_bytes((topics / f"{name}.jsonl").read_bytes())
    for data in (tmp_path, lengths):
        head = fit_head(str(tiny), data, 1, l2=[1.0])
        assert head.config.scale is None and not [name for name in head.config.scores if "loss" in name]
        with pytest.raises(ValueError, match="a head with probabilities must be a classification fitted with valid"):
            head.probabilities(*head.tokenize(["the cat"]))
