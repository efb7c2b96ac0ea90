"""Leave-one-out predictions are those of actual refits, and so are their derivatives; generalized cross validation."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import RidgeCV

from pinvnn.nn import LeastSquaresReadout
from pinvnn.streaming import ReadoutStatistics
from pinvnn.testing import gradcheck, random_matrix

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

N, K = 3, 2
ROWS = {"tall": 9, "one more": N + 1, "square": N, "wide": 2}
L2 = {"none": None, "number": (), "target": (K,), "feature": (N, 1), "both": (N, K)}


def array(x, dtype=mx.float64):
    return mx.array(np.asarray(x), dtype)


def data(m, dtype=mx.float64, seed=0):
    rng = np.random.default_rng(seed)
    x, y, w = rng.normal(size=(m, N)) + 2, rng.normal(size=(m, K)), rng.uniform(0.3, 3, size=m)
    return array(x, dtype), array(y, dtype), array(w, dtype)


def penalty(kind):
    rng = np.random.default_rng(5)
    return 0.0 if L2[kind] is None else array(rng.uniform(0.3, 2, size=L2[kind]))


def refits(readout, x, y, w=None, unit=False):
    """Predictions for each row of fits to the others (or with its weight less 1), one by one."""
    out = []
    for i in range(x.shape[0]):
        ones = np.ones(x.shape[0]) if w is None else np.array(w, np.float64)
        ones[i] = max(ones[i] - 1, 0) if unit else 0
        kept = mx.array(np.flatnonzero(ones))
        out.append(readout.adapt(x[kept], y[kept], x[i : i + 1], array(ones, x.dtype)[kept])[0])
    return np.array(mx.stack(out))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", L2)
@pytest.mark.parametrize("m", ROWS.values(), ids=ROWS)
def test_leave_one_out_is_a_refit_without_the_row(m, kind, bias, dtype):
    x, y, w = data(m, dtype)
    readout = LeastSquaresReadout(N, K, l2=penalty(kind), bias=bias)
    for weights in (None, w):
        expected = refits(readout, x, y, weights)
        got = np.array(readout.loo_predictions(x, y, weights))
        np.testing.assert_allclose(got, expected, atol=(1e-9 if dtype == mx.float64 else 1e-4) * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["none", "number", "both"])
@pytest.mark.parametrize("m", [9, N])
def test_removing_a_unit_leaves_the_rest_of_the_weight(m, kind):
    x, y, _ = data(m)
    w = array([3, 1, 0.5, 2, 1.5, 1, 2.5, 0, 1][:m])
    readout = LeastSquaresReadout(N, K, l2=penalty(kind))
    got = np.array(readout.loo_predictions(x, y, w, removed="unit"))
    np.testing.assert_allclose(got, refits(readout, x, y, w, unit=True), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["none", "number", "both"])
def test_weight_two_is_the_row_twice(kind):
    x, y, _ = data(6)
    counts = np.array([2, 1, 1, 3, 1, 1])
    rows = mx.array(np.repeat(np.arange(6), counts))
    readout = LeastSquaresReadout(N, K, l2=penalty(kind))
    unit = readout.loo_predictions(x, y, array(counts), removed="unit")
    repeated = readout.loo_predictions(x[rows], y[rows])
    np.testing.assert_allclose(np.array(unit[rows]), np.array(repeated), rtol=1e-9)
    losses = readout.loo_loss(x, y, array(counts), removed="unit"), readout.loo_loss(x[rows], y[rows])
    np.testing.assert_allclose(losses[0].item(), losses[1].item(), rtol=1e-9)
    np.testing.assert_allclose(readout.gcv(x, y, array(counts)).item(), readout.gcv(x[rows], y[rows]).item(), rtol=1e-9)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_row_that_alone_carries_a_feature(weighted, dtype):
    x, y, w = data(12, dtype)
    only = mx.arange(12)[:, None] == 3
    x = mx.where(mx.arange(N) == 1, only.astype(dtype), x)
    weights = w if weighted else None
    readout = LeastSquaresReadout(N, K)
    expected = refits(readout, x, y, weights)
    np.testing.assert_allclose(np.array(readout.loo_predictions(x, y, weights)), expected, rtol=1e-4)
    unpenalized = LeastSquaresReadout(N, K, l2=mx.zeros((K,))).loo_predictions(x, y, weights)
    assert np.flatnonzero(np.isnan(np.array(unpenalized)).any(axis=1)).tolist() == [3]


def test_rows_that_are_twice_in_a_wide_problem():
    x, y, _ = data(3)
    wide = mx.concatenate([x, x[::-1] * 2], axis=1)[mx.array([0, 1, 2, 0])]
    readout = LeastSquaresReadout(2 * N, K)
    y = y[mx.array([0, 1, 2, 1])]
    np.testing.assert_allclose(np.array(readout.loo_predictions(wide, y)), refits(readout, wide, y), rtol=1e-8)


def test_the_loss_is_the_weighted_mean_square():
    x, y, w = data(9)
    readout = LeastSquaresReadout(N, K, l2=0.5)
    e = np.array(y - readout.loo_predictions(x, y, w))
    expected = np.sum(np.array(w)[:, None] * e**2) / (K * np.sum(np.array(w)))
    np.testing.assert_allclose(readout.loo_loss(x, y, w).item(), expected, rtol=1e-12)
    assert readout.loo_loss(x, y).item() == pytest.approx(np.mean(np.array(y - readout.loo_predictions(x, y)) ** 2))


def test_scikit_learns_ridge_cv_agrees():
    x, y, _ = data(30)
    rival = RidgeCV(alphas=[0.7], store_cv_results=True, scoring=None).fit(np.array(x), np.array(y))
    readout = LeastSquaresReadout(N, K, l2=0.7)
    np.testing.assert_allclose(readout.loo_loss(x, y).item(), rival.cv_results_.mean(), rtol=1e-9)


def test_only_row_and_no_row():
    x, y, _ = data(1)
    readout = LeastSquaresReadout(N, K, l2=0.5)
    assert np.isnan(np.array(readout.loo_predictions(x, y))).all()
    assert np.isnan(np.array(LeastSquaresReadout(N, K).loo_predictions(x, y))).all()
    assert readout.loo_predictions(x[:0], y[:0]).shape == (0, K)
    without = LeastSquaresReadout(N, K, l2=0.5, bias=False).loo_predictions(x, y)
    np.testing.assert_allclose(np.array(without), 0, atol=1e-12)  # no rows give zeros


@pytest.mark.parametrize("kind", ["none", "number", "both"])
@pytest.mark.parametrize("n", [N, 3 * N])
def test_batches_and_vmap(n, kind):
    rng = np.random.default_rng(0)
    l2 = 0.0 if L2[kind] is None else array(rng.uniform(0.3, 2, size=() if kind == "number" else (n, K)))
    x, y, w = (array(rng.uniform(0.5, 2, size=(4, 8, *s)), mx.float32) for s in ((n,), (K,), ()))
    readout = LeastSquaresReadout(n, K, l2=l2)
    for method in (readout.loo_predictions, readout.loo_loss):
        single = np.array(mx.stack([method(x[i], y[i], w[i]) for i in range(4)]))
        for fn in (method, mx.vmap(method)):
            np.testing.assert_allclose(np.array(fn(x, y, w)), single, rtol=2e-4, atol=1e-5)
    slopes = mx.vmap(mx.grad(readout.loo_loss))(x, y, w)
    np.testing.assert_allclose(np.array(slopes[1]), np.array(mx.grad(readout.loo_loss)(x[1], y[1], w[1])), rtol=1e-3)


def test_vectors_dtypes_and_compile():
    x, y, w = data(9, mx.float32)
    readout = LeastSquaresReadout(N, 1, l2=0.5)
    assert readout.loo_predictions(x, y[:, 0]).shape == (9,)
    half = readout.loo_predictions(x.astype(mx.float16), y[:, 0].astype(mx.float16))
    assert half.dtype == mx.float16
    compiled = mx.compile(mx.value_and_grad(readout.loo_loss))(x, y[:, 0], w)
    plain = mx.value_and_grad(readout.loo_loss)(x, y[:, 0], w)
    for a, b in zip(compiled, plain, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-4, atol=1e-7)


def test_float32_agrees_with_float64_at_condition_1e4():
    rng = np.random.default_rng(0)
    x = array(rng.normal(size=(60, N)) * [1, 1e-2, 1e-4] @ np.linalg.qr(rng.normal(size=(N, N)))[0], mx.float32)
    y, _, w = data(60, mx.float32, seed=1)
    wide = tuple(v.astype(mx.float64) for v in (x, y, w))
    for bias, tolerance in ((True, 1e-3), (False, 1e-6)):  # rounding the centred rows costs cond(A) eps
        for l2 in (0.0, 1e-7):
            loss = mx.value_and_grad(LeastSquaresReadout(N, N, l2=l2, bias=bias).loo_loss, argnums=(0, 1, 2))
            got, want = loss(x, y, w), loss(*wide)
            assert abs(got[0].item() - want[0].item()) < 1e-5 * want[0].item()
            for slope, expected in zip(*(map(np.array, v[1]) for v in (got, want)), strict=True):
                assert np.linalg.norm(slope - expected) < tolerance * np.linalg.norm(expected)


# --- To what the problem determines, over conditions and penalties --------------------------------


def numpy_refits(x, y, w, l2, bias):
    """Errors of fits to the other rows in float64 by LAPACK, with a penalty as more rows: not by a Gram matrix."""
    errors = []
    for i in range(len(y)):
        keep = np.arange(len(y)) != i
        rows, targets, of = x[keep], y[keep], w[keep]
        mean, level = (of @ rows / of.sum(), of @ targets / of.sum()) if bias else (0 * x[0], 0 * y[0])
        root = np.sqrt(of)[:, None]
        a, b = root * (rows - mean), root * (targets - level)
        if np.any(l2):
            a = np.vstack([a, np.diag(np.sqrt(np.broadcast_to(l2, x.shape[1])))])
            b = np.vstack([b, np.zeros((x.shape[1], y.shape[1]))])
        norms = np.linalg.norm(a, axis=0) if np.any(l2) else 1.0
        solution = np.linalg.lstsq(a / norms, b, rcond=0 if np.any(l2) else min(x.shape) * 2.0**-52)[0]
        errors.append(y[i] - (x[i] - mean) @ (solution.T / norms).T - level)
    return np.array(errors)


def conditioned(m, n, cond, seed=0):
    rng = np.random.default_rng(seed)
    k = min(m, n)
    u, v = (np.linalg.qr(rng.normal(size=(size, k)))[0] for size in (m, n))
    x = u * np.logspace(0, -np.log10(cond), k) @ v.T
    return x, x @ rng.normal(size=(n, K)) + 0.1 * rng.normal(size=(m, K)), rng.uniform(0.3, 3, size=m)


def errors_of(x, y, w, l2, bias, dtype=mx.float64):
    l2 = l2 if isinstance(l2, float) else array(l2)[:, None]
    readout = LeastSquaresReadout(x.shape[1], y.shape[1], l2=l2, bias=bias)
    arrays = [array(v, dtype) for v in (x, y)] + [None if w is None else array(w, dtype)]
    return np.array(arrays[1]).astype(float) - np.array(readout.loo_predictions(*arrays)).astype(float)


def close(got, want, tolerance):
    assert np.max(np.abs(got - want)) <= tolerance * np.max(np.abs(want))  # False for NaN


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 5), (6, 5), (7, 5), (5, 8), (40, 5)], ids=str)
def test_leave_one_out_over_conditions_and_twelve_decades_of_penalties(shape, bias, weighted):
    for cond in (1.0, 1e4, 1e8, 1e12):
        x, y, w = conditioned(*shape, cond)
        w = w if weighted else None
        for l2 in (0.0, 1e-12, 1e-8, 1e-4, 1.0, np.logspace(-6, 0, shape[1])):
            want = numpy_refits(x, y, np.ones(len(x)) if w is None else w, l2, bias)
            size = 1e3 if np.ndim(l2) else l2**-0.5 if l2 else np.inf
            close(errors_of(x, y, w, l2, bias), want, 1e-9 + 1e4 * 2.0**-52 * min(cond, size))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 5), (7, 5), (40, 5)], ids=str)
def test_leave_one_out_over_conditions_in_float32(shape, bias):
    for cond in (1.0, 1e3, 1e5):
        x, y, w = (v.astype(np.float32).astype(float) for v in conditioned(*shape, cond))
        for l2 in (0.0, 1e-8, 1e-4, 1.0):
            got = errors_of(x, y, w, l2, bias, mx.float32)
            close(got, numpy_refits(x, y, w, l2, bias), 3e-6 + 30 * 2.0**-23 * min(cond, l2**-0.5 if l2 else np.inf))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
@pytest.mark.parametrize("m", [8, 60])
@pytest.mark.parametrize("bias", [True, False])
def test_a_row_that_alone_carries_a_feature_under_a_small_penalty(bias, m, dtype):
    rng = np.random.default_rng(1)
    x, y, w = (v.astype(np.float32) for v in (rng.normal(size=(m, 4)), rng.normal(size=(m, 2)), rng.uniform(1, 2, m)))
    x[:, 1] = np.arange(m) == 3
    for l2 in (0.0, 1e-12, 1e-8, 1e-4):
        want = numpy_refits(*(v.astype(float) for v in (x, y, w)), l2, bias)
        close(errors_of(x, y, w, l2, bias, dtype), want, 1e-5 + 10 * 2.0**-52 / l2 if l2 else 1e-5)


@pytest.mark.parametrize("wrapper", [lambda f: f, lambda f: lambda *a: mx.vmap(f)(*(v[None] for v in a))[0]])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 5), (6, 5), (4, 8), (40, 4)], ids=str)
def test_a_row_that_is_much_larger_than_the_others(shape, bias, wrapper, request):
    """It leaves 1e-8 to 1e-14 of its own, or nothing but what a penalty leaves."""
    m, n = shape
    eager = "lambda0" in request.node.name
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(m, n)), rng.normal(size=(m, 1)), rng.uniform(0.5, 2, m)
    none = np.arange(n) == 0  # of the features has no penalty
    for size in (1e4, 1e6):
        a = x * np.where(np.arange(m) == 3, size, 1.0)[:, None]
        b = a @ np.ones((n, 1)) + y
        for l2 in (1e-3, 1.0, np.where(none, 0.0, 1.0)):
            if m > 2 * n and not eager and np.ndim(l2) and size > 1e4:
                continue  # NaN: a graph takes vectors there without a penalty alone
            penalty = l2 if np.ndim(l2) == 0 else array(l2[:, None])
            readout = LeastSquaresReadout(n, 1, l2=penalty, bias=bias)
            want = numpy_refits(a, b, w, l2, bias)
            got = b - np.array(wrapper(readout.loo_predictions)(array(a), array(b), array(w)))
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6 * np.abs(y).max(), err_msg=f"{size}, {l2}")


LARGE = {  # rows, features, intercept, penalty, dtype; each was wrong without a refit
    "float64": (14, 6, True, None, mx.float64),
    "float64 no intercept": (12, 4, False, None, mx.float64),
    "float64 one feature": (6, 1, True, None, mx.float64),
    "float64 penalty": (10, 6, True, 1e-4, mx.float64),
    "float64 by feature": (12, 3, False, "feature", mx.float64),
    "float32 rank": (8, 6, True, None, mx.float32),
    "float32 wide": (5, 6, False, None, mx.float32),
    "float32 one more": (5, 4, True, None, mx.float32),
    "float32 tall": (15, 3, True, None, mx.float32),
    "float32 penalty": (7, 4, False, 1e-3, mx.float32),
}


def with_a_large_row(m, n, l2, dtype, size, seed=0):
    rng = np.random.default_rng(seed)
    x, y, w = rng.normal(size=(m, n)), rng.normal(size=(m, 1)), rng.uniform(0.5, 2, m)
    x[3] *= size
    x, y, w = (np.array(array(v, dtype)).astype(float) for v in (x, x @ np.ones((n, 1)) + y, w))
    return x, y, w, np.linspace(0.5, 2, n) if l2 == "feature" else l2 or 0.0


def readout_of(n, l2, bias):
    return LeastSquaresReadout(n, 1, l2=l2 if np.ndim(l2) == 0 else array(l2[:, None]), bias=bias)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", LARGE)
def test_a_row_beyond_the_digits_of_singular_vectors_is_refitted(case, weighted):
    """What the others say about its direction is lost in rounding, or does not count for the rank beside it."""
    m, n, bias, penalty, dtype = LARGE[case]
    for size in (1e7, 1e9):
        x, y, w, l2 = with_a_large_row(m, n, penalty, dtype, size)
        w = w if weighted else None
        got = errors_of(x, y, w, l2, bias, dtype)[3]
        want = numpy_refits(x, y, np.ones(m) if w is None else w, l2, bias)[3]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * abs(y[3, 0]), err_msg=f"{size}")


def test_a_large_row_of_a_batch_and_one_that_stays():
    x, y, _, _ = with_a_large_row(12, 4, None, mx.float64, 1e8)
    small, of_small, _, _ = with_a_large_row(12, 4, None, mx.float64, 1.0, seed=1)
    readout = LeastSquaresReadout(4, 1)
    batch = readout.loo_predictions(array(np.stack([x, small])), array(np.stack([y, of_small])))
    for i, (rows, targets) in enumerate([(x, y), (small, of_small)]):
        want = targets - numpy_refits(rows, targets, np.ones(12), 0.0, True)
        np.testing.assert_allclose(np.array(batch[i]), want, rtol=1e-6, atol=1e-9 * np.abs(want).max())
    w = array(np.where(np.arange(12) == 3, 2.0, 1.0))  # of which 1 stays
    unit = readout.loo_predictions(array(x), array(y), w, removed="unit")
    np.testing.assert_allclose(unit[3].item(), y[3].item(), rtol=1e-6)


@pytest.mark.parametrize("l2", [None, 1.0, "feature"])
@pytest.mark.parametrize("bias", [True, False])
def test_derivatives_of_a_refitted_row(bias, l2):
    m, n = 12, 4
    x, y, _, l2 = with_a_large_row(m, n, l2, mx.float64, 1e7)
    readout = readout_of(n, l2, bias)
    slopes = mx.grad(lambda x, y: (y - readout.loo_predictions(x, y))[3, 0], argnums=(0, 1))(array(x), array(y))

    def refit(x, y):
        keep = mx.array([i for i in range(m) if i != 3])
        return (y[3] - readout.adapt(x[keep], y[keep], x[3:4])[0])[0]

    for got, want in zip(slopes, mx.grad(refit, argnums=(0, 1))(array(x), array(y)), strict=True):
        size = np.abs(np.array(want)).max(axis=1, keepdims=True)
        np.testing.assert_allclose(np.array(got) / size, np.array(want) / size, atol=1e-9)


@pytest.mark.parametrize("wrapper", [mx.compile, lambda f: lambda *a: mx.vmap(f)(*(v[None] for v in a))[0]])
@pytest.mark.parametrize("case", LARGE)
def test_a_large_row_is_right_or_nan_in_graphs(case, wrapper):
    m, n, bias, penalty, dtype = LARGE[case]
    for size in (1e4, 1e6, 1e8):
        x, y, _, l2 = with_a_large_row(m, n, penalty, dtype, size)
        readout = readout_of(n, l2, bias)
        got = y - np.array(wrapper(readout.loo_predictions)(array(x, dtype), array(y, dtype))).astype(float)
        want = numpy_refits(x, y, np.ones(m), l2, bias)[3]
        assert np.isnan(got[3]) or abs(got[3] - want) < 2e-3 * abs(want) + 1e-6 * abs(y[3, 0]), f"{size}"


@pytest.mark.parametrize("seed", range(6))
def test_a_mean_that_a_large_row_has_moved_is_seen_in_graphs(seed):
    """One feature has no condition that would tell of it."""
    for size in (1e5, 1e6, 3e6):
        x, y, _, l2 = with_a_large_row(9, 1, 2e-3, mx.float32, size, seed)
        predictions = mx.vmap(readout_of(1, l2, True).loo_predictions)
        got = y[3] - predictions(array(x, mx.float32)[None], array(y, mx.float32)[None])[0, 3].item()
        want = numpy_refits(x, y, np.ones(9), l2, True)[3]
        assert np.isnan(got) or abs(got - want) < 3e-3 * abs(want)


def test_a_feature_twice_of_which_one_is_penalized():
    """The penalized one has nothing left but rounding noise, whose size is none of the others' business."""
    rng = np.random.default_rng(9)
    x, y, w = rng.normal(size=(6, 1)).repeat(2, axis=1), rng.normal(size=(6, 1)), rng.uniform(0.3, 3, 6)
    x[3] *= 1e2
    for l2 in (np.array([0.0, 2e-3]), np.array([5.0, 0.0])):
        for bias in (True, False):
            close(errors_of(x, y, w, l2, bias), numpy_refits(x, y, w, l2, bias), 1e-9)


def test_predictions_beside_a_large_row_keep_the_digits_of_float32():
    """Its target moves the mean by 1e5, which the others, if centred in float32, would be rounded by."""
    x, y, _, _ = with_a_large_row(14, 2, 1.0, mx.float32, 1e6)
    y[np.arange(14) != 3] -= x[np.arange(14) != 3] @ np.ones((2, 1))
    y = np.array(mx.array(y, mx.float32)).astype(float)
    got = np.array(LeastSquaresReadout(2, 1, l2=1.0).loo_predictions(array(x, mx.float32), array(y, mx.float32)))
    want = y - numpy_refits(x, y, np.ones(14), 1.0, True)
    others = np.arange(14) != 3
    np.testing.assert_allclose(got[others], want[others], atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_float32_gradients_of_rows_that_leave_little_are_right_or_nan(bias):
    readout = LeastSquaresReadout(4, 1, l2=1.0, bias=bias)
    for size in (1e1, 1e2, 1e3, 1e4):
        x, y, _, _ = with_a_large_row(12, 4, None, mx.float32, size)
        of_row = mx.grad(lambda x, y: (y - readout.loo_predictions(x, y))[3, 0])
        want = np.array(of_row(array(x), array(y)))
        rows = np.abs(want).max(axis=1, keepdims=True)
        for wrapper, tolerance in ((lambda f: f, 1e-4), (mx.compile, 1e-2)):
            got = np.array(wrapper(of_row)(array(x, mx.float32), array(y, mx.float32)))
            right = np.max(np.abs(got - want) / rows) < tolerance
            assert right or (wrapper is mx.compile and np.isnan(got).all()), f"{size}"


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    m=st.integers(4, 14), n=st.integers(1, 8), bias=st.booleans(), weighted=st.booleans(), seed=st.integers(0, 999),
    exponents=st.lists(st.integers(-3, 3), min_size=8, max_size=8), units=st.integers(-12, 12), l2=st.integers(-12, 1),
)
def test_units_order_and_penalties(m, n, bias, weighted, seed, exponents, units, l2):
    rng = np.random.default_rng(seed)
    x, y, w = rng.normal(size=(m, n)), rng.normal(size=(m, K)), rng.uniform(0.3, 3, size=m) if weighted else None
    scale, order = 10.0 ** np.array(exponents[:n]), rng.permutation(m)
    ones = np.ones(m) if w is None else w
    # A column in other units, with its penalty in the units of its coefficient, is the same problem.
    want = numpy_refits(x, y, ones, 10.0**l2, bias)
    of = None if w is None else w[order]
    got = errors_of((x * scale)[order], y[order] * 10.0**units, of, 10.0**l2 * scale**2, bias)
    close(got * 10.0**-units, want[order], 1e-5)
    close(errors_of(x[order], y[order], of, 10.0**l2, bias), want[order], 1e-5)


@pytest.mark.parametrize("shape", [(5, 5), (8, 5)], ids=str)
def test_derivatives_under_a_small_penalty(shape):
    x, y, w = (array(v) for v in conditioned(*shape, 10.0))
    gradcheck(LeastSquaresReadout(5, K, l2=1e-6).loo_loss, x, y, w, rtol=1e-4)


@pytest.mark.parametrize("l2", [1e-10, 1e-6, 1.0])
@pytest.mark.parametrize("m", [5, 6, 9])
def test_gcv_over_penalties_is_that_of_singular_values(m, l2):
    x, y, _ = conditioned(m, 5, 10.0)
    a, b = x - x.mean(0), y - y.mean(0)
    u, s, _ = np.linalg.svd(a, full_matrices=False)
    rank = min(5, m - 1)
    u, c = u[:, :rank], l2 / (s[:rank] ** 2 + l2)
    beta = u.T @ b
    outside = (b - u @ beta) if m > rank + 1 else 0 * b
    free = m - 1 - rank + c.sum()
    want = np.mean(m * np.sum((outside + u @ (c[:, None] * beta)) ** 2, axis=0) / free**2)
    got = LeastSquaresReadout(5, K, l2=l2).gcv(array(x), array(y)).item()
    streamed = ReadoutStatistics(5, K).update(array(x), array(y)).gcv(l2).item()
    np.testing.assert_allclose([got, streamed], want, rtol=1e-6)


# --- Derivatives ----------------------------------------------------------------------------------

CASES = [
    ("loo_loss", "tall", "number", True, 2),
    ("loo_loss", "tall", "none", True, 2),
    ("loo_loss", "tall", "none", False, 1),
    ("loo_loss", "tall", "target", False, 2),
    ("loo_loss", "tall", "both", True, 2),
    ("loo_loss", "square", "none", False, 2),
    ("loo_loss", "square", "none", True, 1),
    ("loo_loss", "wide", "number", False, 2),
    ("loo_loss", "wide", "number", True, 1),
    ("loo_loss", "wide", "target", False, 1),
    ("loo_loss", "one more", "feature", True, 1),
    ("loo_predictions", "tall", "number", True, 1),
    ("loo_predictions", "wide", "none", False, 1),
    ("gcv", "tall", "number", True, 2),
    ("gcv", "tall", "none", True, 1),
    ("gcv", "tall", "both", False, 1),
    ("gcv", "wide", "number", False, 1),
]


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("size", [1e-22, 1e-18, 1e-12])
@pytest.mark.parametrize("m", [5, 9])
@pytest.mark.parametrize("kind", ["number", "feature", "both"])
def test_a_row_that_alone_carries_a_direction_under_penalties_below_rounding(kind, m, size):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(m, 3)), rng.normal(size=(m, 2))
    x[:, 2] = x[:, 1]
    x[1, 2] += 1.0  # row 1 alone tells features 1 and 2 apart
    l2 = {"number": np.array(size), "feature": size * np.array([[1.0], [1.0], [4.0]])}.get(kind)
    l2 = size * np.array([[1.0, 2.0], [1.0, 3.0], [4.0, 1.0]]) if l2 is None else l2
    penalties = np.broadcast_to(l2, (3, 2))
    others = np.arange(m) != 1
    rows, mean = x[others] - x[others].mean(axis=0), y[others].mean(axis=0)
    expected = []
    for t in range(2):  # of all solutions the one of least penalty: in features scaled by its root
        root = np.sqrt(penalties[:, t])
        weight = np.linalg.lstsq(rows / root * size**0.5, (y[others] - mean)[:, t], rcond=1e-10)[0] * size**0.5 / root
        expected.append(mean[t] + (x[1] - x[others].mean(axis=0)) @ weight)
    model = LeastSquaresReadout(3, 2, l2=mx.array(l2, mx.float64))
    got = model.loo_predictions(mx.array(x, mx.float64), mx.array(y, mx.float64))[1]
    np.testing.assert_allclose(np.array(got), expected, rtol=1e-5 + 1e-15 / max(size, 1e-13))


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("bias", [True, False])
def test_a_row_that_leaves_almost_nothing_where_values_are_unknown(bias, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4))
    x[3] *= size
    y = x @ rng.normal(size=(4, 1)) + rng.normal(size=(40, 1))
    x, y = (np.array(mx.array(v, mx.float32)).astype(float) for v in (x, y))
    others = np.arange(40) != 3
    x_mean, y_mean = (v[others].mean(axis=0) * bias for v in (x, y))
    expected = y_mean + (x[3] - x_mean) @ np.linalg.lstsq(x[others] - x_mean, y[others] - y_mean)[0]
    model = LeastSquaresReadout(4, 1, bias=bias)
    arrays = [mx.array(v, mx.float32)[None] for v in (x, y)]
    got = mx.vmap(model.loo_predictions)(*arrays)[0, 3].item()
    assert got == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize(("method", "rows", "kind", "weighted", "order"), CASES)
def test_derivatives(method, rows, kind, weighted, order):
    x, y, w = data(ROWS[rows] + (rows == "wide"))
    if rows == "wide":
        x = mx.concatenate([x, x[:, ::-1] ** 2], axis=1)
    n = x.shape[1]
    moving = [x, y, *([w] if weighted else []), *([] if kind == "none" else [wide_penalty(kind, n)])]

    def fn(x, y, *rest):
        rest = list(rest)
        weights = rest.pop(0) if weighted else None
        readout = LeastSquaresReadout(n, K, l2=rest[0] if rest else 0.0)
        return getattr(readout, method)(x, y, weights)

    gradcheck(fn, *moving, order=order)


def wide_penalty(kind, n):
    l2 = penalty(kind)
    return l2 if l2.ndim < 2 else mx.broadcast_to(l2[:1], (n, l2.shape[1]))


def test_derivatives_of_units_removed():
    x, y, _ = data(7)
    w = array([3, 1.2, 0.5, 2, 1.5, 0.8, 2.5])
    readout = LeastSquaresReadout(N, K, l2=0.5)
    gradcheck(lambda *args: readout.loo_loss(*args, removed="unit"), x, y, w, order=2)


def test_derivatives_at_a_lower_rank():
    u, v = random_matrix((8, 2), dtype=mx.float64), random_matrix((2, N), dtype=mx.float64, seed=1)
    y, w = data(8)[1:]
    gradcheck(lambda u, y: LeastSquaresReadout(N, K).loo_loss(u @ v, y, w), u, y, order=2)


def test_a_feature_that_is_constant_passes_its_gradient_on():
    x, y, _ = data(7)
    x = mx.where(mx.arange(N) == 1, 4.0, x).astype(mx.float64)
    readout = LeastSquaresReadout(N, K, l2=0.5)
    gradcheck(readout.loo_loss, x, y)


# --- Generalized cross validation -----------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", L2)
def test_gcv_is_that_of_the_streamed_statistics(kind, bias):
    x, y, w = data(9)
    score = LeastSquaresReadout(N, K, l2=penalty(kind), bias=bias).gcv(x, y, w)
    streamed = ReadoutStatistics(N, K, bias=bias).update(x, y, w).gcv(penalty(kind))
    np.testing.assert_allclose(score.item(), streamed.item(), rtol=1e-9)


def test_gcv_of_a_wide_problem_is_that_of_its_primal_form():
    x, y, _ = data(5)
    wide = mx.concatenate([x, x**2], axis=1)
    readout = LeastSquaresReadout(2 * N, K, l2=array([0.3, 2.0]))
    ones = mx.ones((5,), mx.float64)  # weights ask for the primal form
    np.testing.assert_allclose(readout.gcv(wide, y).item(), readout.gcv(wide, y, ones).item(), rtol=1e-9)
    assert np.isnan(LeastSquaresReadout(2 * N, K).gcv(wide, y).item())


@pytest.mark.parametrize("method", ["loo_predictions", "loo_loss"])
def test_an_unknown_way_of_removing(method):
    with pytest.raises(ValueError, match=r"removed must be \"row\" or \"unit\", but got 'half'. Take \"row\"\."):
        getattr(LeastSquaresReadout(N, K), method)(mx.zeros((5, N)), mx.zeros((5, K)), removed="half")
