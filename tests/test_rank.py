"""Rank, condition and gap: one decision, the same in every function."""

import mlx.core as mx
import numpy as np
import pytest

from pinvnn import diagnose, lstsq, matrix_rank, null_space, orth, pinv
from tests.support.cases import DTYPES, array, deficient, gaussian, hilbert, numpy, with_values

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (3, 6, 4), (2, 3, 4, 6), (5000, 4)])
@pytest.mark.parametrize("rank", [0, 1, 2, 4])
def test_rank(rank, shape, dtype):
    a = deficient(shape, rank, dtype)
    r = matrix_rank(a)
    assert (r.shape, r.dtype) == (shape[:-2], mx.int32)
    assert np.all(np.array(r) == rank)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
@pytest.mark.parametrize("rtol", [None, 1e-3, 0.2, 0.6, 1.0])
def test_every_function_decides_alike(rtol, shape, dtype):
    a = array(with_values(*shape, [1.0, 0.5, 1e-2, 1e-9]), dtype)
    rank = int(matrix_rank(a, rtol=rtol))
    b = gaussian((shape[0], 1), dtype)
    assert rank == int(diagnose(a, rtol=rtol).rank) == int(lstsq(a, b, rtol=rtol).rank)
    assert rank == orth(a, rtol=rtol).shape[1] == shape[1] - null_space(a, rtol=rtol).shape[1]
    # The pseudo-inverse has singular values from 1 to 1e9, and rounding noise below.
    values = np.linalg.svd(numpy(pinv(a, rtol=rtol)), compute_uv=False)
    assert rank == np.sum(values > 0.5)


@pytest.mark.parametrize(("dtype", "eps"), [(mx.float32, 2.0**-23), (mx.complex64, 2.0**-23), (mx.float64, 2.0**-52)])
def test_default_cutoff(dtype, eps):
    """min(m, n) * eps, whatever the number of rows."""
    for factor, rank in ((1.1, 2), (0.9, 1)):
        a = np.zeros((5000, 2))
        a[0, 0], a[1, 1] = 1.0, 2 * eps * factor
        assert int(matrix_rank(array(a, dtype))) == int(matrix_rank(array(a.T, dtype))) == rank


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_diagnosis(shape, dtype):
    s = np.array([4.0, 2.0, 1.0, 0.5])
    a = array(np.stack([with_values(*shape, s), with_values(*shape, s[:2])]), dtype)
    d = diagnose(a)
    assert np.array_equal(np.array(d.rank), [4, 2])
    np.testing.assert_allclose(np.array(d.cond), [8.0, 2.0], rtol=1e-5)
    np.testing.assert_allclose(np.array(d.gap), [1.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(np.array(d.s_max), [4.0, 4.0], rtol=1e-5)
    assert np.all(np.array(d.finite))
    d = diagnose(a, rtol=0.3)
    assert np.array_equal(np.array(d.rank), [2, 2])
    np.testing.assert_allclose(np.array(d.gap), [0.5, 1.0], rtol=1e-5)
    np.testing.assert_allclose(np.array(d.cond), [2.0, 2.0], rtol=1e-5)


def test_diagnosis_in_a_compiled_graph():
    a = gaussian((3, 5, 2), mx.float32)
    for got, want in zip(mx.compile(lambda a: list(diagnose(a)))(a), diagnose(a), strict=True):
        np.testing.assert_allclose(np.array(got), np.array(want), rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_matrix_has_rank_zero(dtype, bad):
    x = np.array(gaussian((3, 5, 2), dtype))
    x[1, 0, 0] = bad
    d = diagnose(array(x, dtype))
    assert np.array_equal(np.array(d.rank), [2, 0, 2]) and np.array_equal(np.array(d.finite), [True, False, True])
    assert np.array_equal(np.array(matrix_rank(array(x, dtype))), [2, 0, 2])
    assert np.isnan(np.array(d.s_max)[1])


def test_hilbert_against_the_cutoff():
    """cond(Hilbert 12) is 1.7e16: no float64 function can see its full rank, and 8 is well within reach."""
    assert int(matrix_rank(array(hilbert(8), mx.float64))) == 8
    assert int(matrix_rank(array(hilbert(12), mx.float64))) in (11, 12)
    assert int(matrix_rank(array(hilbert(12)))) < 8


def test_graded_columns():
    """Columns of sizes 1 to 1e-12 in float64."""
    x = np.random.default_rng(0).standard_normal((50, 5)) * np.geomspace(1, 1e-12, 5)
    assert int(matrix_rank(array(x, mx.float64))) == 5
    x[:, 4] = x[:, 3]
    assert int(matrix_rank(array(x, mx.float64))) == 4


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("bad", [float("nan"), -1.0])
def test_a_bad_cutoff_in_an_array_gives_nan(bad, name):
    a = gaussian((2, 5, 3))
    p = pinv(a, **{name: mx.array([0.1, bad])})
    assert np.all(np.isfinite(numpy(p[0]))) and np.all(np.isnan(numpy(p[1])))
    x = lstsq(a, gaussian((5,)), **{name: mx.array([0.1, bad])}).solution
    assert np.all(np.isfinite(numpy(x[0]))) and np.all(np.isnan(numpy(x[1])))


def test_rank_has_no_gradient():
    a = gaussian((5, 3), mx.float32)
    g = mx.grad(lambda a: matrix_rank(a).astype(mx.float32) * a.sum())(a)
    np.testing.assert_allclose(np.array(g), 3.0)


def test_rank_in_a_vmap():
    a = deficient((4, 5, 3), 2, mx.float32)
    assert np.array_equal(np.array(mx.vmap(matrix_rank)(a)), [2] * 4)
    np.testing.assert_allclose(np.array(mx.vmap(lambda x: diagnose(x).cond)(a)), np.array(diagnose(a).cond), rtol=1e-6)
