"""Values of lstsq: solution, residuals, rank and singular values for every shape, dtype, rank and weight."""

import mlx.core as mx
import numpy as np
import pytest

from pinvnn import lstsq, pinv
from tests.support.cases import (
    DTYPES,
    RTOL,
    SHAPES,
    array,
    close,
    deficient,
    error,
    gaussian,
    norm_error,
    numpy,
    real,
    with_values,
)

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

NAN, INF = float("nan"), float("inf")


def reference(a, b, w=None, rcond=1e-5):
    """NumPy, one matrix at a time: solution, sums of squares, singular values."""
    a, b = numpy(a), numpy(b)
    w = np.ones(a.shape[-2]) if w is None else numpy(w)
    vector = b.ndim == 1
    b = b[:, None] if vector else b
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2], w.shape[:-1])
    a, b = (np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, b))
    root = np.sqrt(np.broadcast_to(w, (*batch, w.shape[-1])))[..., None]
    x = np.empty((*batch, a.shape[-1], b.shape[-1]), np.result_type(a, b))
    for i in np.ndindex(*batch):
        x[i] = np.linalg.lstsq(root[i] * a[i], root[i] * b[i], rcond=rcond)[0]
    rest = np.sum(np.abs(root * (b - a @ x)) ** 2, axis=-2)
    s = np.linalg.svd(root * a, compute_uv=False)
    return (x[..., 0], rest[..., 0], s) if vector else (x, rest, s)


def check(result, want, dtype, factor=1):
    x, rest, s = want
    rtol = factor * RTOL[dtype]
    close(result.solution, x, rtol)
    assert result.residuals.dtype == result.singular_values.dtype == real(dtype)
    assert result.rank.dtype == mx.int32
    np.testing.assert_allclose(numpy(result.residuals), rest, rtol=10 * rtol, atol=rtol * np.max(np.abs(x)) ** 2)
    np.testing.assert_allclose(numpy(result.singular_values), s, rtol=rtol, atol=rtol * np.max(s))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("targets", [(), (1,), (2,)])
@pytest.mark.parametrize("shape", [*SHAPES.values(), (2000, 5)])
def test_full_rank(shape, targets, dtype):
    a, b = gaussian(shape, dtype), gaussian((shape[0], *targets), dtype, 1)
    result = lstsq(a, b)
    check(result, reference(a, b), dtype)
    assert int(result.rank) == min(shape)
    assert result.solution.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("of_a", "of_b"),
    [
        ((2, 6, 3), (2, 6, 2)),
        ((2, 6, 3), (6, 2)),
        ((6, 3), (2, 6, 2)),
        ((2, 1, 6, 3), (3, 6, 1)),
        ((2, 3, 6), (2, 3, 1)),
        ((2, 6, 3), (6,)),
        ((2, 2, 3, 6), (3,)),
    ],
)
def test_batches_broadcast(of_a, of_b, weighted, dtype):
    a, b = gaussian(of_a, dtype), gaussian(of_b, dtype, 1)
    w = array(np.random.default_rng(2).uniform(0.5, 2, of_a[:-1]), real(dtype)) if weighted else None
    result = lstsq(a, b, weights=w)
    check(result, (*reference(a, b, w)[:2], reference(a, gaussian(of_a[-2:-1], dtype), w)[2]), dtype, 3)
    assert result.rank.shape == of_a[:-2] and np.all(np.array(result.rank) == 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (2, 7, 4)])
def test_rank_deficient(shape, weighted, dtype):
    a, b = deficient(shape, 2, dtype), gaussian((*shape[:-1], 2), dtype, 1)
    w = array(np.random.default_rng(2).uniform(0.5, 2, shape[-2]), real(dtype)) if weighted else None
    result = lstsq(a, b, weights=w)
    x, rest, s = reference(a, b, w)
    close(result.solution, x, 20 * RTOL[dtype])
    close(result.residuals, rest, 100 * RTOL[dtype])
    close(result.singular_values, s, 2e-7 if dtype != mx.float64 else 1e-14)
    assert np.all(np.array(result.rank) == 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
@pytest.mark.parametrize("weighted", [False, True])
def test_truncated(weighted, shape, dtype):
    x = with_values(*shape, [2.0, 1.0, 0.5, 0.1])
    a, b = array(x, dtype), gaussian((shape[0], 2), dtype, 1)
    w = array(np.random.default_rng(2).uniform(0.5, 2, shape[0]), real(dtype)) if weighted else None
    result = lstsq(a, b, weights=w, rtol=0.3)
    check(result, reference(a, b, w, rcond=0.3), dtype, 10)


# --- Weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_a_weight_counts_rows(shape, dtype):
    """Weight 2 equals the row given twice, weight 0 the row left out."""
    a, b = gaussian(shape, dtype), gaussian((shape[0], 2), dtype, 1)
    times = [2, 1, 0] * (shape[0] // 3)
    rows = mx.array(np.repeat(np.arange(shape[0]), times))
    result, repeated = lstsq(a, b, weights=array(times, real(dtype))), lstsq(a[rows], b[rows])
    close(result.solution, numpy(repeated.solution), 10 * RTOL[dtype])
    assert int(result.rank) == int(repeated.rank) == 2 + (shape[0] > 3)
    scale = np.sum(np.abs(numpy(b)) ** 2)
    np.testing.assert_allclose(numpy(result.residuals), numpy(repeated.residuals), atol=10 * RTOL[dtype] * scale)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_unit_weights_change_nothing(dtype, shape):
    a, b = gaussian(shape, dtype), gaussian((shape[0], 2), dtype, 1)
    close(lstsq(a, b, weights=mx.ones(shape[0])).solution, numpy(lstsq(a, b).solution), 10 * RTOL[dtype])


def test_zero_weights():
    result = lstsq(gaussian((5, 3)), gaussian((5, 2)), weights=mx.zeros(5))
    assert not np.any(np.array(result.solution)) and not np.any(np.array(result.residuals)) and int(result.rank) == 0


@pytest.mark.parametrize("bad", [-1.0, NAN, INF])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_a_bad_weight_gives_nan(shape, dtype, bad):
    w = np.ones((2, shape[0]))
    w[1, 1] = bad
    a, b = gaussian(shape, dtype), gaussian((shape[0],), dtype, 1)
    result = lstsq(a, b, weights=array(w, real(dtype)))
    close(result.solution[0], numpy(lstsq(a, b).solution), 10 * RTOL[dtype])
    assert np.all(np.isnan(numpy(result.solution[1]))) and np.isnan(numpy(result.residuals)[1])
    assert np.array_equal(np.array(result.rank), [3, 0])


# --- Empty, half, bad -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("of_a", "of_b", "of_x", "of_rest"),
    [
        ((0, 3), (0, 2), (3, 2), (2,)),
        ((3, 0), (3, 2), (0, 2), (2,)),
        ((3, 0), (3,), (0,), ()),
        ((0, 3), (0,), (3,), ()),
        ((5, 3), (5, 0), (3, 0), (0,)),
        ((3, 5), (3, 0), (5, 0), (0,)),
        ((0, 5, 3), (5, 2), (0, 3, 2), (0, 2)),
        ((5, 3), (0, 5, 2), (0, 3, 2), (0, 2)),
        ((3, 5), (0, 3, 2), (0, 5, 2), (0, 2)),
        ((0, 0), (0, 0), (0, 0), (0,)),
    ],
)
def test_empty(of_a, of_b, of_x, of_rest, weighted):
    a, b = mx.ones(of_a), mx.ones(of_b)
    w = mx.ones(of_a[-2]) if weighted else None
    result = lstsq(a, b, weights=w)
    assert (result.solution.shape, result.residuals.shape) == (of_x, of_rest)
    assert result.singular_values.shape == (*of_a[:-2], min(of_a[-2:]))
    assert not np.any(np.array(result.solution))
    np.testing.assert_allclose(np.array(result.residuals), np.full(of_rest, 3.0 if of_a[-1] == 0 < of_a[-2] else 0.0))
    grads = mx.grad(lambda a, b: lstsq(a, b, weights=w).solution.sum(), argnums=(0, 1))(a, b)
    mx.eval(grads)
    assert [g.shape for g in grads] == [of_a, of_b]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half(dtype):
    a, b = (gaussian(s).astype(dtype, stream=mx.cpu) for s in ((6, 3), (6, 2)))
    result = lstsq(a, b)
    assert result.solution.dtype == dtype and result.residuals.dtype == result.singular_values.dtype == mx.float32
    close(result.solution, reference(a, b)[0], RTOL[dtype])
    close(result.singular_values, reference(a, b)[2], 1e-6)


@pytest.mark.parametrize(
    ("of_a", "of_b", "out"),
    [
        (mx.int32, mx.int32, mx.float32),
        (mx.float16, mx.int32, mx.float16),
        (mx.float16, mx.float32, mx.float32),
        (mx.float16, mx.bfloat16, mx.float32),
        (mx.float32, mx.float64, mx.float64),
        (mx.float32, mx.complex64, mx.complex64),
        (mx.bool_, mx.float64, mx.float64),
    ],
)
def test_mixed_dtypes(of_a, of_b, out):
    a, b = mx.array([[1, 0], [1, 1], [0, 1]], of_a), mx.array([1, 0, 1], of_b)
    x = lstsq(a, b).solution
    assert x.dtype == out
    close(x, np.array([1.0, 1.0]) / 3, 1e-3)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 3), (3, 3, 5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_bad_matrix_gives_nan_there_only(weighted, shape, dtype, bad):
    a, b = gaussian(shape, dtype), gaussian((shape[1], 2), dtype, 1)
    w = mx.ones((3, shape[1])) if weighted else None
    x = np.array(a)
    x[1, 2, 0] = bad
    good, result = lstsq(a, b, weights=w), lstsq(array(x, dtype), b, weights=w)
    assert np.array_equal(np.array(result.rank), [3, 0, 3])
    for name in ("solution", "residuals", "singular_values"):
        got, want = getattr(result, name), getattr(good, name)
        assert np.all(np.isnan(numpy(got[1])))
        got, want = numpy(got)[[0, 2]], numpy(want)[[0, 2]]
        if name == "residuals":  # those of a wide problem are rounding noise of b
            squares = np.sum(np.abs(numpy(b)) ** 2, axis=-2)
            got, want = got + squares, want + squares
        assert error(got, want) < 10 * RTOL[dtype]
    grad = mx.grad(lambda a: mx.real(lstsq(a, b, weights=w).solution).sum(stream=mx.cpu))
    g, clean = numpy(grad(array(x, dtype))), numpy(grad(a))
    assert np.all(np.isnan(g[1]))
    close(g[[0, 2]], clean[[0, 2]], 30 * RTOL[dtype])


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_a_bad_target_gives_nan_there_only(shape):
    a, b = gaussian(shape), numpy(gaussian((shape[0], 2), seed=1))
    b[1, 0] = NAN
    result = lstsq(a, array(b, mx.float64))
    assert np.all(np.isnan(numpy(result.solution)[:, 0])) and int(result.rank) == 3
    close(numpy(result.solution)[:, 1], np.linalg.lstsq(numpy(a), b[:, 1], rcond=None)[0], 1e-13)


# --- Precision and scale ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
@pytest.mark.parametrize("weighted", [False, True])
def test_scale(weighted, shape, dtype, scale):
    x, y = numpy(gaussian(shape, dtype)), numpy(gaussian((shape[0],), dtype, 1))
    w = array(np.random.default_rng(2).uniform(0.5, 2, shape[0]), real(dtype)) if weighted else None
    rtol = 30 * RTOL[dtype]

    def results(scale):
        a, b = array(x * scale, dtype), array(y * scale, dtype)
        grad = mx.grad(lambda a, b: mx.real(lstsq(a, b, weights=w).solution).sum(stream=mx.cpu), argnums=(0, 1))
        values = mx.grad(lambda a: lstsq(a, b, weights=w).singular_values.sum(stream=mx.cpu))(a)
        r = lstsq(a, b, weights=w)
        assert int(r.rank) == 3
        grads = [numpy(g) * scale for g in grad(a, b)]
        return [numpy(r.solution), numpy(r.singular_values) / scale, *grads, numpy(values)]

    for got, want in zip(results(scale), results(1.0), strict=True):
        close(got, want, rtol)


@pytest.mark.parametrize("shape", [(200, 6), (6, 200)])
@pytest.mark.parametrize("weighted", [False, True])
def test_float32_agrees_with_float64_at_condition_1e4(weighted, shape):
    a, b = array(with_values(*shape, np.geomspace(1, 1e-4, 6))), gaussian((shape[0], 2), mx.float32, 1)
    w = array(np.random.default_rng(2).uniform(0.5, 2, shape[0])) if weighted else None
    wide = (lstsq(*(array(numpy(x), mx.float64) for x in (a, b)), weights=w)).solution
    assert norm_error(lstsq(a, b, weights=w).solution, wide) < 1e-3


def test_a_million_rows():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((1_000_000, 4)).astype(np.float32) * np.array([1, 0.3, 0.1, 0.05], np.float32)
    result = lstsq(array(a), array(a.sum(1)))
    close(result.solution, np.ones(4), 1e-5)
    assert int(result.rank) == 4


@pytest.mark.parametrize(("method", "dtype"), [("gram", mx.float32), ("svd", mx.float64), ("gram", mx.complex64)])
@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_named_routes_agree(shape, method, dtype):
    a, b = gaussian(shape, dtype), gaussian((shape[0], 2), dtype, 1)
    close(lstsq(a, b, method=method, stream=mx.cpu).solution, reference(a, b)[0], 3 * RTOL[dtype])


def test_the_matrix_pinv_gives():
    """lstsq against the identity is pinv."""
    for shape in SHAPES.values():
        a = gaussian(shape)
        close(lstsq(a, array(np.eye(shape[0]), mx.float64)).solution, numpy(pinv(a)), 1e-13)


def test_cutoffs_over_the_batch():
    a = array(np.stack([with_values(5, 3, [1.0, 0.5, 0.1], i) for i in range(3)]), mx.float64)
    b = gaussian((5, 2), seed=1)
    result = lstsq(a, b, rtol=array([0.01, 0.2, 0.7], mx.float64))
    assert np.array_equal(np.array(result.rank), [3, 2, 1])
    for i, rtol in enumerate([0.01, 0.2, 0.7]):
        close(result.solution[i], reference(a[i], b, rcond=rtol)[0], 1e-13)
