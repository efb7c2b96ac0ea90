"""Rows of weight 0, and targets that are known for some rows only, against fits to what is known, one by one."""

import mlx.core as mx
import numpy as np
import pytest

from pinvnn.nn import LeastSquaresReadout
from pinvnn.testing import gradcheck

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

M, N, K = 12, 3, 4


def array(x, dtype=mx.float64):
    return mx.array(np.asarray(x), dtype)


def data(dtype=mx.float64, m=M):
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(m, N)) + 1, rng.normal(size=(m, K)), rng.uniform(0.5, 2, size=m)
    mask = rng.uniform(size=(m, K)) > 0.3
    mask[:, 2] = mask[:, 0]  # a column that is there twice
    return array(x, dtype), array(y, dtype), array(w, dtype), mask


def broken(x, y, w, where, label):
    """The rows with weight 0 at one of them, which holds a value that no fit can have."""
    x, y, w = np.array(x), np.array(y), np.array(w)
    w[4] = 0
    {"x": x, "y": y}[label][4, 0] = where
    return array(x), array(y), array(w)


CALLS = {
    "fit": lambda r, x, y, w: r.fit(x, y, w).weight,
    "solve": lambda r, x, y, w: r.solve(x, y, w)[1],
    "adapt": lambda r, x, y, w: r.adapt(x, y, mx.ones((2, N)), w),
    "projected_loss": lambda r, x, y, w: r.projected_loss(x, y, w) * x.shape[0],
    "loo_loss": lambda r, x, y, w: r.loo_loss(x, y, w),
    "loo_predictions": lambda r, x, y, w: r.loo_predictions(x, y, w)[:4],
    "gcv": lambda r, x, y, w: r.gcv(x, y, w),
    "uncertainty": lambda r, x, y, w: r.uncertainty(x, y, w).weight_covariance,
    "precisions": lambda r, x, y, w: r.uncertainty(x, y, w, weights_are="precisions").weight_covariance,
}


@pytest.mark.parametrize("label", ["x", "y"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("l2", [0.0, 0.5])
@pytest.mark.parametrize("call", CALLS)
def test_a_row_of_weight_zero_takes_no_part_whatever_it_holds(call, l2, value, label):
    x, y, w, _ = data()
    x, y, w = broken(x, y, w, value, label)
    readout = LeastSquaresReadout(N, K, l2=l2)
    others = mx.array([i for i in range(M) if i != 4])
    got, want = CALLS[call](readout, x, y, w), CALLS[call](readout, x[others], y[others], w[others])
    np.testing.assert_allclose(np.array(got), np.array(want), rtol=1e-9)
    if call == "loo_loss":
        slopes = mx.grad(readout.loo_loss, argnums=(0, 1, 2))(x, y, w)
        assert all(np.isfinite(np.array(s)).all() for s in slopes)
        expected = mx.grad(readout.loo_loss)(x[others], y[others], w[others])
        np.testing.assert_allclose(np.array(slopes[0])[np.array(others)], np.array(expected), rtol=1e-7, atol=1e-12)


def test_the_prediction_of_a_row_of_weight_zero():
    x, y, w, _ = data()
    readout = LeastSquaresReadout(N, K, l2=0.5)
    others = mx.array([i for i in range(M) if i != 4])
    want = readout.adapt(x[others], y[others], x[4:5], w[others])
    got = readout.loo_predictions(*broken(x, y, w, np.nan, "y"))[4:5]
    np.testing.assert_allclose(np.array(got), np.array(want), rtol=1e-9)
    assert np.isnan(np.array(readout.loo_predictions(*broken(x, y, w, np.nan, "x"))[4])).all()


PENALTIES = {"none": 0.0, "number": 0.5, "target": [0.1, 0.5, 2.0, 1.0], "feature": [[0.1], [0.5], [2.0]]}


def readout_of(kind, targets=K):
    l2 = PENALTIES[kind]
    return LeastSquaresReadout(N, targets, l2=l2 if isinstance(l2, float) else mx.array(l2))


def single(kind, t):
    l2 = PENALTIES[kind]
    return LeastSquaresReadout(N, 1, l2=l2[t] if kind == "target" else l2 if isinstance(l2, float) else mx.array(l2))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", PENALTIES)
def test_each_target_is_fitted_to_the_rows_where_it_is_known(kind, weighted):
    x, y, w, mask = data()
    w = w if weighted else None
    gaps = mx.where(mx.array(mask), y, float("nan")).astype(mx.float64)
    readout, known = readout_of(kind), mx.array(mask)
    weight, bias = readout.solve(x, gaps, w, mask=known)
    adapted = readout.adapt(x, gaps, x[:2], w, mask=known)
    predicted = readout.loo_predictions(x, gaps, w, mask=known)
    fitted = readout_of(kind).fit(x, gaps, w, mask=known)
    squares = weights = 0.0
    for t in range(K):
        rows = mx.array(np.flatnonzero(mask[:, t]))
        of = x[rows], y[rows, t], None if w is None else w[rows]
        alone = single(kind, t)
        want = alone.solve(*of)
        np.testing.assert_allclose(np.array(weight[t : t + 1]), np.array(want[0]), rtol=1e-8)
        np.testing.assert_allclose(np.array(fitted.weight[t : t + 1]), np.array(want[0]), rtol=1e-8)
        assert want[1] is not None and bias is not None
        np.testing.assert_allclose(np.array(bias[t : t + 1]), np.array(want[1]), rtol=1e-8)
        np.testing.assert_allclose(np.array(adapted[:, t]), np.array(alone.adapt(*of[:2], x[:2], of[2])), rtol=1e-8)
        loo = alone.loo_predictions(*of)
        np.testing.assert_allclose(np.array(predicted[rows, t]), np.array(loo), rtol=1e-7)
        row_weights = np.ones(len(loo)) if w is None else np.array(of[2])
        squares += np.sum(row_weights * (np.array(of[1]) - np.array(loo)) ** 2)
        weights += row_weights.sum()
    loss = readout.loo_loss(x, gaps, w, mask=known).item()
    np.testing.assert_allclose(loss, squares / weights, rtol=1e-8)
    compiled = mx.compile(lambda x, y, mask: readout.loo_loss(x, y, w, mask=mask))(x, gaps, known)
    np.testing.assert_allclose(compiled.item(), loss, rtol=1e-7)


def test_one_factorization_for_each_distinct_column(monkeypatch):
    from pinvnn.nn import _readout

    x, y, _, mask = data()
    calls, original = [], _readout.solve
    monkeypatch.setattr(_readout, "solve", lambda p: (calls.append(1), original(p))[1])
    readout_of("number").solve(x, y, mask=mx.array(mask))
    assert len(calls) == len(np.unique(mask, axis=1).T) == K - 1


@pytest.mark.parametrize("method", ["adapt", "loo_loss"])
@pytest.mark.parametrize("kind", ["none", "target"])
def test_derivatives_with_a_mask(method, kind):
    x, y, w, mask = data()

    def fn(x, y, w):
        readout = readout_of(kind)
        if method == "adapt":
            return readout.adapt(x, y, x[:2], w, mask=mx.array(mask))
        return readout.loo_loss(x, y, w, mask=mx.array(mask))

    gradcheck(fn, x, y, w)
    slope = mx.grad(lambda y: mx.sum(fn(x, y, w)))(y)
    assert np.all(np.array(slope)[~mask] == 0)
    gaps = mx.where(mx.array(mask), y, float("nan")).astype(mx.float64)
    np.testing.assert_array_equal(np.array(mx.grad(lambda y: mx.sum(fn(x, y, w)))(gaps)), np.array(slope))


def test_a_mask_of_episodes_and_of_a_vector():
    x, y, w, mask = data()
    readout, known = readout_of("number"), mx.array(mask)
    twice = readout.solve(mx.stack([x, x]), mx.stack([y, y]), mx.stack([w, w]), mask=mx.stack([known, known]))
    one = readout.solve(x, y, w, mask=known)
    for a, b in zip(twice, one, strict=True):
        assert a is not None and b is not None
        np.testing.assert_allclose(np.array(a[1]), np.array(b), rtol=1e-9)
    vector = single("number", 0)
    assert vector.loo_predictions(x, y[:, 0], mask=known[:, 0]).shape == (M,)
    mapped = mx.vmap(lambda x, y, m: readout.loo_loss(x, y, mask=m))(*(mx.stack([v, v]) for v in (x, y, known)))
    np.testing.assert_allclose(mapped[0].item(), readout.loo_loss(x, y, mask=known).item(), rtol=1e-9)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (mx.ones((M, K)), TypeError, "mask must be boolean, but got mlx.core.float32"),
        (mx.ones((M, K - 1), mx.bool_), ValueError, r"mask must have the shape \(..., 12, 4\) of y, but got \(12, 3\)"),
    ],
)
def test_errors_of_the_mask(mask, error, message):
    x, y, _, _ = data()
    with pytest.raises(error, match=message):
        readout_of("number").solve(x, y, mask=mask)
    with pytest.raises(ValueError, match="y must be finite, but got NaN or Inf. .* or pass a mask"):
        readout_of("number").fit(x, y * float("nan"))
