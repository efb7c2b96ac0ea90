"""Balanced class weights: leave-one-out is a refit that balances the rows that stay anew."""

import mlx.core as mx
import numpy as np
import pytest

from pinvnn.nn import LogisticReadout, RidgeClassifier
from pinvnn.testing import gradcheck


def rows(counts, dims, weighted, seed=0):
    """Features, labels, and weights with a zero, or None."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    x = rng.normal(size=(len(labels), dims)) + np.eye(max(dims, len(counts)))[labels][:, :dims]
    weights = rng.choice([1.0, 2.0, 0.5], size=len(labels)) if weighted else None
    if weights is not None and min(counts) > 1:
        weights[0] = 0.0
    return x, labels, weights


def refits(model, x, labels, weights, unit=False):
    """Logits of fits without each row, or with its weight lowered by 1."""
    out = []
    for i in range(len(labels)):
        kept, w = np.arange(len(labels)), weights
        if unit:
            w = weights - np.minimum(weights, 1) * (kept == i)
        else:
            kept = np.delete(kept, i)
        w = None if w is None else mx.array(w[kept], mx.float64)
        args = mx.array(x[kept], mx.float64), mx.array(labels[kept]), mx.array(x[i : i + 1], mx.float64), w
        out.append(np.array(model.adapt(*args))[0])
    return np.array(out)


COUNTS = {"one each": (1, 1, 1), "one alone": (1, 4, 3), "few": (2, 5, 3), "many": (20, 9), "one class": (4,)}


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("removed", ["row", "unit"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dims", "l2", "bias"), [(3, 0.7, True), (3, 0.0, False), (12, 1e-3, True), (12, 0.0, True)])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_ridge_is_a_refit(counts, dims, l2, bias, weighted, removed):
    x, labels, weights = rows(counts, dims, weighted)
    model = RidgeClassifier(dims, len(counts), l2=l2, bias=bias, class_weights="balanced")
    arrays = mx.array(x, mx.float64), mx.array(labels), None if weights is None else mx.array(weights, mx.float64)
    expected = refits(model, x, labels, weights, weighted and removed == "unit")
    got = np.array(model.loo_predictions(*arrays, removed=removed))
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("on_cpu")
def test_wide_problems_of_penalties_by_class_and_by_feature():
    x, labels, _ = rows((2, 4), 9, False)
    for l2 in ([0.3, 2.0], np.linspace(0.1, 1, 9)[:, None]):
        model = RidgeClassifier(9, 2, l2=l2, class_weights="balanced")
        got = model.loo_predictions(mx.array(x, mx.float64), mx.array(labels))
        np.testing.assert_allclose(np.array(got), refits(model, x, labels, None), rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_is_a_refit(weighted, bias):
    x, labels, weights = rows((6, 12, 30), 2, weighted)
    model = LogisticReadout(2, 3, l2=30.0, bias=bias, class_weights="balanced")
    arrays = mx.array(x, mx.float64), mx.array(labels), None if weights is None else mx.array(weights, mx.float64)
    got, expected = np.array(model.loo_predictions(*arrays)), refits(model, x, labels, weights)
    # One Newton step for 16 of 48 rows; with weights the fits themselves. The weights of all rows would be 0.04 off.
    np.testing.assert_allclose(got, expected, atol=1e-8 if weighted else 0.03)
    np.testing.assert_allclose(np.array(model.loo_predictions(*arrays, refits=48)), expected, atol=1e-8)


def test_the_unit_of_a_class_with_weights_is_its_own():
    x, labels, _ = rows((4, 4), 2, False)
    weights = np.array([2.0, 1, 1, 3, 1, 2, 1, 1])
    model = RidgeClassifier(2, 2, class_weights=[0.3, 5.0])
    arrays = mx.array(x, mx.float32), mx.array(labels), mx.array(weights, mx.float32)
    got = np.array(model.loo_predictions(*arrays, removed="unit"))
    np.testing.assert_allclose(got, refits(model, x, labels, weights, True), rtol=1e-4, atol=1e-4)


def test_a_label_that_is_no_class_and_a_row_of_nan_show():
    x, labels, _ = rows((3, 4), 2, False)
    model, outside = RidgeClassifier(2, 2, class_weights="balanced"), labels.copy()
    outside[0] = 2
    assert np.isnan(np.array(model.loo_predictions(mx.array(x, mx.float32), mx.array(outside)))).all()
    x[0] = np.nan
    assert np.isnan(np.array(model.loo_predictions(mx.array(x, mx.float32), mx.array(labels)))).all()
    weights = mx.array([0.0] + [1.0] * 6)
    got = np.array(model.loo_predictions(mx.array(x, mx.float32), mx.array(labels), weights))
    assert np.isnan(got[0]).all() and np.isfinite(got[1:]).all()


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("weighted", [False, True])
def test_episodes_and_vmap(weighted):
    rng = np.random.default_rng(0)
    x, labels = mx.array(rng.normal(size=(2, 6, 3)), mx.float32), mx.array([[0, 1, 2, 0, 1, 2], [2, 0, 0, 1, 1, 1]])
    weights = [mx.array(rng.uniform(0.5, 2, size=(2, 6)), mx.float32)] if weighted else []
    model = RidgeClassifier(3, 3, class_weights="balanced")
    single = mx.stack([model.loo_predictions(*(v[i] for v in (x, labels, *weights))) for i in range(2)])
    for call in (model.loo_predictions, mx.vmap(model.loo_predictions), mx.compile(model.loo_predictions)):
        np.testing.assert_allclose(np.array(call(x, labels, *weights)), np.array(single), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("counts", [(1, 2), (2, 4)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_derivatives(counts, weighted):
    x, labels, _ = rows(counts, 2, False)
    w = np.random.default_rng(1).uniform(0.5, 2, size=len(labels))
    arrays = [mx.array(x, mx.float64), mx.array(0.5, mx.float64)] + [mx.array(w, mx.float64)] * weighted

    def fn(x, l2, *w):
        return RidgeClassifier(2, 2, l2=l2, class_weights="balanced").loo_predictions(x, mx.array(labels), *w)

    gradcheck(fn, *arrays)
