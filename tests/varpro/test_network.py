"""SeparableGaussNewton: loss, gradient and matrix against the library and dense formulas; training; refusals."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import pinvnn
from pinvnn.nn import LeastSquaresReadout
from pinvnn.streaming import ReadoutStatistics
from pinvnn.varpro import SeparableGaussNewton
from pinvnn.varpro._basis import Basis, arrays, to_numpy
from pinvnn.varpro._network_loss import Batch, NetworkLoss, conjugate_gradients
from tests.support.cases import float64
from tests.support.emulated_gpu import EmulatedGpu

pytestmark = pytest.mark.usefixtures("on_cpu")

M, DIMS, N, K, L2 = 20, 2, 5, 3, 0.1


def network(dtype=mx.float64, seed=0, bias=True):
    rng = np.random.default_rng(seed)
    features = nn.Sequential(nn.Linear(DIMS, 4), nn.Tanh(), nn.Linear(4, N), nn.Tanh())
    readout = nn.Linear(N, K, bias=bias)
    for module in (features, readout):
        leaves = tree_flatten(module.parameters())
        module.load_weights([(name, mx.array(rng.standard_normal(a.shape), dtype=dtype)) for name, a in leaves])
    return features, readout


def rows(m=M, seed=0, dtype=mx.float64):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (m, DIMS))
    y = np.stack([np.tanh(3 * x[:, 0]), x[:, 0] * x[:, 1], np.cosh(x[:, 1])], axis=1)
    return mx.array(x, dtype=dtype), mx.array(y + 2, dtype=dtype)


def quadratic(bias=True, weighted=False, memory=False):
    """The quadratic model on a batch, and its loss as a function of theta, from pinvnn.ridge on stacked rows."""
    features, _ = network(bias=bias)
    x, y = rows()
    w = np.random.default_rng(1).uniform(0.1, 2, M) if weighted else np.ones(M)
    statistics = ReadoutStatistics(N, K, bias)
    old_h, old_y = float64(np.random.default_rng(2).standard_normal((7, N))), rows(7, seed=3)[1]
    if memory:
        statistics.update(old_h, old_y).decay(0.7)
    basis = Basis(features, None, (x,), mx.float64)
    theta = basis.start
    batch = Batch(to_numpy(y), np.sqrt(w)[:, None], statistics.moments, L2, bias)

    def loss(point):
        h = basis(point)
        all_h, all_y, all_w = h, y, float64(w)
        if memory:
            all_h, all_y = mx.concatenate([h, old_h]), mx.concatenate([y, old_y])
            all_w = mx.concatenate([all_w, float64(np.full(7, 0.7))])
        l2 = np.full((N, 1), L2)
        if bias:
            all_h = mx.concatenate([all_h, mx.ones((len(all_h), 1), mx.float64)], axis=1)
            l2 = np.vstack([l2, [[0.0]]])
        v = pinvnn.ridge(all_h, all_y, float64(l2), weights=all_w)
        objective = (all_w[:, None] * (all_y - all_h @ v) ** 2).sum() + (float64(l2) * v**2).sum()
        return objective.item() / (M * K)

    return NetworkLoss(basis, theta, batch, batch.fit(basis(theta))), loss


SETTINGS = [dict(bias=b, weighted=w, memory=m) for b, w, m in [(1, 0, 0), (0, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1)]]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: ", ".join(name for name in s if s[name]) or "plain")
class TestTheModel:
    def test_loss_is_the_ridge_objective(self, setting):
        model, loss = quadratic(**setting)
        np.testing.assert_allclose(model.fit.loss, loss(model.theta), rtol=1e-10)

    def test_gradient_is_that_of_the_loss(self, setting):
        model, loss = quadratic(**setting)
        h, u = 1e-4, np.random.default_rng(4).standard_normal((5, model.theta.size))
        for direction in u:
            difference = (loss(model.theta + h * direction) - loss(model.theta - h * direction)) / (2 * h)
            np.testing.assert_allclose(model.gradient @ direction, difference, rtol=1e-5, atol=1e-7)

    def test_products_are_those_of_the_matrix_of_the_projected_jacobian(self, setting):
        model, _ = quadratic(**setting)
        fit, root = model.fit, model.batch.root
        xx = fit.total[3] + L2 * np.eye(N)
        a = root * (fit.h - fit.total[1])
        projector = np.eye(M) - a @ np.linalg.solve(xx, a.T)
        if setting["bias"]:
            projector -= root @ root.T / fit.total[0]
        tangents = model.basis.tangents(model.theta, fit.h.size)
        j = np.stack([root * (d @ fit.v) for d in tangents])
        expected = 2 / (M * K) * np.einsum("pmk,ml,qlk->pq", j, projector, j)
        np.testing.assert_allclose(model.matrix(), expected, atol=1e-12)
        u = np.random.default_rng(5).standard_normal(model.theta.size)
        np.testing.assert_allclose(model.product(u), expected @ u, atol=1e-11)
        assert np.linalg.eigvalsh(expected).min() > -1e-12


def test_gauss_newton_is_the_hessian_where_the_residual_is_zero():
    features, readout = network()
    x, _ = rows()
    y = readout(features(x))
    basis = Basis(features, None, (x,), mx.float64)
    empty = ReadoutStatistics(N, K).moments
    batch = Batch(to_numpy(y), np.ones((M, 1)), empty, 1e-12, True)
    model = NetworkLoss(basis, basis.start, batch, batch.fit(basis(basis.start)))
    u = np.random.default_rng(6).standard_normal(basis.start.size)
    h = 1e-3
    losses = [batch.fit(basis(basis.start + s * h * u)).loss for s in (-1, 0, 1)]
    np.testing.assert_allclose(u @ model.product(u), (losses[0] - 2 * losses[1] + losses[2]) / h**2, rtol=1e-3)


def test_conjugate_gradients_solve_and_report_their_residual():
    rng = np.random.default_rng(0)
    root, g = rng.standard_normal((6, 4)), rng.standard_normal(6)
    b = root @ root.T
    p, left, count = conjugate_gradients(lambda u: b @ u, g, 0.3, 1e-10, 50)
    np.testing.assert_allclose(p, np.linalg.solve(b + 0.3 * np.eye(6), -g), rtol=1e-8)
    assert count <= 7
    p, left, count = conjugate_gradients(lambda u: b @ u, g, 0.3, 1e-10, 2)
    assert count == 2
    np.testing.assert_allclose(left, -g - b @ p - 0.3 * p, atol=1e-12)


def test_dense_and_matrix_free_steps_agree():
    x, y = rows()
    points = []
    for method in ("dense", "cg"):
        features, readout = network()
        optimizer = SeparableGaussNewton(features, readout, L2, method=method, cg_tol=1e-12, cg_steps=500)
        steps = [optimizer.step(x, y) for _ in range(5)]
        points.append(np.concatenate([to_numpy(leaf).ravel() for leaf in arrays(features.parameters())]))
        assert all(bool(step.products) == (method == "cg") for step in steps)
    np.testing.assert_allclose(points[0], points[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["dense", "cg"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
def test_training_lowers_the_loss_and_sets_the_readout(dtype, method):
    features, readout = network(dtype)
    x, y = rows(60, dtype=dtype)
    optimizer = SeparableGaussNewton(features, readout, 1e-4, method=method)
    steps = [optimizer.step(x, y) for _ in range(30)]
    losses = [step.loss for step in steps]
    assert all(later <= earlier for earlier, later in zip(losses, losses[1:], strict=False))
    assert losses[-1] < 1e-2 * losses[0]
    assert {leaf.dtype for module in (features, readout) for leaf in arrays(module.parameters())} == {dtype}
    data = mx.mean((readout(features(x)) - y) ** 2).item()
    penalty = 1e-4 * mx.sum(readout.weight**2).item() / y.size
    np.testing.assert_allclose(data + penalty, losses[-1], rtol=1e-3)
    assert steps[-1].accepted or steps[-1].trial >= steps[-1].loss


def test_a_refused_step_moves_nothing_and_raises_the_damping(monkeypatch):
    features, readout = network()
    x, y = rows()
    optimizer = SeparableGaussNewton(features, readout, L2)
    first = optimizer.step(x, y)
    before = [np.array(leaf) for leaf in arrays(features.parameters())]
    monkeypatch.setattr(optimizer, "_solve", lambda model: (1e3 * model.gradient, 1.0, 0))
    refused = optimizer.step(x, y)
    assert not refused.accepted
    assert refused.trial > refused.loss
    np.testing.assert_allclose(refused.loss, first.loss, rtol=1e-12)
    assert refused.damping == 2 * first.damping
    for old, new in zip(before, arrays(features.parameters()), strict=True):
        np.testing.assert_array_equal(old, np.array(new))
    assert optimizer.step(x, y).damping == 4 * refused.damping


def test_a_trial_point_that_is_not_finite_is_refused(monkeypatch):
    features, readout = network()
    x, y = rows()
    optimizer = SeparableGaussNewton(features, readout, L2)
    monkeypatch.setattr(optimizer, "_solve", lambda model: (np.full_like(model.theta, np.nan), 1.0, 0))
    step = optimizer.step(x, y)
    assert not step.accepted
    assert np.isnan(step.trial)
    for module in (features, readout):
        assert all(np.isfinite(np.array(leaf)).all() for leaf in arrays(module.parameters()))


def test_minibatches_with_memory_fit_more_than_the_last_batch():
    x, y = rows(240)
    final = {}
    for memory in (0.0, 0.95):
        features, readout = network()
        optimizer = SeparableGaussNewton(features, readout, 1e-3, memory=memory)
        for first in list(range(0, 240, 12)) * 4:
            optimizer.step(x[first : first + 12], y[first : first + 12])
        final[memory] = mx.mean((readout(features(x)) - y) ** 2).item()
    assert final[0.95] < final[0.0] / 3


def test_memory_is_the_decayed_statistics_of_all_rows_seen():
    features, readout = network()
    optimizer = SeparableGaussNewton(features, readout, L2, memory=0.5)
    for seed in range(3):
        optimizer.step(*rows(seed=seed))
    np.testing.assert_allclose(optimizer.statistics.count, M * (1 + 0.5 + 0.25))
    weight, bias = optimizer.statistics.solve(L2)
    h, y = features(rows(seed=2)[0]), rows(seed=2)[1]
    # What the last step left behind is what the last features and the earlier rows ask for.
    np.testing.assert_allclose(np.array(readout.weight), np.array(weight), rtol=1e-6)
    np.testing.assert_allclose(np.array(readout.bias), np.array(bias), rtol=1e-6)
    assert mx.mean((readout(h) - y) ** 2).item() < 1


def test_weight_two_is_the_row_twice():
    x, y = rows()
    counts = np.arange(M) % 3
    twice = np.repeat(np.arange(M), counts)
    results = []
    for given in [(x, y, float64(counts)), (x[mx.array(twice)], y[mx.array(twice)], None)]:
        features, readout = network()
        SeparableGaussNewton(features, readout, L2, damping=1e-9).step(*given)
        results.append(np.array(readout.weight))
    # The damping is relative to a loss divided by m k, which differs; next to none is left here.
    np.testing.assert_allclose(results[0], results[1], rtol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.Linear, LeastSquaresReadout])
def test_it_trains_under_either_readout_with_and_without_intercept(kind, bias):
    x, y = rows(60)
    features, _ = network()
    readout = kind(N, K, bias=bias)
    optimizer = SeparableGaussNewton(features, readout, 1e-4)
    losses = [optimizer.step(x, y).loss for _ in range(20)]
    assert losses[-1] < 0.1 * losses[0]
    assert ("bias" in readout) == bias
    expected = LeastSquaresReadout(N, K, 1e-4, bias=bias).projected_loss(features(x), y).item()
    np.testing.assert_allclose(losses[-1], expected, rtol=1e-6)


def test_nothing_in_float64_lands_on_a_default_gpu(monkeypatch):
    features, readout = network(mx.float32)
    x, y = rows(dtype=mx.float32)
    with monkeypatch.context() as patches:
        EmulatedGpu(patches)
        for method in ("dense", "cg"):
            optimizer = SeparableGaussNewton(features, readout, L2, memory=0.5, method=method)
            optimizer.step(x, y, mx.ones(M, stream=mx.cpu))
            assert optimizer.step(x, y).loss > 0


MODULE = nn.Linear(DIMS, N)
HEAD = nn.Linear(N, K)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((lambda x: x, HEAD), {}, TypeError, "features must be a module with trainable parameters, but got function"),
        ((nn.Tanh(), HEAD), {}, TypeError, "features must be a module with trainable parameters, but got Tanh"),
        ((MODULE, nn.Tanh()), {}, TypeError, "readout must be a linear module, but got Tanh"),
        ((MODULE, HEAD, 0.0), {}, ValueError, "l2 must be positive, but got 0.0"),
        ((MODULE, HEAD), {"damping": -1.0}, ValueError, "damping must be positive, but got -1.0"),
        ((MODULE, HEAD), {"memory": 1.5}, ValueError, "memory must be between 0 and 1, but got 1.5"),
        ((MODULE, HEAD), {"method": "qr"}, ValueError, "method must be 'auto', 'dense' or 'cg', but got 'qr'"),
    ],
)
def test_bad_settings_are_refused(args, options, error, message):
    with pytest.raises(error, match=rf"\[pinvnn\.SeparableGaussNewton\] {message}\. "):
        SeparableGaussNewton(*args, **options)


X, Y = mx.ones((4, DIMS)), mx.ones((4, K))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, mx.ones(4)), r"y must have the shape \(4, 3\), but got shape \(4,\)"),
        ((X, mx.ones((5, K))), r"y must have the shape \(4, 3\), but got shape \(5, 3\)"),
        ((X, Y, mx.ones(3)), r"weights must have the shape \(4,\), but got shape \(3,\)"),
        ((X, Y, -mx.ones(4)), "weights must be non-negative, but got -1.0"),
        ((X * float("nan"), Y), "features, y and weights must be finite, but got NaN or Inf"),
        ((X, Y * float("inf")), "features, y and weights must be finite, but got NaN or Inf"),
        ((X[0], Y), r"features must return \(m, 5\), as the readout takes, but got shape \(5,\)"),
    ],
)
def test_bad_batches_are_refused(batch, message):
    with pytest.raises(ValueError, match=rf"\[pinvnn\.SeparableGaussNewton\] {message}\. "):
        SeparableGaussNewton(nn.Linear(DIMS, N), nn.Linear(N, K)).step(*batch)


def test_a_gradient_whose_square_has_no_float64_ends_conjugate_gradients():
    move, left, count = conjugate_gradients(lambda u: 1e-200 * u, np.full(3, 1e-155), 1e-200, 1e-3, 10)
    assert count == 1
    np.testing.assert_array_equal(move, 0)
    np.testing.assert_array_equal(left, np.full(3, -1e-155))


def test_the_damping_stays_finite_where_every_step_is_refused():
    x = mx.linspace(-1, 1, 30)[:, None]
    features, readout = nn.Sequential(nn.Linear(1, 3), nn.Tanh()), nn.Linear(3, 1)
    optimizer = SeparableGaussNewton(features, readout)
    optimizer.step(x, x)
    for _ in range(100):
        assert not optimizer._accept(-1.0, 1.0, 0.0)
    assert np.isfinite(optimizer._damping) and np.isfinite(optimizer._growth)
