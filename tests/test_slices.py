"""Products by slices: as accurate as in float64 from the float32 products of a GPU, even if those are TF32."""

import mlx.core as mx
import numpy as np
import pytest

from pinvnn import lstsq, pinv
from pinvnn._mlx.slices import crosses_by_slices, product_by_slices
from tests.support.cases import array, error, gaussian, numpy, with_values


def matrix(m, n, condition=1e4):
    return array(with_values(m, n, np.geomspace(1, 1 / condition, n)))


@pytest.mark.parametrize(("m", "n"), [(3000, 8), (700, 60), (5, 3), (1, 1)])
def test_gram_and_cross_products(gpu, m, n):
    a, b = matrix(m, min(m, n)), gaussian((m, 2), mx.float32)
    gram, cross = crosses_by_slices(a, b)
    assert error(gram, numpy(a).T @ numpy(a)) < 1e-12
    assert error(cross, numpy(a).T @ numpy(b)) < 1e-10
    assert error(a.T @ a, numpy(a).T @ numpy(a)) > 1e-5 or m < 10


def test_compiled_and_mapped(gpu):
    a = mx.stack([matrix(300, 4), 3 * matrix(300, 4)])
    want = crosses_by_slices(a)[0]
    assert error(want, numpy(a).swapaxes(1, 2) @ numpy(a)) < 1e-12
    assert np.array_equal(np.array(mx.compile(lambda a: crosses_by_slices(a)[0])(a)), np.array(want))
    assert error(mx.vmap(lambda a: crosses_by_slices(a)[0])(a), numpy(want)) < 1e-14


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e18])
def test_scales(gpu, scale):
    a = matrix(500, 4) * scale
    assert error(crosses_by_slices(a)[0], numpy(a).T @ numpy(a)) < 1e-12


def test_small_integers_are_exact(gpu):
    a = array(np.random.default_rng(0).integers(-4000, 4000, (2500, 3)))
    assert error(crosses_by_slices(a)[0], numpy(a).T @ numpy(a)) < 1e-15


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(gpu, bad):
    a = numpy(matrix(20, 3))
    a[4, 1] = bad
    assert np.isnan(np.array(crosses_by_slices(array(a))[0])).all()


def test_a_product_with_the_solution(gpu):
    a = matrix(2000, 16)
    z = np.linalg.solve(numpy(a).T @ numpy(a), np.random.default_rng(0).standard_normal((16, 3)))
    assert error(product_by_slices(a, array(z, mx.float64)), numpy(a) @ z) < 1e-6
    assert error(a @ array(z), numpy(a) @ z) > 0.01


@pytest.mark.parametrize(("m", "n"), [(10_000, 64), (4096, 512)])
def test_memory_is_below_three_times_the_matrix(m, n):
    a = gaussian((m, n), mx.float32)
    mx.eval(a)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(crosses_by_slices(a))
    assert mx.get_peak_memory() - before < 3 * a.nbytes


@pytest.mark.parametrize("shape", [(200, 6), (6, 200)])
def test_the_route_by_name(gpu, shape):
    a = matrix(*sorted(shape, reverse=True), condition=100)
    a, b = a if shape[0] > shape[1] else mx.contiguous(a.T), gaussian((shape[0], 2), mx.float32)
    for fn in (lambda **kw: pinv(a, **kw), lambda **kw: lstsq(a, b, **kw).solution):
        assert error(fn(method="slices"), numpy(fn(method="gram"))) < 1e-6


def test_the_route_is_for_real_float32_without_weights():
    with pytest.raises(ValueError, match="method 'slices' is for float32"):
        pinv(gaussian((4, 2), mx.complex64), method="slices")
    with pytest.raises(ValueError, match="takes no weights"):
        lstsq(gaussian((4, 2), mx.float32), mx.ones(4), weights=mx.ones(4), method="slices")
