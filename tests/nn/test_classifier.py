"""RidgeClassifier: labels, calibration, episodes."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import scipy.optimize
from mlx.utils import tree_flatten
from scipy.special import log_softmax
from sklearn.datasets import load_iris
from sklearn.linear_model import RidgeClassifier as Rival

from pinvnn.nn import RidgeClassifier
from pinvnn.nn._calibration import calibrate, calibrated
from pinvnn.testing import gradcheck

N, C = 4, 3


@pytest.fixture(scope="module")
def iris():
    x, labels = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return mx.array(np.asarray(x)[order], mx.float32), mx.array(np.asarray(labels)[order], mx.int32)


@pytest.mark.usefixtures("on_cpu")  # products with stored weights are those of any linear layer
@pytest.mark.parametrize("class_weights", [None, "balanced", [1.0, 5.0, 2.0]], ids=str)
def test_it_decides_as_scikit_learns(iris, class_weights):
    x, labels = iris[0][:90], iris[1][:90]
    kind = class_weights if class_weights is None or isinstance(class_weights, str) else dict(enumerate(class_weights))
    rival = Rival(alpha=2.0, class_weight=kind).fit(np.array(x), np.array(labels))
    ours = RidgeClassifier(N, C, l2=2.0, class_weights=class_weights).fit(x, labels)
    scores = np.array(x @ ours.weight.T + ours.bias)
    np.testing.assert_allclose(scores, rival.decision_function(np.array(x)), atol=1e-4)


def test_probabilities_of_rows_that_were_not_seen_are_calibrated(iris):
    x, labels = iris
    fitted = RidgeClassifier(N, C).fit(x[:100], labels[:100])
    p = np.array(fitted.predict_proba(x[100:]))
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    right = p[np.arange(50), np.array(labels[100:])]
    raw = RidgeClassifier(N, C)
    raw.weight, raw.bias = fitted.weight, fitted.bias
    uncalibrated = np.array(raw.predict_proba(x[100:]))[np.arange(50), np.array(labels[100:])]
    assert -np.log(right).mean() < 0.75 * -np.log(uncalibrated).mean()
    np.testing.assert_array_equal(np.array(fitted.predict(x)), np.array(mx.argmax(fitted(x), axis=-1)))


@pytest.mark.parametrize("separable", [False, True])
def test_the_calibration_is_the_minimum(separable):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, C, size=60)
    scores = np.eye(C)[labels] + (0.1 if separable else 0.7) * rng.normal(size=(60, C))
    weights = rng.uniform(0.5, 2, size=60)
    scale, shift = calibrate(scores, labels, weights)
    counts = np.array([weights[labels == c].sum() for c in range(C)])
    doubt = (1 / (counts + 2))[labels, None]
    targets = np.where(np.eye(C)[labels] > 0, 1 - doubt, doubt / (C - 1))

    def loss(v):
        return -np.sum(weights[:, None] * targets * log_softmax(v[0] * scores + v[1:], axis=1))

    best = scipy.optimize.minimize(loss, np.ones(C + 1), method="BFGS", options={"gtol": 1e-8})
    assert loss([scale, *shift]) <= best.fun * (1 + 1e-9)
    assert scale == pytest.approx(best.x[0], rel=1e-4) and abs(shift.sum()) < 1e-9


def episode(way, shot, dims, seed, noise=0.5, extra=0):
    """Support, labels, query and its labels; ``extra`` more rows of class 0."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(way, dims))
    labels, asked = np.append(np.repeat(np.arange(way), shot), np.zeros(extra, int)), np.repeat(np.arange(way), 10)
    x, query = (means[c] + noise * rng.normal(size=(len(c), dims)) for c in (labels, asked))
    return x, labels, query, asked


@pytest.mark.parametrize("dtype", [mx.float16, mx.float32, mx.float64], ids=str)
@pytest.mark.parametrize("l2", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize(("way", "shot", "extra"), [(2, 1, 0), (5, 1, 0), (20, 1, 0), (5, 2, 0), (3, 1, 30), (1, 3, 0)])
def test_few_shot_labels_are_those_of_the_scores(way, shot, extra, l2, dtype):
    x, labels, query, asked = episode(way, shot, 64, seed=way + shot, extra=extra)
    x, query = (np.array(mx.array(v, mx.float16).astype(mx.float32)) for v in (x, query))
    with mx.stream(mx.cpu):
        model = RidgeClassifier(64, way, l2=l2).fit(mx.array(x, dtype), mx.array(labels))
        got = np.array(model.predict(mx.array(query, dtype)))
    assert model.scale.item() > 0 and not mx.any(model.shift != 0).item()
    if way > 1:
        expected = Rival(alpha=l2).fit(x, labels).decision_function(query)
        expected = (expected > 0).astype(int) if way == 2 else expected.argmax(axis=1)
        assert np.mean(got == expected) >= 0.99  # a tie but for rounding aside


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("class_weights", [None, [1.0, 4.0, 2.0]], ids=str)
@pytest.mark.parametrize("l2", [1e-6, 1.0, 1e2, 1e4, 1e6])
def test_leave_one_out_accuracy_is_that_of_refits_which_are_calibrated_too(l2, class_weights, noise):
    x, labels, _, _ = episode(3, 8, 5, seed=3, noise=1.0, extra=4)
    labels = np.random.default_rng(0).permutation(labels) if noise else labels
    rows, targets = mx.array(x, mx.float32), mx.array(labels)
    model = RidgeClassifier(5, 3, l2=l2, class_weights=class_weights).fit(rows, targets)
    claimed = np.array(mx.argmax(model.loo_predictions(rows, targets), axis=-1))
    honest = []
    for i in range(len(labels)):
        kept = mx.array(np.delete(np.arange(len(labels)), i))
        refit = RidgeClassifier(5, 3, l2=l2, class_weights=class_weights).fit(rows[kept], targets[kept])
        honest.append(refit.predict(rows[i]).item())
    assert np.sum(claimed != np.array(honest)) <= 1


def test_the_penalty_that_leave_one_out_selects_is_a_good_one():
    # With a negative scale the largest penalty had a leave-one-out accuracy of 1 and was selected.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2080, 6))
    labels = (x[:, 0] + 0.8 * rng.normal(size=2080) > 0).astype(int)
    labels[:16] = 1 - labels[:16]
    rows, targets = mx.array(x[:80], mx.float32), mx.array(labels[:80])
    losses, right = [], []
    for l2 in (1.0, 50.0, 1e3, 1e5):
        model = RidgeClassifier(6, 2, l2=l2).fit(rows, targets)
        losses.append(model.loo_loss(rows, targets).item())
        right.append(np.mean(np.array(model.predict(mx.array(x[80:], mx.float32))) == labels[80:]))
    assert right[int(np.argmin(losses))] > max(right) - 0.02
    assert losses[-1] > 0.95 * np.log(2)  # nothing is left to learn from, and the loss says so


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([[-1.0, 0.0], [0.0, -1.0]], [0, 1]),  # against the row's own class
        ([[0.0, 0.0], [0.0, 0.0]], [0, 1]),
        ([[0.3], [0.1]], [0, 0]),
        (np.zeros((0, 3)), []),
    ],
)
def test_a_calibration_that_cannot_be_learned_leaves_the_scores(scores, labels):
    scores, labels = np.array(scores), np.array(labels, int)
    scale, shift = calibrated(scores, labels, np.ones(len(labels)))
    assert scale == 1 and not shift.any()


def test_shifts_are_learned_where_the_rows_show_that_they_are_needed():
    # The middle one of three classes in a row has the largest score nowhere ("masking"): only a shift can find it.
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 100)
    x = labels[:, None] + 0.15 * rng.normal(size=(300, 1))
    rows, targets = mx.array(x, mx.float32), mx.array(labels)
    model = RidgeClassifier(1, 3).fit(rows, targets)
    scores = np.array(rows @ model.weight.T + model.bias)
    assert np.mean(scores.argmax(axis=1) == labels) < 0.8
    assert np.mean(np.array(model.predict(rows)) == labels) > 0.95
    expected = calibrate(scores, labels, np.ones(300))
    assert model.scale.item() == pytest.approx(expected[0], rel=0.05)
    # The same rows with labels of noise: no shift.
    model.fit(rows, mx.array(rng.permutation(labels)))
    assert not mx.any(model.shift != 0).item() and model.scale.item() > 0


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_probabilities_do_not_depend_on_the_unit_of_the_features(unit):
    x, labels, query, _ = episode(3, 10, 5, seed=0, noise=1.0)
    with mx.stream(mx.cpu):
        x, query = mx.array(x, mx.float64), mx.array(query, mx.float64)
        expected = RidgeClassifier(5, 3, l2=2.0).fit(x, mx.array(labels)).predict_proba(query)
        got = RidgeClassifier(5, 3, l2=2.0 * unit**2).fit(unit * x, mx.array(labels)).predict_proba(unit * query)
    np.testing.assert_allclose(np.array(got), np.array(expected), rtol=1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_half_precision_rows_give_float32_logits_and_losses(dtype):
    x, labels, query, _ = episode(3, 10, 5, seed=0, noise=1.0)
    x, query = (mx.array(v, mx.float32).astype(dtype) for v in (x, query))
    labels = mx.array(labels)
    model = RidgeClassifier(5, 3, l2=0.1).fit(x, labels)
    wide = RidgeClassifier(5, 3, l2=0.1).fit(x.astype(mx.float32), labels)
    for name, arguments in [
        ("__call__", (query,)),
        ("predict_proba", (query,)),
        ("adapt", (x, labels, query)),
        ("loo_predictions", (x, labels)),
        ("loo_loss", (x, labels)),
        ("projected_loss", (x, labels)),
    ]:
        got = getattr(model, name)(*arguments)
        exact = [a.astype(mx.float32) if a.dtype == dtype else a for a in arguments]
        assert got.dtype == mx.float32, name
        np.testing.assert_allclose(np.array(got), np.array(getattr(wide, name)(*exact)), rtol=1e-5, err_msg=name)


def test_leave_one_out_logits_and_their_loss(iris):
    x, labels = (v[:40] for v in iris)
    weights = mx.array(np.random.default_rng(0).uniform(0.5, 2, size=40), mx.float32)
    model = RidgeClassifier(N, C, class_weights=[1.0, 2.0, 0.5])
    model.scale, model.shift = mx.array(3.0), mx.array([0.1, 0.0, -0.3])
    kept = mx.array([i for i in range(40) if i != 7])
    refit = model.adapt(x[kept], labels[kept], x[7:8], weights[kept])
    logits = model.loo_predictions(x, labels, weights)
    np.testing.assert_allclose(np.array(logits[7]), np.array(refit[0]), rtol=1e-3)
    of_rows = weights * mx.array([1.0, 2.0, 0.5])[labels]
    expected = mx.sum(of_rows * nn.losses.cross_entropy(logits, labels)) / mx.sum(of_rows)
    assert model.loo_loss(x, labels, weights).item() == pytest.approx(expected.item(), rel=1e-5)
    unweighted = RidgeClassifier(N, C)
    expected = nn.losses.cross_entropy(unweighted.loo_predictions(x, labels), labels, reduction="mean")
    assert unweighted.loo_loss(x, labels).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["weights", "class weights"])
def test_leave_one_out_of_few_weighted_rows_of_many_features(kind):
    x, labels, _, _ = episode(3, 2, 64, seed=1)
    weights = np.array([0.3, 2.0, 1.0, 4.0, 0.5, 1.5])
    class_weights, w = ([0.3, 2.0, 1.0], None) if kind == "class weights" else (None, weights)
    model = RidgeClassifier(64, 3, l2=1e-6, class_weights=class_weights)
    arrays = [mx.array(x, mx.float32), mx.array(labels)] + ([] if w is None else [mx.array(w, mx.float32)])
    got = np.array(model.loo_predictions(*arrays))
    for i in range(6):
        kept = mx.array(np.delete(np.arange(6), i))
        refit = model.adapt(arrays[0][kept], arrays[1][kept], arrays[0][i : i + 1], *(v[kept] for v in arrays[2:]))
        np.testing.assert_allclose(got[i], np.array(refit)[0], atol=1e-3)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_the_loss_of_float64_has_its_digits(size):
    rng = np.random.default_rng(0)
    x, labels = mx.array(rng.normal(size=(12, 3)), mx.float64), rng.integers(0, 3, size=12)
    model = RidgeClassifier(3, 3)
    model.scale = mx.array(size, mx.float64)
    logits = np.array(model.loo_predictions(x, mx.array(labels)))
    expected = -log_softmax(logits, axis=1)[np.arange(12), labels].mean()
    assert model.loo_loss(x, mx.array(labels)).item() == pytest.approx(expected, rel=1e-14)


def test_episodes_by_batch_dimensions_and_vmap():
    rng = np.random.default_rng(0)
    support, query = (mx.array(rng.normal(size=(5, m, 8)), mx.float32) for m in (6, 4))
    labels = mx.array(rng.permuted(np.tile([0, 1, 2, 0, 1, 2], (5, 1)), axis=1), mx.int32)
    model = RidgeClassifier(8, C)
    single = np.array(mx.stack([model.adapt(support[i], labels[i], query[i]) for i in range(5)]))
    for adapt in (model.adapt, mx.vmap(model.adapt)):
        np.testing.assert_allclose(np.array(adapt(support, labels, query)), single, rtol=1e-4, atol=1e-5)


def test_an_episode_trains_the_backbone_and_the_scale():
    rng = np.random.default_rng(0)
    support, query, labels = mx.array(rng.normal(size=(6, N))), mx.array(rng.normal(size=(3, N))), [0, 1, 2, 0, 1, 2]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = nn.Linear(N, 8), RidgeClassifier(8, C, learn_l2=True)

    def loss(model):
        logits = model.head.adapt(model.backbone(support), mx.array(labels), model.backbone(query))
        return nn.losses.cross_entropy(logits, mx.array([0, 1, 2]), reduction="mean")

    model = Model()
    _, grads = nn.value_and_grad(model, loss)(model)
    flat = dict(tree_flatten(grads))
    assert set(flat) == {"backbone.weight", "backbone.bias", "head.scale", "head.shift", "head.log_l2"}
    assert all(mx.any(g != 0).item() for name, g in flat.items() if name != "backbone.bias")
    assert "head.weight" in dict(tree_flatten(model.parameters()))


def test_derivatives():
    rng = np.random.default_rng(0)
    x = mx.array(rng.normal(size=(7, N)), mx.float64)
    w = mx.array(rng.uniform(0.5, 2, size=7), mx.float64)
    labels = mx.array([0, 1, 2, 0, 1, 2, 0])

    def fn(x, w, l2, scale, shift, balanced=True):
        model = RidgeClassifier(N, C, l2=l2, class_weights="balanced" if balanced else None)
        model.scale, model.shift = scale, shift
        return model.adapt(x, labels, x[:2], w), model.loo_loss(x, labels, w)

    scale, shift = mx.array(2.0, mx.float64), mx.array([0.1, 0.0, 0.3], mx.float64)
    gradcheck(fn, x, w, mx.array(0.5, mx.float64), scale, shift)
    gradcheck(lambda x, w: RidgeClassifier(N, C).projected_loss(x, labels, w), x, w)


@pytest.mark.usefixtures("on_cpu")
def test_files_linear_and_repr(iris, tmp_path):
    x, labels = iris
    fitted = RidgeClassifier(N, C).fit(x, labels)
    fitted.save_weights(str(tmp_path / "w.safetensors"))
    loaded = RidgeClassifier(N, C)
    loaded.load_weights(str(tmp_path / "w.safetensors"))
    np.testing.assert_array_equal(np.array(loaded(x)), np.array(fitted(x)))
    np.testing.assert_allclose(np.array(fitted.to_linear()(x)), np.array(fitted(x)), rtol=1e-4, atol=1e-4)
    without = RidgeClassifier(N, C, bias=False).fit(x, labels)
    np.testing.assert_allclose(np.array(without.to_linear()(x)), np.array(without(x)), rtol=1e-4, atol=1e-4)
    assert repr(loaded) == (
        "RidgeClassifier(input_dims=4, num_classes=3, l2=1.0, bias=True, learn_l2=False, class_weights=None)"
    )
    assert f"rank=4, cond={fitted.cond:.3g}, class_weights=None" in repr(fitted)


def test_labels_that_are_no_class_give_nan(iris):
    x, labels = iris[0][:10], mx.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 3])
    for class_weights in (None, "balanced", [1.0, 2.0, 3.0]):
        assert np.isnan(np.array(RidgeClassifier(N, C, class_weights=class_weights).adapt(x, labels, x))).all()


def test_sizes_may_be_integers_of_numpy(iris):
    assert RidgeClassifier(np.int64(N), np.array(iris[1]).max() + 1).weight.shape == (C, N)


def test_labels_may_be_truth_values():
    x = mx.array(np.random.default_rng(0).normal(size=(9, N)), mx.float32)
    labels = x[:, 0] > 0
    fitted = RidgeClassifier(N, 2).fit(x, labels)
    same = RidgeClassifier(N, 2).fit(x, labels.astype(mx.int32))
    np.testing.assert_array_equal(np.array(fitted(x)), np.array(same(x)))


def test_a_fit_inside_of_a_transformation_names_solve():
    message = r"RidgeClassifier.fit\] fit must be called outside of mx.compile and mx.vmap.*Use solve"
    with pytest.raises(ValueError, match=message):
        mx.compile(lambda x, y: RidgeClassifier(N, C).fit(x, y).weight)(X, LABELS)


X, LABELS = mx.zeros((5, N)), mx.zeros((5,), mx.int32)
ERRORS = {
    "floats": (lambda: RidgeClassifier(N, C).adapt(X, X[:, 0], X), TypeError, r"adapt\] labels must be integers, but"),
    "range": (lambda: RidgeClassifier(N, C).fit(X, LABELS + 3), ValueError, "labels must be from 0 to 2, but got 3"),
    "column": (lambda: RidgeClassifier(N, C).fit(X, LABELS[:, None]), ValueError, r"for each row.*got shape \(5, 1\)"),
    "one hot": (lambda: RidgeClassifier(N, C).solve(X, mx.zeros((5, C), mx.int32)), ValueError, "argmax of one-hot"),
    "classes": (lambda: RidgeClassifier(N, 0), ValueError, "num_classes must be a positive integer, but got 0"),
    "half a class": (lambda: RidgeClassifier(N, 2.5), ValueError, "num_classes must be a positive integer, but got 2"),
    "rows": (lambda: RidgeClassifier(N, C).solve(X, LABELS[:4]), ValueError, "same number of rows"),
    "class": (lambda: RidgeClassifier(N, C, class_weights=[1.0]), ValueError, r"must have the shape \(3,\), but got"),
    "negative": (lambda: RidgeClassifier(N, C, class_weights=[1.0, -1, 1]), ValueError, "must be non-negative"),
    "word": (lambda: RidgeClassifier(N, C, class_weights="even"), ValueError, 'array or "balanced", but got \'even\''),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, error, message = ERRORS[case]
    with pytest.raises(error, match=message) as caught:
        call()
    assert str(caught.value).startswith("[pinvnn.RidgeClassifier") and str(caught.value).endswith(".")
