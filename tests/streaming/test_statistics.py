"""ReadoutStatistics: rows in pieces are rows at once; rows that leave leave nothing; nothing bad gets in."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import statsmodels.api as sm

from pinvnn.nn import LeastSquaresReadout
from pinvnn.streaming import Moments, ReadoutStatistics, _values, moments, solve_moments
from pinvnn.streaming import _moments as core
from tests.support.rows import assert_close, gcv, ridge, rows, to_numpy


def pieces(arrays, sizes):
    start = 0
    for size in sizes:
        yield [None if a is None else a[start : start + size] for a in arrays]
        start += size


def filled(m=40, n=3, k=2, seed=0, **kwargs):
    x, y, _ = rows(m, n, k, seed)
    return ReadoutStatistics(n, k, **kwargs).update(x, y)


def assert_same(a, b, tolerance):
    for left, right in zip(a.moments, b.moments, strict=True):
        assert_close(left, right, tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_streamed_is_batch(weighted, bias):
    x, y, w = rows(100, 5, 3, mean=2.0)
    stats = ReadoutStatistics(5, 3, bias=bias)
    for part in pieces((x, y, w if weighted else None), [1, 30, 0, 9, 60]):
        assert stats.update(*part) is stats
    assert stats.count == (mx.sum(w).item() if weighted else 100)
    weights = w if weighted else None
    for l2 in (0.0, 2.5):
        for got, expected in zip(stats.solve(l2), ridge(x, y, l2, weights, bias), strict=True):
            if expected is None:
                assert got is None
            else:
                assert got.dtype == mx.float32
                assert_close(got, expected, 1e-6)
        assert_close(stats.gcv(l2), gcv(x, y, l2, weights, bias), 1e-6)


def test_float32_rows_whose_mean_is_a_thousand_times_their_spread():
    x, y, _ = rows(100_000, 8, 2, mean=1000.0)
    stats = ReadoutStatistics(8, 2)
    for i in range(0, 100_000, 10_000):
        stats.update(x[i : i + 10_000], y[i : i + 10_000])
    expected = ridge(x, y)[0]
    assert_close(stats.solve()[0], expected, 1e-6)
    # The same by raw sums in float32, to show that the case is hard.
    mean = mx.mean(x, axis=0)
    raw = to_numpy(x.T @ x - 100_000 * mean[:, None] * mean)
    assert np.max(np.abs(raw - to_numpy(stats.moments.xx))) > 0.1 * np.max(raw)


def test_weight_two_is_the_row_given_twice():
    x, y, w = rows(30, 3, 2)
    index = mx.array(np.repeat(np.arange(30), np.array(w).astype(int)))
    assert_same(ReadoutStatistics(3, 2).update(x, y, w), ReadoutStatistics(3, 2).update(x[index], y[index]), 1e-13)


@pytest.mark.parametrize(("mean", "tolerance"), [(0.0, 1e-9), (1000.0, 1e-5)])
def test_downdate_undoes_update(mean, tolerance):
    x, y, w = rows(200, 4, 2, mean=mean)
    stats = ReadoutStatistics(4, 2).update(x[:100], y[:100])
    before = copy.copy(stats)
    # What comes and goes is a hundred times as large and lies elsewhere: 1e5 or 1e10 of what is there.
    extra = (100 * x[100:] + 50, 100 * y[100:], w[100:])
    stats.update(*extra)
    assert np.max(np.abs(to_numpy(stats.moments.xx))) > 1e3 * np.max(np.abs(to_numpy(before.moments.xx)))
    assert stats.downdate(*extra) is stats
    assert_same(stats, before, tolerance)
    assert_close(stats.solve()[0], before.solve()[0], 1e-5)


def test_downdate_of_everything_leaves_nothing():
    x, y, _ = rows(50, 3, 2, mean=5.0)
    stats = ReadoutStatistics(3, 2).update(x, y, mx.full((50,), 0.1)).downdate(x, y, mx.full((50,), 0.1))
    assert_same(stats, ReadoutStatistics(3, 2), 0)


def test_decay_is_a_smaller_weight():
    x, y, _ = rows(50, 3, 2, mean=5.0)
    stats = ReadoutStatistics(3, 2).update(x[:30], y[:30]).decay(0.25).update(x[30:], y[30:])
    weights = mx.array([0.25] * 30 + [1.0] * 20)
    assert_same(stats, ReadoutStatistics(3, 2).update(x, y, weights), 1e-13)
    stats.downdate(x[:30], y[:30], mx.full((30,), 0.25))
    assert_same(stats, ReadoutStatistics(3, 2).update(x[30:], y[30:]), 1e-12)
    assert_same(stats.decay(0), ReadoutStatistics(3, 2), 0)


def test_merge_takes_all_rows_and_leaves_the_other_alone():
    x, y, _ = rows(60, 3, 2, mean=5.0)
    parts = [ReadoutStatistics(3, 2).update(*part) for part in pieces((x, y), [10, 0, 50])]
    first, second, third = parts
    assert first.merge(second).merge(third) is first
    assert third.count == 50
    assert_same(first, ReadoutStatistics(3, 2).update(x, y), 1e-13)


def test_a_copy_is_independent():
    stats = filled()
    other = copy.copy(stats)
    other.update(*rows(10, 3, 2, seed=1)[:2])
    assert (stats.count, other.count) == (40, 50)


def test_all_reduce_of_one_process_changes_nothing():
    stats = filled()
    before = copy.copy(stats)
    assert stats.all_reduce() is stats
    assert_same(stats, before, 1e-14)


def test_statistics_take_any_array_like_rows():
    assert ReadoutStatistics(2, 1).update([[1.0, 2.0]], np.array([[3.0]])).count == 1


@pytest.mark.parametrize("view", [lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a[::-2]])
def test_arrays_of_negative_strides_are_copied(view):
    x, y = np.arange(12.0).reshape(4, 3), np.arange(8.0).reshape(4, 2)
    got, expected = ReadoutStatistics(3, 2).update(view(x), view(y)), [np.ascontiguousarray(view(a)) for a in (x, y)]
    assert_same(got, ReadoutStatistics(3, 2).update(*expected), 0)


def test_float64_rows_make_a_float64_readout():
    with mx.stream(mx.cpu):
        x, y, _ = rows(30, 3, 2, dtype=mx.float64)
        stats = ReadoutStatistics(3, 2).update(x.astype(mx.float32), y.astype(mx.float32))
        assert stats.solve()[0].dtype == mx.float32
        for other in (copy.copy(stats).update(x, y), ReadoutStatistics(3, 2).update(x, y).merge(stats)):
            assert [a.dtype for a in other.solve()] == [mx.float64] * 2
            assert other.gcv().dtype == mx.float64
        exact = ReadoutStatistics(3, 2).update(x, y)
        assert_close(exact.solve()[0], ridge(x, y)[0], 1e-13)


def test_no_rows_give_zeros():
    weight, bias = ReadoutStatistics(3, 2).solve()
    assert_close(weight, np.zeros((2, 3)), 0)
    assert_close(bias, np.zeros(2), 0)
    assert_close(ReadoutStatistics(3, 2).solve(1.0)[0], np.zeros((2, 3)), 0)


def test_a_readout_from_statistics_is_differentiable_and_keeps_no_graph():
    x, y, _ = rows(30, 3, 2)

    def streamed(scale):
        stats = ReadoutStatistics(3, 2)
        for part in pieces((scale * x, y), [10, 20]):
            stats.update(*part)
        stats.downdate(scale * x[:5], y[:5])
        return mx.sum(stats.decay(0.5).all_reduce().solve(0.5)[0] ** 2)

    def whole(scale):
        return mx.sum(solve_moments(moments(scale * x[5:], y[5:], mx.full((25,), 0.5)), 0.5)[0] ** 2)

    scale = mx.array([1.0, 2.0, 0.5])
    assert_close(mx.grad(streamed)(scale), mx.grad(whole)(scale), 1e-5)
    mx.eval(x, y)
    stats = ReadoutStatistics(3, 2).update(x, y)
    mx.synchronize()
    before = mx.get_active_memory()
    for _ in range(20):
        stats.update(mx.random.normal((10_000, 3)), mx.random.normal((10_000, 2)))
    mx.synchronize()
    assert mx.get_active_memory() - before < 10_000  # one batch takes 200 000


def test_an_update_holds_one_block_in_float64(monkeypatch):
    monkeypatch.setattr(core, "BLOCK", 2**12)
    x, y = mx.zeros((200_000, 8)), mx.zeros((200_000, 1))
    stats = ReadoutStatistics(8, 1)
    mx.eval(x, y)
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    stats.update(x, y)
    assert mx.get_peak_memory() - before < x.nbytes / 4  # a float64 copy takes twice x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l2", [0.0, 0.7, [[0.1], [2.0], [30.0]], [0.3, 5.0]], ids=str)
def test_uncertainty_is_that_of_the_layer(l2, weighted, bias):
    with mx.stream(mx.cpu):
        x, y, w = rows(40, 3, 2, mean=2.0, dtype=mx.float64)
        w, l2 = w if weighted else None, l2 if isinstance(l2, float) else mx.array(l2)
        got = ReadoutStatistics(3, 2, bias=bias).update(x, y, w).uncertainty(l2)
        expected = LeastSquaresReadout(3, 2, l2=l2, bias=bias).uncertainty(x, y, w)
        for name, part in expected._asdict().items():
            if name == "leverage" or part is None:
                assert getattr(got, name) is None
            else:
                assert_close(getattr(got, name), part, 1e-10)
        assert_close(got.predictive_std(x), expected.predictive_std(x), 1e-10)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_standard_errors_are_those_of_statsmodels(unit):
    with mx.stream(mx.cpu):
        x, y, _ = rows(40, 3, 1, mean=2.0, dtype=mx.float64)
        stats = ReadoutStatistics(3, 1)
        for part in pieces((unit * x, y), [1, 30, 9]):
            stats.update(*part)
        got = stats.uncertainty()
        fit = sm.OLS(np.array(y)[:, 0], sm.add_constant(unit * np.array(x))).fit()
        assert_close(np.sqrt(np.diagonal(got.weight_covariance[0])), fit.bse[1:], 1e-9)
        assert_close(np.sqrt(got.bias_variance), fit.bse[:1], 1e-9)
        assert_close(got.residual_variance, [fit.mse_resid], 1e-10)
        assert_close(got.degrees_of_freedom, [4.0], 1e-12)
        assert np.isnan(np.array(ReadoutStatistics(3, 1).update(x[:4], y[:4]).uncertainty().residual_variance)).all()


def test_uncertainty_of_collinear_features_is_that_of_the_minimum_norm():
    with mx.stream(mx.cpu):
        x, y, _ = rows(40, 3, 1, dtype=mx.float64)
        x = mx.concatenate([x, x[:, :1] + x[:, 1:2]], axis=1)
        got = ReadoutStatistics(4, 1).update(x, y).uncertainty()
        x, y = np.array(x - mx.mean(x, axis=0)), np.array(y - mx.mean(y, axis=0))
        variance = np.sum((y - x @ np.linalg.pinv(x) @ y) ** 2) / (40 - 3 - 1)
        assert_close(got.weight_covariance[0], variance * np.linalg.pinv(x.T @ x, rcond=1e-12), 1e-9)
        assert_close(got.residual_variance, [variance], 1e-10)


@pytest.mark.parametrize("hole", [mx.nan, mx.inf, -mx.inf])
@pytest.mark.parametrize("where", ["x", "y", "both"])
def test_a_row_of_weight_zero_takes_no_part_whatever_it_holds(where, hole):
    x, y, w = rows(30, 3, 2)
    absent = (w == 0)[:, None]
    assert mx.any(absent).item()
    kept = mx.array(np.flatnonzero(np.array(w)))
    expected = ReadoutStatistics(3, 2).update(x[kept], y[kept], w[kept])
    holes = [mx.where(absent, hole, a) if where in (name, "both") else a for name, a in [("x", x), ("y", y)]]
    stats = ReadoutStatistics(3, 2).update(*holes, w)
    assert_same(stats, expected, 1e-13)
    for got, part in zip(moments(*holes, w), expected.moments, strict=True):
        assert_close(got, part, 1e-13)
    assert_same(stats.update(x, y).downdate(*holes, w).downdate(x, y), ReadoutStatistics(3, 2), 1e-9)
    grads = mx.grad(lambda w: mx.sum(ReadoutStatistics(3, 2).update(x, y, w).solve(0.5)[0]))(w)
    assert_close(grads, mx.grad(lambda w: mx.sum(solve_moments(moments(x, y, w), 0.5)[0]))(w), 1e-6)
    assert np.abs(np.array(grads)[np.array(w) == 0]).min() > 0  # the gradient by a weight of 0 is exact


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_statistics_and_what_holds_them_can_be_copied_and_pickled(duplicate):
    with mx.stream(mx.cpu):
        stats = ReadoutStatistics(3, 2, bias=False).update(*rows(20, 3, 2, dtype=mx.float64)[:2])
        other = duplicate(stats)
        assert repr(other) == repr(stats) and other.dtype == mx.float64
        assert_same(other, stats, 0)
        assert all(part.dtype == mx.float64 for part in other.moments)
        other.update(*rows(10, 3, 2)[:2])
        assert (stats.count, other.count) == (20, 30)
        module = nn.Linear(3, 2)
        module.stats = stats
        assert_same(duplicate(module).stats, stats, 0)


def test_one_target_may_be_a_vector_and_sizes_integers_of_numpy():
    x, y, w = rows(30, 3, 1)
    expected = ReadoutStatistics(3, 1).update(x, y, w)
    assert_same(ReadoutStatistics(np.int64(3), np.uint8(1)).update(x, y[:, 0], w), expected, 0)
    assert_same(ReadoutStatistics(3, 1).update(x.reshape(5, 6, 3), y.reshape(5, 6), w.reshape(5, 6)), expected, 1e-14)
    assert_close(moments(x, y[:, 0], w).xy, expected.moments.xy, 1e-14)
    assert ReadoutStatistics(3, 1).update(x[0], y[0, 0]).count == 1


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("rank", [5, 3, 0])
@pytest.mark.parametrize("l2", [0.0, 1e-6, 1.0, 1e6, [0.1, 5.0], [[0.1], [2.0], [3.0], [1.0], [9.0]]], ids=str)
def test_values_by_numpy_are_those_of_the_lazy_functions(l2, rank, scale, dtype, monkeypatch):
    with mx.stream(mx.cpu):
        rng = np.random.default_rng(0)
        x = scale * rng.normal(size=(40, 5))
        x[:, rank:] = x[:, :rank] @ rng.normal(size=(rank, 5 - rank))
        x, y = mx.array(x, dtype), mx.array(rng.normal(size=(40, 2)), dtype)
        l2 = l2 * scale**2 if isinstance(l2, float) else mx.array(l2) * scale**2
        m = ReadoutStatistics(5, 2).update(x, y).moments
        for got, part in zip(m, moments(x, y), strict=True):
            assert_close(got, part, 1e-13)
        weight, _ = solve_moments(m, l2, dtype=mx.float64)
        monkeypatch.setattr(_values, "evaluated", lambda *_: False)  # as in a compiled graph
        # The smallest penalty leaves a condition number of some 1e8.
        assert_close(weight, solve_moments(m, l2, dtype=mx.float64)[0], 1e-7)


X = mx.zeros((4, 3))
Y = mx.zeros((4, 2))
NAN_IN_ROW_2 = mx.where(mx.arange(12).reshape(4, 3) == 7, mx.nan, X)
REFUSED = {
    "features": ((mx.zeros((4, 5)), Y), ValueError, r"x must have 3 features \(input_dims\), but got shape \(4, 5\)"),
    "targets": ((X, mx.zeros((4, 1))), ValueError, r"y must have 2 targets \(output_dims\), but got shape \(4, 1\)"),
    "vector": ((X, mx.zeros((2,))), ValueError, r"the same rows, but got shapes \(4, 3\) and \(2,\).*y\[:, None\]"),
    "rows": ((X, Y[:3]), ValueError, r"the same rows, but got shapes \(4, 3\) and \(3, 2\)"),
    "scalar": ((mx.array(1.0), Y), ValueError, r"x must have at least 1 dimensions, but got shape \(\)"),
    "string": (("abc", Y), TypeError, "x must be an array, but got str"),
    "complex": ((X.astype(mx.complex64), Y), TypeError, "x must be real, but got complex64"),
    "weights shape": ((X, Y, mx.ones((4, 1))), ValueError, r"weights .* shape \(4,\), but got shape \(4, 1\)"),
    "objects": ((np.array([[1.0, 2.0, 3.0]] * 4, object), Y), TypeError, r"x .* got ndarray of object. Pass numbers"),
    "ragged": (([[1.0, 2.0, 3.0], [1.0]], Y), TypeError, "x must be .* got list of lists that differ in"),
    "weights type": ((X, Y, object()), TypeError, "weights must be an array, but got object"),
    "negative": ((X, Y, mx.array([1.0, 0.0, -2.0, 1.0])), ValueError, "non-negative and finite, but got -2.0 in row 2"),
    "nan weight": ((X, Y, mx.array([1.0, 0.0, 0.0, np.nan])), ValueError, "but got nan in row 3"),
    "inf weight": ((X, Y, mx.array([np.inf, 0.0, 0.0, 0.0])), ValueError, "but got inf in row 0"),
    "nan row": ((NAN_IN_ROW_2, Y), ValueError, "x must be finite, but got nan in row 2"),
    "inf row": ((X, Y + mx.array([0.0, mx.inf])), ValueError, "y must be finite, but got inf in row 0"),
    "nan row of weight 1": ((NAN_IN_ROW_2, Y, mx.array([0.0, 0, 1, 0])), ValueError, "x must be finite, but got nan"),
    "time stamps": ((mx.array([[2**24 + 1] * 3] * 4), Y), ValueError, "integers in x must be exact .* 16777217.*float"),
}


@pytest.mark.parametrize("method", ["update", "downdate"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_changes_nothing(method, case):
    arguments, error, message = REFUSED[case]
    stats = filled()
    before = stats.moments
    with pytest.raises(error, match=rf"^\[pinvnn.ReadoutStatistics.{method}\] .*{message}"):
        getattr(stats, method)(*arguments)
    assert stats.moments is before


def test_rows_inside_of_a_graph_are_refused():
    stats = filled()
    with pytest.raises(ValueError, match="update. it must be called outside of mx.compile and mx.vmap.*moments there"):
        mx.compile(lambda x: stats.update(x, Y).moments)(X)
    assert stats.count == 40


def test_overflow_is_refused():
    with mx.stream(mx.cpu):
        large = mx.array([[1e200], [-1e200]], mx.float64)
        with pytest.raises(ValueError, match="squares must stay below the largest float64, but got an overflow"):
            ReadoutStatistics(1, 1).update(large, large)


def bad_value(call, message):
    return call, ValueError, message


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        bad_value(lambda s: s.downdate(*rows(41, 3, 2)[:2]), "must not weigh more than those held, but got 41.0"),
        bad_value(lambda s: s.downdate(*(100 * a for a in rows(9, 3, 2)[:2])), "rows must be among those held"),
        bad_value(lambda s: s.decay(1.5), "factor must be between 0 and 1, but got 1.5"),
        bad_value(lambda s: s.decay(float("nan")), "factor must be between 0 and 1, but got nan"),
        bad_value(lambda s: s.merge(ReadoutStatistics(4, 2)), "other must have input_dims=3, but got 4"),
        bad_value(lambda s: s.merge(ReadoutStatistics(3, 1)), "other must have output_dims=2, but got 1"),
        bad_value(lambda s: s.merge(ReadoutStatistics(3, 2, bias=False)), "other must have bias=True, but got False"),
        (lambda s: s.merge(s.moments), TypeError, "other must be ReadoutStatistics, but got Moments"),
        bad_value(lambda s: s.solve(-1.0), "l2 must be non-negative and finite, but got -1.0"),
        bad_value(lambda s: s.gcv(float("inf")), "l2 must be non-negative and finite, but got inf"),
        bad_value(lambda s: s.uncertainty(-2.0), "l2 must be non-negative and finite, but got -2.0"),
        bad_value(lambda s: s.solve(mx.ones((3,))), r"l2 must broadcast against the solution \(3, 2\)"),
        bad_value(lambda s: s.solve(mx.ones((5, 3, 2))), r"l2 must have at most 2 dimensions, but got shape \(5,"),
        bad_value(lambda s: ReadoutStatistics(-1, 2), "input_dims must be a non-negative integer, but got -1"),
        bad_value(lambda s: ReadoutStatistics(3, 2.5), "output_dims must be a non-negative integer, but got 2.5"),
    ],
)
def test_errors(call, error, message):
    stats = filled()
    before = stats.moments
    with pytest.raises(error, match=rf"^\[pinvnn\.[A-Za-z_.]+\] .*{message}"):
        call(stats)
    assert stats.moments is before


@pytest.mark.parametrize("method", ["solve", "gcv", "uncertainty"])
def test_errors_name_the_method_that_was_called(method):
    with pytest.raises(ValueError, match=rf"^\[pinvnn.ReadoutStatistics.{method}\] l2 must be non-negative"):
        getattr(filled(), method)(-1)


def test_repr():
    assert repr(filled()) == "ReadoutStatistics(input_dims=3, output_dims=2, bias=True, count=40)"


def test_state_is_small():
    assert isinstance(filled().moments, Moments)
    assert sum(part.size for part in filled(m=500, n=7, k=3).moments) == 1 + 7 + 3 + 49 + 21 + 3
