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
from pinvnn.nn._calibration import calibrate
from pinvnn.testing import gradcheck

N, C = 4, 3


@pytest.fixture(scope="module")
def iris():
    x, labels = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return mx.array(np.asarray(x)[order], mx.float32), mx.array(np.asarray(labels)[order], mx.int32)


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
    assert repr(fitted) == (
        "RidgeClassifier(input_dims=4, num_classes=3, l2=1.0, bias=True, learn_l2=False, class_weights=None)"
    )


def test_labels_that_are_no_class_give_nan(iris):
    x, labels = iris[0][:10], mx.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 3])
    assert np.isnan(np.array(RidgeClassifier(N, C).adapt(x, labels, x))).all()


X, LABELS = mx.zeros((5, N)), mx.zeros((5,), mx.int32)
ERRORS = {
    "floats": (lambda: RidgeClassifier(N, C).adapt(X, X[:, 0], X), TypeError, r"adapt\] labels must be integers, but"),
    "range": (lambda: RidgeClassifier(N, C).fit(X, LABELS + 3), ValueError, "labels must be from 0 to 2, but got 3"),
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
