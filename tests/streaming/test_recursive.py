"""RecursiveLeastSquares is at every row the optimum of its objective over all rows so far."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from pinvnn.streaming import ReadoutStatistics, RecursiveLeastSquares
from tests.support.rows import assert_close, ridge, rows


def objective_optimum(x, y, t, l2, forgetting):
    """Minimizes sum_i f^(t-i) |y_i - W x_i - b|^2 + f^t l2 |W|^2 over the first t rows, densely."""
    return ridge(x[:t], y[:t], l2 * forgetting**t, forgetting ** np.arange(t - 1.0, -1, -1))


@pytest.mark.parametrize("forgetting", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("l2", [10.0, 0.01, 0.0])
@pytest.mark.parametrize("batch", [None, 1, 7])
def test_recursive_is_batch(forgetting, l2, batch):
    x, y, _ = rows(42, 3, 2, mean=2.0)
    rls = RecursiveLeastSquares(3, 2, l2, forgetting)
    step = batch or 1
    for t in range(0, 42, step):
        assert rls.update(*((x[t], y[t]) if batch is None else (x[t : t + step], y[t : t + step]))) is rls
        if t % 7 == 0 or batch == 7:
            weight, bias = objective_optimum(x, y, t + step, l2, forgetting)
            assert_close(rls.weight, weight, 1e-5)
            assert_close(rls.bias, bias, 1e-5)
    assert rls.count == pytest.approx(np.sum(forgetting ** np.arange(42)), rel=1e-12)
    assert_close(rls(x), np.array(x) @ np.array(rls.weight).T + np.array(rls.bias), 1e-6)


def test_it_starts_at_zero_and_the_first_row_sets_the_intercept():
    rls = RecursiveLeastSquares(3, 2, l2=1.0)
    assert_close(rls.weight, np.zeros((2, 3)), 0)
    assert_close(rls.bias, np.zeros(2), 0)
    rls.update(mx.ones((3,)), mx.array([4.0, 5.0]))
    assert_close(rls.weight, np.zeros((2, 3)), 0)
    assert_close(rls.bias, [4.0, 5.0], 0)


def test_a_long_stream_that_stops_visiting_a_direction_stays_right():
    # The prior underflows and nothing is seen of the last feature for 5000 rows: a recursion on the inverse blows up.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, 3)).astype(np.float32)
    x[1000:, 2] = 1.0
    y = x @ np.array([[1.0], [-2.0], [3.0]], np.float32) + 100
    rls = RecursiveLeastSquares(3, 1, l2=1.0, forgetting=0.9)
    for i in range(0, 6000, 100):
        rls.update(mx.array(x[i : i + 100]), mx.array(y[i : i + 100]))
    assert_close(rls.weight, [[1.0, -2.0, 0.0]], 1e-5)  # minimum norm: the intercept explains what is constant
    assert_close(rls.bias, [103.0], 1e-5)


def test_float64():
    with mx.stream(mx.cpu):
        x, y, _ = rows(30, 3, 2, dtype=mx.float64)
        rls = RecursiveLeastSquares(3, 2, 0.1, 0.8).update(x, y)
        assert_close(rls.weight, objective_optimum(x, y, 30, 0.1, 0.8)[0], 1e-12)


def test_refused_rows_forget_nothing():
    x, y, _ = rows(10, 3, 2)
    rls = RecursiveLeastSquares(3, 2, 0.1, 0.5).update(x, y)
    weight, count = rls.weight, rls.count
    with pytest.raises(ValueError, match=r"^\[pinvnn.RecursiveLeastSquares.update\] x must be finite, but got nan in"):
        rls.update(x * mx.nan, y)
    with pytest.raises(ValueError, match="y must have 2 targets"):
        rls.update(x, y[:, :1])
    assert rls.count == count
    assert_close(rls.weight, weight, 0)
    rls.update(x[:0], y[:0])
    assert rls.count == count


def test_without_an_intercept():
    x, y, _ = rows(42, 3, 2, mean=2.0)
    rls = RecursiveLeastSquares(3, 2, 0.1, 0.9, bias=False).update(x, y)
    expected, _ = ridge(x, y, 0.1 * 0.9**42, 0.9 ** np.arange(41.0, -1, -1), bias=False)
    assert_close(rls.weight, expected, 1e-5)
    assert rls.bias is None
    assert_close(rls(x), np.array(x) @ expected.T, 1e-5)


def through_a_file(rls, folder):
    rls.save(folder / "rls.safetensors")
    assert [p.name for p in folder.iterdir()] == ["rls.safetensors"]
    return RecursiveLeastSquares.load(folder / "rls.safetensors")


COPIES = {
    "copy": lambda rls, _: copy.copy(rls),
    "deepcopy": lambda rls, _: copy.deepcopy(rls),
    "pickle": lambda rls, _: pickle.loads(pickle.dumps(rls)),
    "file": through_a_file,
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
def test_a_copy_goes_on_as_the_original_would(kind, bias, dtype, tmp_path):
    with mx.stream(mx.cpu):
        x, y, _ = rows(42, 3, 2, mean=2.0, dtype=dtype)
        rls = RecursiveLeastSquares(3, 2, 0.1, 0.9, bias).update(x[:20], y[:20])
        weight = rls.weight
        other = COPIES[kind](rls, tmp_path)
        assert repr(other) == repr(rls)
        assert_close(other.weight, weight, 0)
        other.update(x[20:], y[20:])
        assert_close(rls.weight, weight, 0)
        assert_close(other.weight, rls.update(x[20:], y[20:]).weight, 0)
        assert other.weight.dtype == dtype


def test_a_module_that_holds_one_can_be_copied():
    module = nn.Linear(2, 2)
    module.online = RecursiveLeastSquares(2, 1, 1.0).update(mx.ones((3, 2)), mx.ones((3,)))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.online.count == 3


def test_files_of_others(tmp_path):
    ReadoutStatistics(3, 2).save(tmp_path / "s")
    name = r"^\[pinvnn.RecursiveLeastSquares"
    with pytest.raises(ValueError, match=name + r".load\] the file must have the format pinvnn.Recursive"):
        RecursiveLeastSquares.load(tmp_path / "s")
    with pytest.raises(FileNotFoundError, match=name + r".save\] the folder .*, but got .*none\. Make"):
        RecursiveLeastSquares(3, 2, 1.0).save(tmp_path / "none" / "s")


def test_one_target_may_be_a_vector():
    x, y, _ = rows(20, 3, 1)
    expected = RecursiveLeastSquares(3, 1, 0.1, 0.9).update(x, y).weight
    rls = RecursiveLeastSquares(np.int32(3), np.int64(1), 0.1, 0.9).update(x[:19], y[:19, 0]).update(x[19], y[19, 0])
    assert_close(rls.weight, expected, 1e-6)


def test_repr():
    rls = RecursiveLeastSquares(3, 2, 1.0, 0.5).update(*rows(2, 3, 2)[:2])
    assert repr(rls) == "RecursiveLeastSquares(input_dims=3, output_dims=2, l2=1, forgetting=0.5, bias=True, count=1.5)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RecursiveLeastSquares(3, 2, -1.0), "l2 must be non-negative and finite, but got -1.0"),
        (lambda: RecursiveLeastSquares(3, 2, float("nan")), "l2 must be non-negative and finite, but got nan"),
        (lambda: RecursiveLeastSquares(3, 2, 1.0, 0.0), "forgetting must be above 0 and at most 1, but got 0.0"),
        (lambda: RecursiveLeastSquares(3, 2, 1.0, 1.1), "forgetting must be above 0 and at most 1, but got 1.1"),
        (lambda: RecursiveLeastSquares(3, 2, 1.0).update(mx.ones((2, 2, 3)), mx.ones((2,))), "x must be one row"),
        (lambda: RecursiveLeastSquares(-1, 2, 1.0), "input_dims must be a non-negative integer, but got -1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=rf"^\[pinvnn.RecursiveLeastSquares[a-z.]*\] {message}"):
        call()
