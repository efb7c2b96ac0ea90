"""The functions below ReadoutStatistics: values, gradients and transformations."""

from functools import reduce

import mlx.core as mx
import numpy as np
import pytest

from pinvnn.streaming import Moments, gcv_moments, merge_moments, moments, reduce_moments, solve_moments
from pinvnn.streaming import _moments as core
from pinvnn.testing import gradcheck
from tests.support.rows import assert_close, gcv, ridge, rows, to_numpy

L2 = {
    "zero": 0.0,
    "scalar": 0.7,
    "array scalar": np.float32(0.7),
    "per target": np.array([0.3, 5.0]),
    "per feature": np.array([[0.1], [2.0], [30.0]]),
    "both": np.array([[0.1, 1.0], [2.0, 0.2], [30.0, 3.0]]),
}


def as_l2(l2):
    return l2 if isinstance(l2, float) else mx.array(l2)


def assert_moments_close(got, expected, tolerance):
    for name, a, b in zip(Moments._fields, got, expected, strict=True):
        assert a.dtype == mx.float64, name
        assert_close(a, b, tolerance)


def reference_moments(x, y, w=None, bias=True):
    x, y, w = to_numpy(x, y, w)
    w = np.ones(len(x)) if w is None else w
    x_mean, y_mean = (w @ x / w.sum(), w @ y / w.sum()) if bias else (0 * x[0], 0 * y[0])
    x, y = x - x_mean, y - y_mean
    wx = w[:, None] * x
    return w.sum(), x_mean, y_mean, wx.T @ x, wx.T @ y, w @ (y * y)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("block", [core.BLOCK, 64, 5])  # numbers in a block of 5 columns: one block, 12 rows, 3 rows
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
def test_moments_by_blocks_are_those_of_all_rows(monkeypatch, bias, weighted, block, dtype):
    monkeypatch.setattr(core, "BLOCK", block)
    x, y, w = rows(50, 3, 2, mean=2.0, dtype=dtype)
    w = w if weighted else None
    assert_moments_close(moments(x, y, w, bias=bias), reference_moments(x, y, w, bias), 1e-13)


def test_leading_dimensions_are_rows():
    x, y, w = rows(24, 3, 2)
    nested = [a.reshape(4, 6, *a.shape[1:]) for a in (x, y, w)]
    assert_moments_close(moments(*nested), reference_moments(x, y, w), 1e-13)
    assert_moments_close(moments(x[0], y[0]), reference_moments(x[:1], y[:1]), 1e-13)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.int32, mx.bool_], ids=str)
def test_other_dtypes_are_exact(dtype):
    x, y, _ = (a.astype(dtype) for a in rows(30, 3, 2))
    expected = reference_moments(x.astype(mx.float32), y.astype(mx.float32))
    assert_moments_close(moments(x, y), expected, 1e-13)


@pytest.mark.parametrize("mean_over_spread", [1e3, 1e6, 1e8])
def test_nothing_cancels_when_the_mean_is_large(mean_over_spread, monkeypatch):
    monkeypatch.setattr(core, "BLOCK", 500)
    with mx.stream(mx.cpu):
        x, y, _ = rows(1000, 3, 2, mean=mean_over_spread, dtype=mx.float64)
        weight, _ = solve_moments(moments(x, y), dtype=mx.float64)
        # The rounding of the rows themselves: half a unit in the last place of the mean.
        assert_close(weight, ridge(x, y)[0], 1e-13 + 1e-15 * mean_over_spread)


@pytest.mark.parametrize(("m", "n", "k"), [(0, 3, 2), (5, 0, 2), (5, 3, 0), (0, 0, 0), (1, 3, 2)])
def test_empty_shapes(m, n, k):
    x, y = mx.ones((m, n)), mx.ones((m, k))
    result = moments(x, y)
    assert [part.shape for part in result] == [(), (n,), (k,), (n, n), (n, k), (k,)]
    assert result.count.item() == m
    weight, bias = solve_moments(result)
    assert weight.shape == (k, n) and bias.shape == (k,)
    assert_close(weight, np.zeros((k, n)), 0)
    assert_close(bias, np.full(k, 1.0 if m else 0.0), 0)


def test_merge_is_associative_and_has_a_neutral_element():
    parts = [moments(*rows(20 + i, 3, 2, seed=i, mean=10.0 * i)) for i in range(4)]
    a, b, c, d = parts
    whole = reduce(merge_moments, parts)
    assert_moments_close(merge_moments(merge_moments(a, b), merge_moments(c, d)), whole, 1e-14)
    assert_moments_close(reduce(merge_moments, [d, b, c, a]), whole, 1e-14)
    none = core.empty_moments(3, 2)
    assert_moments_close(merge_moments(none, a), a, 0)
    assert_moments_close(merge_moments(a, none), a, 0)
    assert_moments_close(merge_moments(none, none), none, 0)


def test_a_negative_weight_gives_nan():
    x, y, _ = rows(5, 3, 2)
    weight, _ = solve_moments(moments(x, y, mx.array([1.0, 1.0, -1e-6, 1.0, 1.0])))
    assert mx.all(mx.isnan(weight)).item()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l2", L2)
def test_solution_and_score_are_those_of_dense_problems(l2, weighted, bias):
    x, y, w = rows(40, 3, 2, mean=1.0)
    w, l2 = w if weighted else None, L2[l2]
    state = moments(x, y, w, bias=bias)
    got, expected = solve_moments(state, as_l2(l2), bias=bias), ridge(x, y, l2, w, bias)
    assert_close(got[0], expected[0], 1e-6)
    if bias:
        assert_close(got[1], expected[1], 1e-6)
    else:
        assert got[1] is None
    score = gcv_moments(state, as_l2(l2), bias=bias)
    assert_close(score, gcv(x, y, l2, w, bias), 1e-6)


def test_rank_deficient_rows_give_the_solution_of_minimum_norm():
    x, y, _ = rows(40, 3, 2, mean=3.0)
    x = mx.concatenate([x, 2 * x[:, :1], mx.full((40, 1), 7.0)], axis=1)
    weight, bias = solve_moments(moments(x, y))
    expected = ridge(x, y)
    assert_close(weight, expected[0], 1e-6)
    assert_close(bias, expected[1], 1e-6)
    assert_close(gcv_moments(moments(x, y)), gcv(x[:, :3], y), 1e-6)  # df is the rank
    assert mx.all(mx.isnan(solve_moments(moments(x, y), mx.array(0.0))[0])).item()  # an array is not read: NaN


def test_score_is_nan_when_nothing_is_left_to_validate_on():
    x, y, _ = rows(4, 3, 2)
    assert mx.isnan(gcv_moments(moments(x, y))).item()
    assert mx.isfinite(gcv_moments(moments(x, y), 0.1)).item()


def test_transformations():
    x, y, w = rows(30, 3, 2)
    batch = [mx.stack([a, a[::-1] + i]) for i, a in enumerate((x, y))]

    def weight(x, y):
        return solve_moments(moments(x, y), 0.5)[0]

    expected = mx.stack([weight(batch[0][i], batch[1][i]) for i in range(2)])
    assert_close(mx.vmap(weight)(*batch), expected, 1e-6)
    assert_close(mx.compile(weight)(x, y), expected[0], 1e-6)

    def loss(x, y):
        return mx.sum(weight(x, y) ** 2)

    gradients = mx.stack([mx.grad(loss)(batch[0][i], batch[1][i]) for i in range(2)])
    assert_close(mx.vmap(mx.grad(loss))(*batch), gradients, 1e-5)
    assert_close(mx.compile(mx.grad(loss))(x, y), gradients[0], 1e-5)


def score_of(x, y, w, l2):
    state = moments(x, y, w)
    weight, bias = solve_moments(state, l2, dtype=mx.float64)
    with mx.stream(mx.cpu):
        return mx.sum(weight**3) + mx.sum(bias**2) + gcv_moments(state, l2, dtype=mx.float64)


def reduced_score_of(x, y, w, l2):
    state = reduce_moments(moments(x, y, w))
    with mx.stream(mx.cpu):
        return mx.sum(solve_moments(state, l2, dtype=mx.float64)[0] ** 3) + mx.sum(state.xx**2)


@pytest.mark.parametrize("fn", [score_of, reduced_score_of])
@pytest.mark.parametrize("l2", ["zero", "array scalar", "per target", "per feature", "both"])
def test_gradients(fn, l2, monkeypatch):
    monkeypatch.setattr(core, "BLOCK", 16)  # several blocks, so that merges are differentiated too
    x, y, w = rows(12, 3, 2, dtype=mx.float64)
    with mx.stream(mx.cpu):
        w = w + 0.5  # a difference must not make a weight negative
        if isinstance(L2[l2], float):
            gradcheck(lambda x, y, w: fn(x, y, w, L2[l2]), x, y, w)
        else:
            gradcheck(fn, x, y, w, mx.array(L2[l2], mx.float64))


def test_second_order_gradients():
    x, y, w = rows(6, 2, 1, dtype=mx.float64)
    with mx.stream(mx.cpu):
        gradcheck(lambda x, w: reduced_score_of(x, y, w, 0.3) + score_of(x, y, w, 0.3), x, w + 0.5, order=2)


@pytest.mark.parametrize("n", [1, 3, 12, 64])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_no_rows_are_no_rows(n, weighted):
    x, y, w = mx.zeros((0, n)), mx.zeros((0, 2)), mx.zeros((0,)) if weighted else None
    state = moments(*rows(20, n, 2))

    def fn(x, y):
        return mx.sum(solve_moments(merge_moments(moments(x, y, w), state), 1.0)[0] ** 2)

    assert [g.shape for g in mx.grad(fn, argnums=(0, 1))(x, y)] == [(0, n), (0, 2)]
    assert mx.grad(lambda x: mx.sum(mx.grad(fn)(x, y)))(x).shape == (0, n)


def test_the_gradient_at_weight_zero_is_the_limit():
    x, y, w = rows(12, 3, 2, dtype=mx.float64)
    with mx.stream(mx.cpu):
        at, near = (mx.grad(score_of, argnums=(0, 1, 2))(x, y, w, 0.5) for w in (w, mx.maximum(w, 1e-9)))
        assert mx.any(w == 0).item()
        for a, b in zip(at, near, strict=True):
            assert_close(a, b, 1e-7)
