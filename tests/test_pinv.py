"""Values of the pseudo-inverse: every shape, dtype, rank, cutoff and scale; failure as data."""

import mlx.core as mx
import numpy as np
import pytest

from pinvnn import diagnose, matrix_rank, penrose_residuals, pinv
from tests.support.cases import (
    DTYPES,
    EMPTY,
    RTOL,
    SHAPES,
    array,
    close,
    deficient,
    error,
    gaussian,
    hilbert,
    norm_error,
    numpy,
    with_values,
)

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES.values(), (2, 6, 3), (2, 1, 3, 6), (3000, 5), (5, 3000)])
def test_full_rank(shape, dtype):
    a = gaussian(shape, dtype)
    p = pinv(a)
    assert p.dtype == dtype
    close(p, np.linalg.pinv(numpy(a)), RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (2, 6, 4), (500, 4)])
def test_rank_deficient(shape, dtype):
    a = deficient(shape, 2, dtype)
    close(pinv(a), np.linalg.pinv(numpy(a), rcond=1e-5), 10 * RTOL[dtype])
    assert np.all(np.array(matrix_rank(a)) == 2)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_comes_back_as_half(dtype):
    a = gaussian((6, 3)).astype(dtype, stream=mx.cpu)
    assert pinv(a).dtype == dtype
    close(pinv(a), np.linalg.pinv(numpy(a)), RTOL[dtype])


@pytest.mark.parametrize("dtype", [mx.int32, mx.uint8, mx.int64, mx.bool_])
def test_integers_become_float32(dtype):
    a = mx.array([[1, 0], [1, 1], [0, 1]], dtype)
    assert pinv(a).dtype == mx.float32
    close(pinv(a), np.linalg.pinv(np.array(a).astype(float)), 1e-6)


def test_lists_and_numpy_arrays_are_arrays():
    close(pinv([[1.0], [2.0]]), np.array([[0.2, 0.4]]), 1e-6)
    close(pinv(np.array([[1.0], [2.0]])), np.array([[0.2, 0.4]]), 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", EMPTY)
def test_empty(shape, dtype):
    a = mx.zeros(shape, dtype)
    p = pinv(a)
    assert (p.shape, p.dtype) == ((*shape[:-2], shape[-1], shape[-2]), dtype)
    g = mx.grad(lambda a: mx.sum(mx.abs(pinv(a)), stream=mx.cpu))(a)
    mx.eval(p, g)
    assert g.shape == shape
    assert np.array_equal(np.array(matrix_rank(a)), np.zeros(shape[:-2]))
    assert np.all(np.array(diagnose(a).finite))


# --- Cutoffs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cut", "rank"),
    [
        ({"rtol": 0.3}, 2),
        ({"rtol": 0.0}, 4),
        ({"atol": 0.3}, 3),
        ({"atol": 0.0}, 4),
        ({"rtol": 0.01, "atol": 0.3}, 3),
        ({"rtol": 0.3, "atol": 0.01}, 2),
        ({"rtol": 1.0}, 0),
        ({"atol": 1e9}, 0),
        ({}, 4),
    ],
)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cutoff(dtype, shape, cut, rank):
    s = np.array([2.0, 1.0, 0.5, 0.1])
    x = with_values(*shape, s)
    a = array(x, dtype)
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    close(pinv(a, **cut), (vt[:rank].T / s[:rank]) @ u[:, :rank].T, 1e-5 if dtype != mx.float64 else 1e-12)
    assert int(matrix_rank(a, **cut)) == rank == int(diagnose(a, **cut).rank)


def test_a_value_at_the_cutoff_is_dropped():
    a = array(np.diag([2.0, 1.0]), mx.float64)
    assert int(matrix_rank(a, atol=1.0)) == int(matrix_rank(a, rtol=0.5)) == 1
    assert int(matrix_rank(a, atol=0.999)) == int(matrix_rank(a, rtol=0.499)) == 2


@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_cutoffs_over_the_batch(name):
    x = np.stack([with_values(5, 3, [1.0, 0.5, 0.1], seed) for seed in range(3)])
    cut = np.array([0.01, 0.2, 0.7])
    want = np.stack([numpy(pinv(array(x[i], mx.float64), **{name: float(cut[i])})) for i in range(3)])
    close(pinv(array(x, mx.float64), **{name: array(cut, mx.float64)}), want, 1e-14)
    assert np.array_equal(np.array(matrix_rank(array(x), **{name: array(cut)})), [3, 2, 1])


@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_cutoffs_have_no_gradient(name):
    a = gaussian((5, 3))
    assert float(mx.grad(lambda t: pinv(a, **{name: t}).sum(stream=mx.cpu))(mx.array(0.1))) == 0.0


def test_default_cutoff_does_not_grow_with_the_rows():
    s = [1.0, 1e-5]
    assert int(matrix_rank(array(with_values(20000, 2, s)))) == 2


# --- Hermitian --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_hermitian(dtype):
    a = gaussian((2, 4, 4), dtype)
    x = numpy(a)
    half = (x + np.conj(np.swapaxes(x, -1, -2))) / 2  # both triangles are read
    close(pinv(a, hermitian=True), np.linalg.pinv(half), 10 * RTOL[dtype])
    assert np.all(np.array(matrix_rank(a, hermitian=True)) == 4)
    g = numpy(mx.grad(lambda a: mx.real(pinv(a, hermitian=True)).sum(stream=mx.cpu))(a))
    close(g, np.conj(np.swapaxes(g, -1, -2)), 1e-13 if dtype == mx.float64 else 1e-5)
    symmetric = array(half, dtype)
    full = numpy(mx.grad(lambda a: mx.real(pinv(a)).sum(stream=mx.cpu))(symmetric))
    tolerance = 1e-12 if dtype == mx.float64 else 1e-4
    close(g, (full + np.conj(np.swapaxes(full, -1, -2))) / 2, tolerance)


# --- Failure as data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 3), (3, 3, 5)])
def test_a_bad_matrix_gives_nan_there_only(shape, dtype, bad):
    a = gaussian(shape, dtype)
    x = np.array(a)
    x[1, 2, 0] = bad
    poisoned = array(x, dtype)
    p = numpy(pinv(poisoned))
    assert np.all(np.isnan(p[1]))
    close(p[[0, 2]], numpy(pinv(a))[[0, 2]], RTOL[dtype])
    g, clean = (numpy(mx.grad(lambda a: mx.real(pinv(a)).sum(stream=mx.cpu))(y)) for y in (poisoned, a))
    assert np.all(np.isnan(g[1]))
    close(g[[0, 2]], clean[[0, 2]], 10 * RTOL[dtype])
    assert np.array_equal(np.array(matrix_rank(poisoned)), [3, 0, 3])
    assert np.array_equal(np.array(diagnose(poisoned).finite), [True, False, True])


def test_a_bad_matrix_in_a_compiled_graph():
    a = mx.concatenate([gaussian((1, 5, 3), mx.float32), mx.full((1, 5, 3), INF)])
    p = mx.compile(pinv)(a)
    close(p[0], np.linalg.pinv(numpy(a[0])), RTOL[mx.float32])
    assert np.all(np.isnan(np.array(p[1])))


def test_an_imaginary_nan_counts():
    assert np.all(np.isnan(numpy(pinv(mx.array([[1.0, 2.0], [complex(0, NAN), 1.0]])))))


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (3, 3), (2, 4, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_matrix(shape, dtype):
    a = mx.zeros(shape, dtype)
    fn = lambda a: mx.real(pinv(a)).sum(stream=mx.cpu)  # noqa: E731
    assert not np.any(np.array(pinv(a)))
    assert not np.any(np.array(mx.grad(fn)(a)))
    assert not np.any(np.array(mx.jvp(fn, [a], [mx.ones_like(a)])[1][0]))
    assert not np.any(np.array(matrix_rank(a)))
    d = diagnose(a)
    assert np.all(np.isinf(np.array(d.cond))) and not np.any(np.array(d.s_max)) and np.all(np.array(d.gap) == 1)


# --- Scale ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_scale(shape, dtype, scale):
    x = numpy(gaussian(shape, dtype))
    a, one = array(x * scale, dtype), array(x, dtype)
    rtol = 30 * RTOL[dtype]
    close(numpy(pinv(a)) * scale, numpy(pinv(one)), rtol)
    assert int(matrix_rank(a)) == 3
    close(numpy(diagnose(a).s_max) / scale, numpy(diagnose(one).s_max), rtol)
    close(diagnose(a).cond, diagnose(one).cond, rtol)

    # A loss of the order of 1 has a gradient of the order of 1 / scale, which every dtype can hold.
    def gradient(a, scale):
        return numpy(mx.grad(lambda a: mx.real(pinv(a) * array(scale, dtype)).sum(stream=mx.cpu))(a)) * scale

    close(gradient(a, scale), gradient(one, 1.0), rtol)


# --- Hard cases of the issue ------------------------------------------------------------------------------------------


def tall(columns=8, rows=1_000_000):
    """Condition 1e4, float32."""
    rng = np.random.default_rng(0)
    u = np.linalg.qr(rng.standard_normal((rows, columns)).astype(np.float32))[0]
    v = np.linalg.qr(rng.standard_normal((columns, columns)))[0].astype(np.float32)
    return (u * np.geomspace(1, 1e-4, columns, dtype=np.float32)) @ v


def test_a_million_rows():
    x = tall()
    a = array(x)
    assert int(matrix_rank(a)) == 8
    p = pinv(a)
    r = np.linalg.qr(x.astype(np.float64), mode="r")
    want = np.linalg.inv(r) @ np.linalg.inv(r).T @ x.T.astype(np.float64)
    assert np.linalg.norm(np.array(p) - want) <= 1e-6 * np.linalg.norm(want)
    x[:, 7] = x[:, 3]
    assert int(matrix_rank(array(x))) == 7


def test_a_million_rows_in_float64():
    x = np.random.default_rng(0).standard_normal((1_000_000, 4))
    x[:, 3] = x[:, 1]
    assert int(matrix_rank(array(x, mx.float64))) == 3


def test_hilbert():
    h = hilbert(8)
    a = array(h, mx.float64)
    assert int(matrix_rank(a)) == 8
    ours, theirs = (np.linalg.norm(p @ h - np.eye(8)) for p in (numpy(pinv(a)), np.linalg.pinv(h)))
    assert ours <= 10 * theirs


@pytest.mark.parametrize("shape", [(400, 5), (5, 400)])
def test_float32_is_accumulated_in_float64(shape):
    x = with_values(*shape, np.geomspace(1, 1e-4, 5))
    a = array(x)
    close(pinv(a), np.linalg.pinv(numpy(a)), 1e-6)
    assert error(pinv(a), np.linalg.pinv(numpy(a))) < 0.1 * error(mx.linalg.pinv(a, stream=mx.cpu), np.linalg.pinv(x))


# --- Routes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gram", "svd"])
@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (2, 6, 3)])
def test_named_routes_agree(shape, name):
    dtype = mx.float64 if name == "svd" else mx.float32
    a = gaussian(shape, dtype)
    close(pinv(a, method=name), np.linalg.pinv(numpy(a)), RTOL[dtype])


def test_stream_is_taken():
    a = gaussian((6, 3), mx.float32)
    close(pinv(a, stream=mx.cpu), numpy(pinv(a)), 0.0)
    close(pinv(a, stream=mx.new_stream(mx.cpu)), numpy(pinv(a)), 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_penrose(dtype):
    a = deficient((2, 6, 4), 3, dtype)
    assert float(penrose_residuals(a, pinv(a)).max(stream=mx.cpu)) < (1e-13 if dtype == mx.float64 else 3e-6)


def test_norm_error_sees_an_error():
    """The yardstick of the tests itself."""
    assert norm_error(mx.array([1.0, 0.0]), mx.array([1.0, 1.0])) == pytest.approx(0.5**0.5)
    assert error(np.array([1.0, NAN]), np.array([1.0, 1.0])) == np.inf
