"""A grid of penalties from one factorization gives what solving for each would."""

import mlx.core as mx
import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from pinvnn._factor import newton
from pinvnn.heads._grid import solve_grid
from pinvnn.heads._logistic import fit_grid
from pinvnn.streaming import ReadoutStatistics


def statistics(rows=60, dims=8, outputs=3, mean=0.0):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(rows, dims)) * np.logspace(0, 2, dims) + mean).astype(np.float32)
    y = (x[:, :outputs] + rng.normal(size=(rows, outputs))).astype(np.float32)
    return ReadoutStatistics(dims, outputs).update(mx.array(x), mx.array(y))


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_the_grid_agrees_with_the_statistics(mean):
    stats, l2 = statistics(mean=mean), [0.0, 1e-2, 1.0, 30.0, 1e4, 1e8]
    weights, biases, gcv = solve_grid(stats, l2)
    assert (weights.shape, biases.shape, gcv.shape) == ((6, 3, 8), (6, 3), (6,))
    for i, penalty in enumerate(l2):
        weight, bias = stats.solve(penalty)
        np.testing.assert_allclose(weights[i], weight, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(biases[i], bias, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(gcv[i], stats.gcv(penalty), rtol=1e-4)


def test_no_score_without_degrees_of_freedom():
    # 8 rows, 8 features and an intercept: an unpenalised fit leaves nothing to judge it by.
    weights, _, gcv = solve_grid(statistics(rows=8), [0.0, 1.0])
    assert mx.isnan(gcv).tolist() == [True, False]
    assert mx.isfinite(weights).all()


@pytest.mark.parametrize("rows", [60, 12])  # more and fewer than features
@pytest.mark.parametrize("dense", [True, False])
def test_logistic_readouts_of_a_grid_reach_the_objective_of_scikit_learn(rows, dense, monkeypatch):
    if not dense:
        monkeypatch.setattr(newton.hessian, "DENSE", 0)
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % 3
    x = rng.normal(size=(3, 20))[labels] + rng.normal(size=(rows, 20)) * 10.0 ** rng.uniform(-1, 1, 20) + 5
    x = x.astype(np.float32).astype(np.float64)
    grid = [0.1, 100.0, 1.0, 100.0]
    weights, biases = (np.array(part, np.float64) for part in fit_grid(mx.array(x), mx.array(labels), grid, 3))
    assert weights.shape == (4, 3, 20) and np.array_equal(weights[1], weights[3])
    for weight, bias, l2 in zip(weights, biases, grid, strict=True):
        best = LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-12).fit(x, labels)

        def objective(weight, bias, l2=l2):
            losses = -log_softmax(x @ weight.T + bias, axis=1)[np.arange(rows), labels]
            return losses.sum() + l2 / 2 * np.sum(weight**2)

        assert objective(weight, bias) == pytest.approx(objective(best.coef_, best.intercept_), rel=2e-3)
