"""LeastSquaresReadout with bounds on its weights: SciPy's solutions, gradients, leave-one-out of the free weights."""

import mlx.core as mx
import numpy as np
import pytest
from scipy.optimize import lsq_linear

from pinvnn._factor import bounded_values
from pinvnn.nn import LeastSquaresReadout
from pinvnn.testing import gradcheck

pytestmark = pytest.mark.usefixtures("on_cpu")

M, N, K = 12, 4, 2
BOUNDS = {
    "non-negative": (0, None),
    "box": (-0.3, 0.5),
    "per target": (np.array([-0.1, 0.0]), None),
    "per weight": (None, np.array([[0.2], [np.inf], [0.1], [0.4]])),
}
L2 = {"none": 0.0, "number": 0.5, "target": np.array([0.5, 0.0]), "feature": np.array([[0.5], [0.0], [1.0], [2.0]])}


def f64(x):
    return x if isinstance(x, float) or x is None else mx.array(x, mx.float64)


def rows(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(M, N)) + 3
    return x, x @ rng.normal(size=(N, K)) + rng.normal(size=(M, K)) + 5, rng.uniform(0.5, 2, size=M)


def readout(bounds, l2=0.0, bias=True):
    return LeastSquaresReadout(N, K, l2=f64(l2), bias=bias, bounds=tuple(f64(b) for b in bounds))


def ends(bounds):
    ends = [-np.inf if bounds[0] is None else bounds[0], np.inf if bounds[1] is None else bounds[1]]
    return [np.broadcast_to(np.asarray(b, float), (N, K)) for b in ends]


def scipys(x, y, w, bounds, l2, bias):
    """Weight (K, N) and bias (K,)."""
    penalties, weight = np.broadcast_to(np.asarray(l2, float), (N, K)), []
    x_mean, y_mean = (w @ v / w.sum() * bias for v in (x, y))
    for t in range(K):
        left = np.vstack([np.sqrt(w)[:, None] * (x - x_mean), np.diag(np.sqrt(penalties[:, t]))])
        right = np.append(np.sqrt(w) * (y - y_mean)[:, t], np.zeros(N))
        box = tuple(b[:, t] for b in ends(bounds))
        weight.append(lsq_linear(left, right, box, method="bvls", tol=1e-15).x)
    return np.array(weight), y_mean - np.array(weight) @ x_mean


def of_free(x, y, w, held, on, l2, bias):
    """Weight (K, N) and bias (K,) of the weights that are not ``on`` their bounds (N, K)."""
    penalties, weight = np.broadcast_to(np.asarray(l2, float), (N, K)), np.array(held)
    x_mean, y_mean = (w @ v / w.sum() * bias for v in (x, y))
    for t in range(K):
        free, root = ~on[:, t], np.sqrt(w)[:, None]
        left = np.vstack([root * (x - x_mean)[:, free], np.diag(np.sqrt(penalties[free, t]))])
        right = root[:, 0] * ((y - y_mean)[:, t] - (x - x_mean)[:, ~free] @ held[~free, t])
        weight[free, t] = np.linalg.lstsq(left, np.append(right, np.zeros(free.sum())))[0]
    return weight.T, y_mean - weight.T @ x_mean


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("l2", L2.values(), ids=L2)
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_solutions_and_the_objective_are_scipys(bounds, l2, bias):
    x, y, w = rows()
    weight, intercept = scipys(x, y, w, bounds, l2, bias)
    model, args = readout(bounds, l2, bias), [f64(v) for v in (x, y, w)]
    model.fit(*args)
    np.testing.assert_allclose(np.array(model.weight), weight, rtol=1e-9, atol=1e-9)
    if bias:
        np.testing.assert_allclose(np.array(model.bias), intercept, rtol=1e-9)
    predicted = x @ weight.T + intercept
    np.testing.assert_allclose(np.array(model.adapt(*args[:2], args[0], args[2])), predicted, rtol=1e-9)
    objective = np.sum(w[:, None] * (y - predicted) ** 2) + np.sum(l2 * weight.T**2)
    assert model.projected_loss(*args).item() == pytest.approx(objective / (M * K), rel=1e-9)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("l2", L2.values(), ids=L2)
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_leave_one_out_is_a_refit_of_the_free_weights(bounds, l2, bias):
    x, y, w = rows()
    held, exact = scipys(x, y, w, bounds, l2, bias)[0].T, 0
    lower, upper = ends(bounds)
    got = np.array(readout(bounds, l2, bias).loo_predictions(*(f64(v) for v in (x, y, w))))

    def on_bound(weight):
        return np.isclose(weight, lower, rtol=0, atol=1e-9) | np.isclose(weight, upper, rtol=0, atol=1e-9)

    on = on_bound(held)
    for i in range(M):
        others = np.arange(M) != i
        weight, intercept = of_free(x[others], y[others], w[others], held, on, l2, bias)
        np.testing.assert_allclose(got[i], x[i] @ weight.T + intercept, rtol=1e-8, atol=1e-8)
        refit, _ = scipys(x[others], y[others], w[others], bounds, l2, bias)
        exact += np.all(on_bound(refit.T) == on)
    assert on.any() and exact >= M // 2  # mostly the refits themselves


def test_a_mask_is_a_problem_for_each_target():
    x, y, _ = rows()
    mask = np.random.default_rng(1).random((M, K)) < 0.7
    bounds = (np.array([-0.1, 0.0]), 0.5)
    args = f64(x), f64(np.where(mask, y, np.nan))
    expected = np.stack([scipys(x, np.nan_to_num(y), mask[:, t] * 1.0, bounds, 0.0, True)[0][t] for t in range(K)])
    args = *args, mx.array(mask)
    model, batch = readout(bounds), [mx.stack([v, v]) for v in args]
    solve = mx.vmap(lambda x, y, mask: model.solve(x, y, mask=mask)[0])
    for weight in (model.solve(*args[:2], mask=args[2])[0], solve(*batch)[0]):
        np.testing.assert_allclose(np.array(weight), expected, rtol=1e-8, atol=1e-9)
    left_out = mx.vmap(lambda x, y, mask: model.loo_predictions(x, y, mask=mask))
    eager = np.array(model.loo_predictions(*args[:2], mask=args[2]))
    np.testing.assert_allclose(np.array(left_out(*batch)[1]), eager, rtol=1e-8)


def test_episodes_vmap_and_float32():
    episodes = [rows(seed) for seed in range(3)]
    x, y, w = (mx.array(np.stack(v), mx.float32) for v in zip(*episodes, strict=True))
    model = LeastSquaresReadout(N, K, bounds=(0, None))
    for name in ("solve", "loo_loss", "projected_loss"):
        call = getattr(model, name)
        single = [np.array(out[0] if name == "solve" else out) for out in (call(x[i], y[i], w[i]) for i in range(3))]
        for fn in (call, mx.vmap(call)):
            out = fn(x, y, w)
            np.testing.assert_allclose(np.array(out[0] if name == "solve" else out), single, rtol=2e-4, atol=1e-5)
    weight = scipys(*episodes[0], (0, None), 0.0, True)[0]
    np.testing.assert_allclose(np.array(model.solve(x[0], y[0], w[0])[0]), weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "l2", "order"), [("adapt", 0.0, 1), ("adapt", 0.5, 1), ("loo_loss", 0.5, 1), ("projected_loss", 0.0, 2)]
)
def test_derivatives(name, l2, order):
    x, y, w = rows()
    noise = y[:6, :1] - y[:6].mean()
    x, y, w = f64(x[:6, :2]), f64(x[:6, :2] @ np.array([[0.1], [0.9]]) + 0.05 * noise), f64(w[:6])

    def fn(x, y, w):
        model = LeastSquaresReadout(2, 1, l2=l2, bounds=(-0.3, 0.5))
        return model.adapt(x, y, x[:2], w) if name == "adapt" else getattr(model, name)(x, y, w)

    held = np.array(LeastSquaresReadout(2, 1, l2=l2, bounds=(-0.3, 0.5)).solve(x, y, w)[0])
    assert np.sum((held == -0.3) | (held == 0.5)) == 1  # one on its bound, one free
    gradcheck(fn, x, y, w, order=order)


def small(seed=0):
    """Few rows of two features: one weight on its bound, one free."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(6, 2))
    return x, x @ [[1.0], [-1.0]] + 0.1 * rng.normal(size=(6, 1)), rng.normal(size=(2, 2))


@pytest.mark.parametrize("method", ["adapt", "projected_loss"])
def test_compile(method, monkeypatch):
    monkeypatch.setattr(bounded_values, "_ROUNDS_IN_GRAPH", 3)  # each is a kernel to be compiled
    x, y, query = small()
    layer = LeastSquaresReadout(2, 1, l2=0.1, bounds=(0, None))
    query = mx.array(query, mx.float32)

    def step(x, y):
        if method == "adapt":
            return (layer.adapt(x, y, query),)
        return mx.value_and_grad(lambda x: layer.projected_loss(x, y))(x)

    arrays = mx.array(x, mx.float32), mx.array(y, mx.float32)
    assert sorted(np.array(layer.solve(*arrays)[0][0]) > 0) == [False, True]
    for compiled, plain in zip(mx.compile(step)(*arrays), step(*arrays), strict=True):
        np.testing.assert_allclose(np.array(compiled), np.array(plain), rtol=1e-4, atol=1e-6)


def test_second_derivatives_of_an_adapted_prediction():
    x, y, query = map(f64, small())
    layer = LeastSquaresReadout(2, 1, bounds=(0, None))
    gradcheck(lambda *rows: layer.adapt(*rows, query), x, y, order=2)


def test_a_learned_penalty_and_repr():
    x, y, w = (f64(v) for v in rows())
    model = LeastSquaresReadout(N, K, l2=0.5, learn_l2=True, bounds=(0, None))

    def loss(log_l2):
        model.log_l2 = log_l2
        return model.loo_loss(x, y, w)

    gradcheck(loss, mx.array(np.log(0.5), mx.float64))
    assert repr(LeastSquaresReadout(3, 1, bounds=(0, None))).endswith("learn_l2=False, bounds=(0.0, None))")


X, Y, BOUNDED = mx.zeros((5, N)), mx.zeros((5, K)), LeastSquaresReadout(N, K, 1.0, bounds=(0, None))
ERRORS = {
    "pair": (lambda: LeastSquaresReadout(N, K, bounds=0.0), TypeError, r"bounds must be a pair"),
    "order": (lambda: LeastSquaresReadout(N, K, bounds=(1, 0)), ValueError, "lower must not exceed upper, but got 1.0"),
    "entries": (lambda: LeastSquaresReadout(N, K, bounds=([0.0, 2.0], 1.0)), ValueError, "but got an entry where"),
    "shape": (lambda: LeastSquaresReadout(N, K, bounds=([0.0] * 3, None)), ValueError, "broadcast against the sol"),
    "batch": (lambda: LeastSquaresReadout(N, K, bounds=(mx.zeros((2, 1, 1)), None)), ValueError, "at most 2 dim"),
    "method": (lambda: LeastSquaresReadout(N, K, bounds=(0, None), method="cholesky"), ValueError, "must be 'auto'"),
    "gcv": (lambda: BOUNDED.gcv(X, Y), ValueError, "gcv is for readouts without"),
    "evidence": (lambda: BOUNDED.log_evidence(X, Y), ValueError, "log_evidence is for readouts without"),
    "uncertainty": (lambda: BOUNDED.uncertainty(X, Y), ValueError, "uncertainty is for readouts without"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, error, message = ERRORS[case]
    with pytest.raises(error, match=message) as caught:
        call()
    assert str(caught.value).startswith("[pinvnn.LeastSquaresReadout") and str(caught.value).endswith(".")
