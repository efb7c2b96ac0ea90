"""Nothing in float64 lands on a default GPU: it is emulated by tests/support/emulated_gpu.py."""

import copy

import mlx.core as mx
import pytest

from pinvnn.streaming import ReadoutStatistics, RecursiveLeastSquares, gcv_moments, moments, reduce_moments
from pinvnn.streaming import solve_moments as solve
from tests.support.emulated_gpu import finite
from tests.support.rows import rows


def score(x, y, w, l2):
    state = reduce_moments(moments(x, y, w))
    weight, bias = solve(state, l2)
    return mx.sum(weight**2) + mx.sum(bias) + gcv_moments(state, l2)


@pytest.mark.parametrize("l2", [0.0, 0.5, [0.1, 0.2], [[0.1], [0.2], [0.3]]], ids=str)
def test_functions_and_their_gradients(gpu, l2):
    x, y, w = rows(20, 3, 2)
    l2 = l2 if isinstance(l2, float) else mx.array(l2)
    mx.eval(score(x, y, w, l2))
    mx.eval(mx.grad(score, argnums=(0, 1, 2))(x, y, w, l2))
    mx.eval(mx.jvp(lambda x: score(x, y, w, l2), [x], [x])[1])
    mx.eval(mx.grad(lambda x: mx.sum(mx.grad(score)(x, y, w, l2) ** 2))(x))
    mx.eval(mx.vmap(lambda x: score(x, y, w, l2))(mx.stack([x, x])))
    assert gpu.calls.total() > 0


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.float64], ids=str)
def test_statistics(gpu, dtype, tmp_path):
    x, y, w = rows(20, 3, 2, dtype=dtype)
    stats = ReadoutStatistics(3, 2).update(x, y, w)
    before = copy.copy(stats)
    stats.update(x, y).downdate(x, y).merge(before).decay(0.5).all_reduce().save(tmp_path / "s")
    loaded = ReadoutStatistics.load(tmp_path / "s")
    assert loaded.count == stats.count
    mx.eval(loaded.solve(0.1), loaded.solve(), loaded.gcv(0.1))
    with pytest.raises(ValueError, match="finite"):
        with mx.stream(mx.cpu):
            x = x * mx.nan
        stats.update(x, y)
    with pytest.raises(ValueError, match="non-negative"):
        with mx.stream(mx.cpu):
            w = -w
        stats.update(x, y, w)


def test_recursive(gpu):
    x, y, _ = rows(20, 3, 2)
    rls = RecursiveLeastSquares(3, 2, 0.1, 0.9).update(x, y).update(x[0], y[0])
    assert finite(rls.weight, rls.bias, rls(x))
