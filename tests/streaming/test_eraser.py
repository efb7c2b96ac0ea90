"""The eraser of LEACE: nothing is left for a linear readout, and no map with that property moves the inputs less."""

import mlx.core as mx
import numpy as np
import pytest
import scipy.linalg

from pinvnn.streaming import ReadoutStatistics


def erased(x, y):
    with mx.stream(mx.cpu):
        weight, bias = ReadoutStatistics(x.shape[1], y.shape[1]).update(
            mx.array(x, mx.float64), mx.array(y, mx.float64)
        ).eraser()
        return np.array(weight), np.array(bias)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("collinear", [False, True])
@pytest.mark.parametrize("m", [60, 6])
def test_no_linear_readout_can_use_what_is_left(m, collinear, scale):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(m, 10)), rng.integers(0, 3, m)
    x[:, :2] += labels[:, None]
    x[:, 9] = x[:, 0] + x[:, 1] if collinear else x[:, 9]
    x, y = scale * (x * np.logspace(-2, 2, 10) + 5), np.eye(3)[labels]  # one-hot: the targets are collinear, too
    weight, bias = erased(x, y)
    z = x @ weight.T + bias
    before, after = ((v - v.mean(0)).T @ (y - y.mean(0)) for v in (x, z))
    assert np.abs(after / x.std(0)[:, None]).max() < 1e-6 * np.abs(before / x.std(0)[:, None]).max()
    np.testing.assert_allclose(z.mean(0), x.mean(0), rtol=1e-8)
    np.testing.assert_allclose(weight @ weight, weight, atol=1e-6 * np.abs(weight).max())


def test_it_is_the_formula_of_the_paper():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(80, 5)) @ rng.normal(size=(5, 5)) + 3, rng.normal(size=(80, 2))
    y[:, 0] += x[:, 1]
    xc, yc = x - x.mean(0), y - y.mean(0)
    root = np.real(scipy.linalg.sqrtm(xc.T @ xc))
    whitened = np.linalg.inv(root) @ xc.T @ yc
    removed = root @ whitened @ np.linalg.pinv(whitened) @ np.linalg.inv(root)
    weight, bias = erased(x, y)
    np.testing.assert_allclose(weight, np.eye(5) - removed, atol=1e-10)
    np.testing.assert_allclose(bias, removed @ x.mean(0), atol=1e-10)


def test_without_rows_or_relation_it_is_the_identity():
    weight, bias = ReadoutStatistics(3, 2).eraser()
    np.testing.assert_array_equal(np.array(weight), np.eye(3))
    np.testing.assert_array_equal(np.array(bias), 0)
    weight, _ = erased(np.eye(4), np.ones((4, 1)))
    np.testing.assert_array_equal(weight, np.eye(4))
