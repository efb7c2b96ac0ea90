"""The routes for full rank: when they are taken, that they agree with the others, and what they hold."""

import mlx.core as mx
import numpy as np
import pytest

from pinvnn import lstsq, matrix_rank, pinv, ridge
from pinvnn._factor.full_rank import full_rank, inverse_by_lu
from pinvnn._mlx.blocks import crosses
from pinvnn._mlx.eager import evaluated_crosses, visible
from tests.support.cases import (
    DTYPES,
    RTOL,
    SHAPES,
    array,
    close,
    deficient,
    error,
    gaussian,
    gradients,
    numpy,
    positive,
    with_values,
)

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

NAN = float("nan")


def certified(a, *args, **kwargs):
    with mx.stream(mx.cpu):
        return full_rank(a, *args, **kwargs) is not None


# --- When -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_of_full_rank_is_certified(dtype):
    assert certified(gaussian((20, 4), dtype))
    assert certified(gaussian((3, 20, 4), dtype), w=positive((3, 20), mx.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_bad_matrix_refuses_the_batch(dtype):
    good = numpy(gaussian((3, 20, 4), dtype))
    for change in (lambda x: x.__setitem__((1, ..., 3), x[1, :, 2]), lambda x: x.__setitem__((1, 0, 0), NAN),
                   lambda x: x.__setitem__((1, 0, 0), np.inf), lambda x: x.__setitem__(1, 0.0)):
        x = good.copy()
        change(x)
        assert not certified(array(x, dtype))
    assert not certified(gaussian((4, 20), dtype))


@pytest.mark.parametrize(("tolerance", "is_certain"), [
    ({"rtol": 0.3}, True), ({"rtol": 0.5}, False), ({"rtol": 0.7}, False), ({"rtol": NAN}, False),
    ({"atol": 0.8}, True), ({"atol": 1.1}, False), ({"rtol": 0.3, "atol": 1.1}, False)])
def test_nothing_is_certified_that_a_cutoff_drops(tolerance, is_certain):
    """Singular values 2 and 1."""
    a = array(with_values(9, 2, [2.0, 1.0]), mx.float64)
    arrays = {name: array(value, mx.float64) for name, value in tolerance.items()}
    assert certified(a, **arrays) == is_certain


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rank_that_is_certified_is_the_rank(dtype):
    """Over matrices whose smallest value lies anywhere about the default cutoff."""
    found = set()
    for exponent in np.linspace(-17, 0, 60):
        a = array(with_values(9, 3, [1.0, 0.5, 10**exponent]), dtype)
        found.add(certified(a))
        if certified(a):
            assert int(matrix_rank(a)) == 3
    assert found == {False, True}


def test_columns_of_any_scale_are_certified():
    x = np.random.default_rng(0).standard_normal((50, 5)) * np.geomspace(1, 1e-12, 5)
    a = array(x, mx.float64)
    assert certified(a)
    want = np.linalg.lstsq(x / x[0], np.ones(50), rcond=None)[0] / x[0]
    close(lstsq(a, array(np.ones(50), mx.float64)).solution * array(x[0], mx.float64), want * x[0], 1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ratio", [1e-6, 1e-8, 1e-10])
def test_no_rank_is_read_from_a_gram_matrix_that_underflows(ratio, seed):
    c = np.random.default_rng(seed).standard_normal((6, 1))
    x, b = np.hstack([c, c * ratio]), array(c, mx.float64)
    faint = array(np.full(6, 1e-300), mx.float64)
    for scale, w in ((1e-150, None), (1e-153, None), (1.0, faint)):
        result = lstsq(array(x * scale, mx.float64), b, weights=w)
        assert result.rank.item() == 1
        close(result.solution * scale, np.linalg.pinv(x) @ c, 1e-12)
        result = lstsq(array(x * scale, mx.float64), b, weights=w, method="cholesky")
        assert np.all(np.isnan(numpy(result.solution)))


def test_negative_weights_are_not_certified():
    w = np.ones(20)
    w[3] = -1e-3
    assert not certified(gaussian((20, 4)), w=array(w, mx.float64))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
@pytest.mark.parametrize(("matrix", "is_certain"), [
    (np.diag([1.0, 2.0]), True), (np.diag([1.0, 0.0]), False), (np.ones((2, 2)), False), (np.zeros((2, 2)), False),
    (np.diag([1.0, NAN]), False), (np.diag([1.0, np.inf]), False), (np.diag([1.0, 1e-17]), False),
    (np.diag([1.0, 2.0]) * 1e-30, True), (np.diag([1.0, 2.0]) * 1e30, True)])
def test_inverse(matrix, is_certain, dtype):
    with mx.stream(mx.cpu):
        for a in (matrix, np.stack([np.eye(2), matrix])):
            if dtype == mx.float32 and is_certain and np.max(matrix) > 1e20:
                continue  # the bound overflows, and singular vectors are taken
            assert certified(array(a, dtype)) == is_certain
            if is_certain:
                close(inverse_by_lu(array(a, dtype)), np.linalg.inv(numpy(array(a, dtype))), 1e-12)


def test_inverse_is_of_real_square_matrices_only():
    assert inverse_by_lu(gaussian((2, 2), mx.complex64)) is None
    assert inverse_by_lu(gaussian((3, 2))) is None


@pytest.mark.parametrize("fit", [pinv, lambda a: lstsq(a, mx.eye(2, dtype=a.dtype)).solution], ids=["pinv", "lstsq"])
def test_no_inverse_by_lu_of_columns_on_very_different_scales(fit):
    """The certificate allows any scale of the columns, LU does not."""
    a = array([[1.0, 1e-12], [2.0, -1e-12]], mx.float64)
    assert certified(a) and inverse_by_lu(a) is None
    close(fit(a), np.linalg.inv(numpy(a)), 1e-12)


# --- Agreement --------------------------------------------------------------------------------------------------------


def unseen(fn):
    """``fn`` in a vmap over one, in which there are no values to look at: by the route of singular vectors."""
    return lambda *args: [x[0] for x in mx.vmap(fn)(*(x[None] for x in args))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_routes_agree(weighted, shape, dtype):
    m, n = shape
    a, b = gaussian(shape, dtype), gaussian((m, 2), dtype, 1)
    w = positive((m,), mx.float64 if dtype == mx.float64 else mx.float32) if weighted else None
    bar = gaussian((n, 2), dtype, 2)

    def solve(method):
        def loss(a, b):
            x = lstsq(a, b, weights=w, method=method).solution
            return mx.real(mx.sum(mx.conjugate(bar) * x)) if dtype == mx.complex64 else mx.sum(bar * x)

        def steepness(a, b):
            g = gradients(loss, [a, b])
            return sum(mx.sum(mx.real(mx.conjugate(x) * x) if dtype == mx.complex64 else x * x) for x in g)

        return lambda a, b: [lstsq(a, b, weights=w, method=method).solution, *gradients(loss, [a, b]),
                             *gradients(steepness, [a, b])]

    want = unseen(solve("auto"))(a, b)
    found = {"auto": solve("auto")(a, b)}
    if not weighted or m >= n:
        found["cholesky"] = solve("cholesky")(a, b)
        found["cholesky, unseen"] = unseen(solve("cholesky"))(a, b)
    for got in found.values():
        for x, y, factor in zip(got, want, [1, 10, 10, 100, 100], strict=True):
            assert error(x, y) <= 30 * factor * RTOL[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_routes_of_pinv_agree(shape, dtype):
    a, bar = gaussian(shape, dtype), gaussian(shape[::-1], dtype, 2)

    def solve(method):
        def loss(a):
            p = mx.conjugate(bar) * pinv(a, method=method) if dtype == mx.complex64 else bar * pinv(a, method=method)
            return mx.sum(mx.real(p) if dtype == mx.complex64 else p)

        return lambda a: [pinv(a, method=method), mx.grad(loss)(a)]

    want = unseen(solve("auto"))(a)
    for got in (solve("auto")(a), solve("cholesky")(a), unseen(solve("cholesky"))(a)):
        for x, y in zip(got, want, strict=True):
            assert error(x, y) <= 300 * RTOL[dtype]


@pytest.mark.parametrize("shape", [(12, 4), (5, 12, 4)])
def test_ridge_agrees_with_the_route_of_singular_vectors(shape):
    """In float64 it is a Cholesky factor, corrected."""
    a, b, w = gaussian(shape), gaussian((12, 2), seed=1), positive((12,))
    for l2 in (1e-8, 0.3, array([[1e-8], [0.1], [1.0], [10.0]], mx.float64)):
        def fn(a, b, w, l2=l2):
            x = ridge(a, b, l2, weights=w)
            return [x, *gradients(lambda *args: mx.sum(mx.square(ridge(*args[:2], l2, weights=args[2]))), [a, b, w])]

        for x, y in zip(fn(a, b, w), unseen(fn)(a, b, w), strict=True):
            close(x, y, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cholesky_is_nan_where_nothing_is_proved(dtype):
    x = numpy(gaussian((3, 9, 3), dtype))
    x[1, :, 2] = x[1, :, 1]
    a, b = array(x, dtype), gaussian((9, 2), dtype)
    result = lstsq(a, b, method="cholesky")
    for got in (result.solution, pinv(a, method="cholesky"), mx.vmap(lambda a: pinv(a, method="cholesky"))(a)):
        assert np.all(np.isfinite(numpy(got)[[0, 2]])) and np.all(np.isnan(numpy(got)[1]))
    assert np.array_equal(np.array(result.rank), [3, 2, 3])
    close(result.solution[0], lstsq(a[0], b).solution, 10 * RTOL[dtype])


def test_a_deficient_neighbour_changes_nothing():
    """A batch is certified as a whole: with a deficient matrix in it all are computed by the other route."""
    a, b = gaussian((3, 9, 3)), gaussian((9, 2))
    mixed = mx.concatenate([a, deficient((1, 9, 3), 2)])
    close(lstsq(mixed, b).solution[:3], lstsq(a, b).solution, 1e-13)
    close(pinv(mixed)[:3], pinv(a), 1e-13)


def test_singular_values_and_rank_of_a_certified_result():
    a, b = gaussian((4, 9, 3)), gaussian((9,))
    result = lstsq(a, b)
    close(result.singular_values, np.linalg.svd(numpy(a), compute_uv=False), 1e-13)
    assert result.rank.dtype == mx.int32 and np.array_equal(np.array(result.rank), [3] * 4)


# --- Looking at values ------------------------------------------------------------------------------------------------


def test_nothing_is_looked_at_inside_compile_and_vmap():
    found = []

    def look(a):
        found.append(visible(a))
        return mx.sum(a * 2)

    a = mx.ones((3, 2))
    mx.eval(mx.compile(look)(a), mx.vmap(look)(a), mx.vmap(mx.grad(look))(a), mx.compile(mx.grad(look))(a))
    assert found == [False] * 4


def test_values_are_looked_at_in_a_trace_of_vjp_and_jvp():
    found = []

    def look(a):
        found.append(visible(a))
        return mx.sum(a * 2)

    a = mx.ones((3, 2))
    mx.eval(mx.grad(look)(a), mx.jvp(look, [a], [a]), mx.grad(lambda a: mx.sum(mx.grad(look)(a)))(a), look(a))
    assert found == [True] * 4


@pytest.mark.parametrize("weighted", [False, True])
def test_chunks_are_the_whole(weighted):
    a, b = gaussian((40_000, 3), mx.float32), gaussian((40_000, 2), mx.float32, 1)
    w = positive((40_000,), mx.float32) if weighted else None
    for got, want in zip(evaluated_crosses(a, [a, b], w), crosses(a, [a, b], w), strict=True):
        close(got, want, 1e-14)


@pytest.mark.parametrize("fit", [lambda a: lstsq(a, a[:, :1]).solution, pinv], ids=["lstsq", "pinv"])
def test_a_trace_holds_no_float64_copies(fit):
    a = gaussian((100_000, 8), mx.float32)
    held, out_bytes = [], []

    def loss(a):
        mx.eval(a)
        before = mx.get_active_memory()
        out = fit(a)
        held.append(mx.get_active_memory() - before)
        out_bytes.append(out.nbytes)
        return out.sum()

    mx.eval(mx.grad(loss)(a))
    assert held[0] < out_bytes[0] + a.nbytes // 2  # pinv is evaluated, and of the size of a
