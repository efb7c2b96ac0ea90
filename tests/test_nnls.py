"""Bounded and non-negative least squares: SciPy's minimizers, their derivatives, graphs, and input that is bad."""

import math
import tracemalloc

import mlx.core as mx
import numpy as np
import pytest
import scipy.optimize

from pinvnn import lsq_linear, lstsq, nnls, ridge
from pinvnn._factor import bounded_numpy, bounded_values
from pinvnn.testing import adjoint_check, gradcheck
from tests.support.cases import array, float64, numpy

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

F64, F32 = mx.float64, mx.float32
SHAPES = {"tall": (12, 5), "square": (6, 6), "wide": (4, 7)}
# Of SciPy's residual; and of |A| |x| + |b|, for a residual of rounding noise.
ABOVE = {F64: (1e-9, 1e-14), F32: (2e-5, 1e-6)}
BOUNDS = {"non-negative": (0.0, math.inf), "box": (-0.125, 0.25), "above": (-math.inf, 0.0625), "none": (None, None)}


def problem(shape, dtype=F64, seed=0, batch=(), decades=4):
    """Columns of lengths over four decades."""
    rng = np.random.default_rng(seed)
    m, n = SHAPES[shape]
    a = rng.standard_normal((*batch, m, n)) * 10 ** np.linspace(-decades / 2, decades / 2, n)
    return array(a, dtype), array(rng.standard_normal((*batch, m, 2)), dtype)


def check(a, b, x, lower, upper, dtype):
    """x (n,) is feasible, no worse than SciPy's, and meets the conditions of Karush, Kuhn and Tucker."""
    lower, upper = (np.broadcast_to(np.array(v, float), x.shape) for v in (lower, upper))
    assert ((x >= lower) & (x <= upper)).all()
    theirs = scipy.optimize.lsq_linear(a, b, (lower, upper), method="bvls", tol=1e-14).x
    size = np.linalg.norm(a, axis=0) @ np.abs(x) + np.linalg.norm(b)
    relative, absolute = ABOVE[dtype]
    rest = b - a @ x
    assert np.linalg.norm(rest) <= np.linalg.norm(b - a @ theirs) * (1 + relative) + absolute * size
    slope = -(a / np.linalg.norm(a, axis=0)).T @ rest
    noise = (1e-11 if dtype == F64 else 3e-6) * size
    assert (slope[x > lower] <= noise).all() and (slope[x < upper] >= -noise).all()


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_minimizer_is_scipy_s(shape, bounds, dtype):
    a, b = problem(shape, dtype, batch=(2,))
    lower, upper = BOUNDS[bounds]
    x = numpy(lsq_linear(a, b, (lower, upper)))
    ends = -math.inf if lower is None else lower, math.inf if upper is None else upper
    for i in range(2):
        for t in range(2):
            check(numpy(a)[i], numpy(b)[i, :, t], x[i, :, t], *ends, dtype)


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("decades", [0, 4])
@pytest.mark.parametrize(("m", "n"), [(6, 6), (4, 7), (5, 40)])
def test_float32_is_as_good_as_scipy_s_solution_rounded(m, n, decades, size):
    """Of many solutions one as large as the box would lose in rounding what a small one keeps."""
    rng = np.random.default_rng(m)
    a = (rng.standard_normal((m, n)) * 10 ** np.linspace(-decades / 2, decades / 2, n)).astype(np.float32)
    b = (size * rng.standard_normal(m)).astype(np.float32)
    x = numpy(lsq_linear(mx.array(a), mx.array(b), (-1, 1))).astype(float)
    a, b = a.astype(float), b.astype(float)
    theirs = scipy.optimize.lsq_linear(a, b, (-1, 1), method="bvls", tol=1e-14).x
    rounded = theirs.astype(np.float32).astype(float)
    limit = np.linalg.norm(b - a @ theirs) * (1 + 2e-5) + 2 * np.linalg.norm(b - a @ rounded)
    assert np.linalg.norm(b - a @ x) <= limit + 1e-7 * np.linalg.norm(b)


def _nearly_dependent(cond, noise, seed, m=40, n=8):
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((rows, n)))[0] for rows in (m, n))
    a = u * np.geomspace(1, 1 / cond, n) @ v.T
    return a, a @ np.maximum(rng.standard_normal(n), 0) + noise * rng.standard_normal(m)


def _above_scipy(compiled, cond, noise):
    """How far residuals of 30 problems are above SciPy's, relative to b; NaN where there is no solution."""
    cases = [_nearly_dependent(cond, noise, seed) for seed in range(30)]
    a, b = (array(np.stack(v), F64) for v in ([a for a, _ in cases], [b[:, None] for _, b in cases]))
    x = numpy((mx.compile(nnls) if compiled else nnls)(a, b))[..., 0]
    rest = [np.linalg.norm(b - a @ ours) - scipy.optimize.nnls(a, b)[1] for (a, b), ours in zip(cases, x, strict=True)]
    return np.array(rest) / [np.linalg.norm(b) for _, b in cases]


@pytest.mark.parametrize("noise", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("cond", [1e2, 1e4, 1e6, 3e6, 1e7, 1e8])
def test_columns_that_are_nearly_dependent(cond, noise):
    """Above 1e6 the Gram matrix no longer says which variables are free."""
    assert (_above_scipy(False, cond, noise) <= 1e-9).all()


@pytest.mark.parametrize("cond", [1e6, 1e8, 1e10])
def test_a_graph_gives_nan_where_the_gram_matrix_has_lost_the_digits(cond):
    above = _above_scipy(True, cond, 1.0)
    found = np.isfinite(above)
    assert found.any() and (above[found] <= 1e-9).all()


def test_a_wide_problem_within_loose_bounds_is_lstsq_and_so_is_its_gradient():
    a, b = problem("wide", decades=0)
    w = float64([1.0, 0.5, 2.0, 0.3])

    def loss(solve):
        return mx.value_and_grad(lambda a, b, w: mx.sum(mx.power(solve(a, b, w), 3)), argnums=(0, 1, 2))(a, b, w)

    found = loss(lambda a, b, w: lsq_linear(a, b, (-100, 100), weights=w))
    right = loss(lambda a, b, w: lstsq(a, b, weights=w).solution)
    np.testing.assert_allclose(found[0].item(), right[0].item(), rtol=1e-12)
    for slope, expected in zip(found[1], right[1], strict=True):
        np.testing.assert_allclose(numpy(slope), numpy(expected), rtol=1e-9, atol=1e-11)


def test_a_wide_problem_has_derivatives_beside_its_bounds():
    a, b = problem("wide", decades=0)

    def fn(a, b, lower, upper):
        return lsq_linear(a, b, (lower, upper))

    ends = float64(np.linspace(-0.3, -0.1, 7)[:, None]), float64([0.15, 0.2])
    held = (numpy(fn(a, b, *ends)) == numpy(ends[0])).sum(axis=0)
    assert ((0 < held) & (held < 4)).all()  # the columns of the others are dependent, or nearly so
    gradcheck(fn, a, b, *ends)
    slope = mx.grad(lambda l2: mx.sum(lsq_linear(a, b, (-1, 1), l2=l2)))
    assert math.isnan(slope(float64(0.0)).item()) and math.isfinite(slope(float64(0.1)).item())
    # Of two targets only one has room around 0.
    both = numpy(mx.grad(lambda b: mx.sum(lsq_linear(a, b, (float64([-1.0, 0.0]), 1.0))))(b))
    for t, low in enumerate((-1.0, 0.0)):
        alone = mx.grad(lambda b, t=t, low=low: mx.sum(lsq_linear(a, b[:, t], (low, 1.0))))(b)
        np.testing.assert_allclose(both[:, t], numpy(alone)[:, t], atol=1e-12)


def test_non_negative_is_scipy_s_nnls():
    a, b = problem("tall", batch=(3,))
    x = numpy(nnls(a, b))
    theirs = [[scipy.optimize.nnls(numpy(a)[i], numpy(b)[i, :, t])[0] for t in range(2)] for i in range(3)]
    np.testing.assert_allclose(x, np.moveaxis(theirs, 1, 2), rtol=1e-11)
    assert (x == 0).any()


def test_weights_penalties_and_bounds_by_entry():
    a, b = problem("tall", decades=0)
    w, l2 = float64(np.linspace(0, 2, 12)), float64(np.linspace(0.1, 3, 10).reshape(5, 2))
    lower, upper = float64([[-0.1], [0], [-math.inf], [0.05], [0.08]]), float64([0.1, math.inf])
    x = numpy(lsq_linear(a, b, (lower, upper), l2=l2, weights=w))
    root = np.sqrt(numpy(w))[:, None]
    for t in range(2):
        rows = np.concatenate([root * numpy(a), np.diag(np.sqrt(numpy(l2)[:, t]))])
        rhs = np.concatenate([root[:, 0] * numpy(b)[:, t], np.zeros(5)])
        check(rows, rhs, x[:, t], numpy(lower)[:, 0], numpy(upper)[t], F64)


def test_bounds_that_do_not_bind_give_ridge_and_equal_ones_hold():
    a, b = problem("tall", decades=0)
    np.testing.assert_allclose(numpy(lsq_linear(a, b, (-100, 100), l2=0.5)), numpy(ridge(a, b, 0.5)), rtol=1e-12)
    assert (numpy(lsq_linear(a, b, (0.25, 0.25))) == 0.25).all()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_comes_back_as_it_went_in(dtype):
    a, b = problem("tall", F32, decades=0)
    a, b = a.astype(dtype), b.astype(dtype)
    x = nnls(a, b)
    assert x.dtype == dtype
    np.testing.assert_allclose(numpy(x), numpy(nnls(a.astype(F32), b.astype(F32))), rtol=1e-2)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_pivoting_does_not_solve_is_solved_one_variable_at_a_time(shape, monkeypatch):
    a, b = problem(shape, batch=(2,))
    x = numpy(nnls(a, b))
    real = bounded_numpy._pivot
    monkeypatch.setattr(bounded_numpy, "_pivot", lambda p, s: (*real(p, s)[:2], np.zeros(len(p.q), bool)))
    again = numpy(nnls(a, b))
    for i in range(2):
        check(numpy(a)[i], numpy(b)[i, :, 0], again[i, :, 0], 0.0, math.inf, F64)
    if shape != "wide":
        np.testing.assert_allclose(again, x, rtol=1e-11)


def test_the_matrix_of_many_targets_is_not_copied_for_each():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((60, 48))
    a[:, 0] = a[:, 1] + 1e-4 * a[:, 0]  # float64 solutions are refined
    a, b = array(a, F64), array(rng.standard_normal((60, 10000)), F64)
    tracemalloc.start()
    try:
        mx.eval(nnls(a, b))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10000 * 48 * 48 * 8 / 2


def test_a_rank_deficient_matrix_gives_a_minimizer_and_no_derivative_that_would_be_arbitrary():
    a, b = problem("tall", decades=0)
    a = mx.concatenate([a, a[:, :1]], axis=1)
    b = b + 3 * a[:, :1]
    x = numpy(nnls(a, b))
    check(numpy(a), numpy(b)[:, 0], x[:, 0], 0.0, math.inf, F64)
    assert np.isfinite(x).all()
    gradient = numpy(mx.grad(lambda b: mx.sum(nnls(a, b)))(b))
    free = (x[[0, 5]] > 0).all(axis=0)
    assert np.isnan(gradient[:, free]).all() and np.isfinite(gradient[:, ~free]).all()


# --- Derivatives ------------------------------------------------------------------------------------------------------


def arguments(dtype=F64):
    a, b = problem("tall", dtype, batch=(2,), decades=0)
    rng = np.random.default_rng(1)
    w, l2 = rng.uniform(0.5, 2, 12), rng.uniform(0.1, 1, (5, 2))
    lower, upper = rng.uniform(-0.2, 0, (5, 1)), rng.uniform(0.1, 0.3, 2)
    return [a, b, *(array(v, dtype) for v in (w, l2, lower, upper))]


def non_negative(a, b, w, l2):
    return nnls(a, b, l2=l2, weights=w)


def bounded(a, b, w, l2, lower, upper):
    return lsq_linear(a, b, (lower, upper), l2=l2, weights=w)


FUNCTIONS = {"nnls": (non_negative, 4), "lsq_linear": (bounded, 6)}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name, order):
    fn, count = FUNCTIONS[name]
    gradcheck(fn, *arguments()[:count], order=order)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_adjoint_identity_in_float32(name):
    fn, count = FUNCTIONS[name]
    adjoint_check(fn, *arguments(F32)[:count])


def test_the_gradient_is_that_of_differences_of_scipy_s_solutions():
    a, b = (v[0] if v.ndim == 3 else v for v in arguments()[:2])
    b, h = b[:, 0], 1e-6
    bar = np.arange(1.0, 6)
    found = [numpy(g) for g in mx.grad(lambda a, b: mx.sum(nnls(a, b) * float64(bar)), argnums=(0, 1))(a, b)]
    a, b = numpy(a), numpy(b)
    for i, x in enumerate((a, b)):
        for at in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[at] = h
            moved = [[v + s * step if j == i else v for j, v in enumerate((a, b))] for s in (1, -1)]
            ends = [scipy.optimize.nnls(*pair)[0] for pair in moved]
            np.testing.assert_allclose(found[i][at], bar @ (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-8)


def test_on_a_kink_the_variable_stays_on_its_bound():
    """Minimizer (1, 0) with a multiplier of 0: b_2 > 0 would free the second variable, b_2 < 0 not."""
    a, b = mx.eye(2, dtype=F64), float64([1.0, 0.0])
    np.testing.assert_array_equal(numpy(mx.grad(lambda b: mx.sum(nnls(a, b)))(b)), [1, 0])


# --- Graphs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_compile_and_vmap_give_the_same(shape):
    a, b = problem(shape, batch=(3,), decades=1)
    eager, l2 = numpy(nnls(a, b, l2=1e-3)), 1e-3
    for fn in (mx.compile(lambda a, b: nnls(a, b, l2=l2)), mx.vmap(lambda a, b: nnls(a, b, l2=l2))):
        np.testing.assert_allclose(numpy(fn(a, b)), eager, rtol=1e-9, atol=1e-13)


def test_vmap_of_the_gradient(monkeypatch):
    monkeypatch.setattr(bounded_values, "_ROUNDS_IN_GRAPH", 6)  # They are built twice.
    a, b = problem("tall", batch=(3,), decades=0)
    slope = mx.grad(lambda a, b: mx.sum(mx.square(nnls(a, b))), argnums=(0, 1))
    for found, right in zip(mx.vmap(slope)(a, b), slope(a, b), strict=True):
        np.testing.assert_allclose(numpy(found), numpy(right), rtol=1e-9, atol=1e-12)


def test_a_graph_gives_nan_where_the_conditions_are_not_met(monkeypatch):
    a, b = problem("tall", batch=(4,))
    right = numpy(nnls(a, b))
    monkeypatch.setattr(bounded_values, "_ROUNDS_IN_GRAPH", 0)  # the start alone
    x = numpy(mx.compile(nnls)(a, b))
    wrong = np.isnan(x).any(axis=1)
    assert wrong.any() and not wrong.all()
    np.testing.assert_allclose(np.moveaxis(x, 1, 2)[~wrong], np.moveaxis(right, 1, 2)[~wrong], rtol=1e-9)


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [lambda f: f, mx.compile], ids=["eager", "compiled"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_own_matrix(wrapper, bad):
    a, b = problem("tall", batch=(2,))
    right, a = numpy(nnls(a, b)), numpy(a)
    a[1, 3, 2] = bad
    x = numpy(wrapper(nnls)(float64(a), b))
    assert np.isnan(x[1]).all()
    np.testing.assert_allclose(x[0], right[0], rtol=1e-11)


def test_values_in_arrays_that_make_no_sense_are_nan():
    a, b = problem("tall")
    assert np.isnan(numpy(nnls(a, b, weights=float64([-1.0, *[1.0] * 11])))).all()
    assert np.isnan(numpy(nnls(a, b, l2=float64([[-1.0], *[[1.0]] * 4])))).all()
    x = numpy(lsq_linear(a, b, (float64([0.0, 2.0]), 1.0)))
    assert np.isfinite(x[:, 0]).all() and np.isnan(x[:, 1]).all()
    assert np.isnan(numpy(lsq_linear(a, b, (0.0, float64([math.nan]))))).all()


def test_empty():
    assert nnls(mx.zeros((0, 3)), mx.zeros((0, 2))).tolist() == [[0, 0]] * 3
    assert lsq_linear(mx.zeros((0, 2)), mx.zeros((0,)), (1, 2)).tolist() == [1, 1]
    assert nnls(mx.zeros((4, 0)), mx.zeros((4,))).shape == (0,)
    assert nnls(mx.zeros((0, 4, 3)), mx.zeros((4, 2))).shape == (0, 3, 2)
    assert nnls(mx.zeros((4, 3)), mx.zeros((4, 0))).shape == (3, 0)


A, B = mx.ones((4, 3)), mx.ones((4, 2))
ERRORS = {
    "order": (lambda: lsq_linear(A, B, (1, 0)), ValueError, "lower must not exceed upper, but got 1.0 and 0.0"),
    "nan": (lambda: lsq_linear(A, B, (math.nan, 0)), ValueError, "lower must not exceed upper"),
    "room": (lambda: lsq_linear(A, B, (math.inf, None)), ValueError, "some finite number must be within the bounds"),
    "pair": (lambda: lsq_linear(A, B, 0), TypeError, r"bounds must be a pair \(lower, upper\), but got 0"),
    "shape": (lambda: lsq_linear(A, B, (mx.zeros(3), None)), ValueError, "lower must broadcast against the solution"),
    "complex bound": (lambda: lsq_linear(A, B, (None, mx.zeros(2) * 1j)), TypeError, "upper must be real"),
    "complex": (lambda: nnls(A * 1j, B), TypeError, "a must be real, but got complex64"),
    "rows": (lambda: nnls(A, B[:3]), ValueError, "the same number of rows, but got 4 and 3"),
    "l2": (lambda: nnls(A, B, l2=-1), ValueError, "l2 must be non-negative"),
    "weights": (lambda: nnls(A, B, weights=mx.ones(3)), ValueError, "one entry for each of the 4 rows"),
    "batch": (lambda: nnls(mx.ones((2, 4, 3)), mx.ones((3, 4, 2))), ValueError, "batch dimensions must broadcast"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, error, match = ERRORS[case]
    with pytest.raises(error, match=match):
        call()
