"""A grid of penalties from one factorization gives what solving for each would."""

import mlx.core as mx
import numpy as np
import pytest

from pinvnn.heads._grid import solve_grid
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
