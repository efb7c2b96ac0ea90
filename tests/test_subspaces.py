"""Orthonormal bases of the range and the null space, and the residuals of Penrose's conditions."""

import mlx.core as mx
import numpy as np
import pytest

from pinvnn import null_space, orth, penrose_residuals, pinv
from tests.support.cases import DTYPES, array, close, deficient, gaussian, numpy, with_values

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

TOL = {mx.float32: 1e-6, mx.float64: 1e-13, mx.complex64: 3e-6}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, 3, 4])
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (4, 4), (1000, 4), (4, 150)])
def test_bases(shape, rank, dtype):
    a = deficient(shape, rank, dtype)
    x, tol = numpy(a), TOL[dtype]
    q, z = orth(a), null_space(a)
    assert (q.shape, z.shape) == ((shape[0], rank), (shape[1], shape[1] - rank))
    assert q.dtype == z.dtype == dtype
    q, z = numpy(q), numpy(z)
    np.testing.assert_allclose(np.conj(q.T) @ q, np.eye(rank), atol=tol)
    np.testing.assert_allclose(np.conj(z.T) @ z, np.eye(shape[1] - rank), atol=tol)
    scale = np.linalg.norm(x)
    np.testing.assert_allclose(x @ z, 0, atol=tol * scale)
    np.testing.assert_allclose(q @ (np.conj(q.T) @ x), x, atol=tol * scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cutoff(dtype):
    a = array(with_values(7, 4, [2.0, 1.0, 0.5, 0.1]), dtype)
    assert orth(a, rtol=0.3).shape == (7, 2) and null_space(a, rtol=0.3).shape == (4, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cond", [1e2, 1e5])
@pytest.mark.parametrize("shape", [(50, 6), (6, 50)])
def test_orthonormal_when_ill_conditioned(shape, cond, dtype):
    a = array(with_values(*shape, np.geomspace(1, 1 / cond, 6)), dtype)
    q = numpy(orth(a))
    np.testing.assert_allclose(np.conj(q.T) @ q, np.eye(6), atol=TOL[dtype])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale(dtype, scale):
    a = array(numpy(deficient((6, 4), 2, dtype)) * scale, dtype)
    q = numpy(orth(a))
    np.testing.assert_allclose(np.conj(q.T) @ q, np.eye(2), atol=TOL[dtype])
    assert null_space(a).shape == (4, 2)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_empty(dtype, shape):
    a = mx.zeros(shape, dtype)
    assert orth(a).shape == (shape[0], 0) and null_space(a).shape == (shape[1], shape[1])
    np.testing.assert_allclose(numpy(null_space(a)), np.eye(shape[1]))


def test_half_comes_back_as_half():
    a = gaussian((6, 3)).astype(mx.float16, stream=mx.cpu)
    assert orth(a).dtype == null_space(a).dtype == mx.float16


# --- penrose_residuals ------------------------------------------------------------------------------------------------


def reference(a, p):
    def ratio(x, y):
        return np.linalg.norm(x) / np.linalg.norm(y)

    ap, pa = a @ p, p @ a
    return [ratio(ap @ a - a, a), ratio(pa @ p - p, p), ratio(ap - np.conj(ap.T), ap), ratio(pa - np.conj(pa.T), pa)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (50, 3), (3, 50)])
def test_residuals_of_any_matrix(shape, dtype):
    a, p = gaussian(shape, dtype), gaussian(shape[::-1], dtype, 1)
    r = penrose_residuals(a, p)
    assert r.dtype == (mx.float64 if dtype == mx.float64 else mx.float32)
    close(r, reference(numpy(a), numpy(p)), 1e-6)


@pytest.mark.parametrize("entry", range(4))
def test_each_condition_is_seen(entry):
    """Generalized inverses that break some of the conditions only."""
    a = with_values(5, 4, [2.0, 1.0])
    p, rng = np.linalg.pinv(a), np.random.default_rng(0)
    eye_m, eye_n, w = np.eye(5), np.eye(4), rng.standard_normal((4, 5))
    broken = [
        0.5 * p,  # all but the symmetries
        p + (eye_n - p @ a) @ w @ (eye_m - a @ p),  # only PAP = P
        p + p @ a @ w @ (eye_m - a @ p),  # only (AP)^H = AP
        p + (eye_n - p @ a) @ w @ a @ p,  # only (PA)^H = PA
    ][entry]
    r = numpy(penrose_residuals(array(a, mx.float64), array(broken, mx.float64)))
    seen = {0: {0, 1}, 1: {1}, 2: {2}, 3: {3}}[entry]
    assert {i for i in range(4) if r[i] > 1e-8} == seen


def test_batches_broadcast():
    a = gaussian((3, 1, 5, 2))
    p = gaussian((4, 2, 5), seed=1)
    r = numpy(penrose_residuals(a, p))
    assert r.shape == (3, 4, 4)
    close(r[2, 1], reference(numpy(a)[2, 0], numpy(p)[1]), 1e-12)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3), (0, 3, 2)])
def test_residuals_of_nothing(shape):
    r = penrose_residuals(mx.zeros(shape), mx.zeros((*shape[:-2], shape[-1], shape[-2])))
    assert r.shape == (*shape[:-2], 4) and not np.any(np.array(r))


def test_residuals_of_zero_and_nan():
    assert not np.any(np.array(penrose_residuals(mx.zeros((3, 2)), mx.zeros((2, 3)))))
    bad = mx.full((30, 2), float("nan"))
    assert np.all(np.isnan(np.array(penrose_residuals(bad, pinv(bad)))))
