"""Values of ridge: every shape of penalty, primal and dual, weights, and what is singular."""

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.cases import Case
from benchmarks.problems import problem
from benchmarks.reference import reference as reference_of
from pinvnn import lstsq, ridge
from tests.support.cases import DTYPES, RTOL, array, close, deficient, gaussian, norm_error, numpy, real, with_values

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

NAN, INF = float("nan"), float("inf")
PENALTIES = {"number": (), "target": (2,), "feature": ("n", 1), "each": ("n", 2)}


def reference(a, b, l2, w=None):
    """The normal equations of one problem, solved target by target."""
    a, b = numpy(a), numpy(b)
    w = np.ones(len(a)) if w is None else numpy(w)
    l2 = np.broadcast_to(numpy(l2) if isinstance(l2, mx.array) else l2, (a.shape[1], b.shape[1]))
    k, h = (np.conj(a.T) * w) @ a, (np.conj(a.T) * w) @ b
    return np.stack([np.linalg.solve(k + np.diag(l2[:, t]), h[:, t]) for t in range(b.shape[1])], axis=1)


def penalty(name, n, dtype, seed=3):
    shape = [n if d == "n" else d for d in PENALTIES[name]]
    return array(np.random.default_rng(seed).uniform(0.5, 2, shape), real(dtype))


def weights(m, dtype):
    return array(np.random.default_rng(2).uniform(0.5, 2, m), real(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (1, 3), (3, 1)])
def test_every_penalty(shape, name, weighted, dtype):
    a, b, l2 = gaussian(shape, dtype), gaussian((shape[0], 2), dtype, 1), penalty(name, shape[1], dtype)
    w = weights(shape[0], dtype) if weighted else None
    x = ridge(a, b, l2, weights=w)
    assert x.dtype == dtype
    close(x, reference(a, b, l2, w), RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l2", [0.5, [0.5, 2.0]])
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_primal_is_dual(shape, l2, weighted, dtype):
    a, b = gaussian(shape, dtype), gaussian((shape[0], 2), dtype, 1)
    w = weights(shape[0], dtype) if weighted else None
    l2 = array(l2, real(dtype))
    primal, dual = (ridge(a, b, l2, weights=w, method=method) for method in ("primal", "dual"))
    close(primal, numpy(dual), RTOL[dtype])

    def gradients(method):
        fn = lambda a, b, l2: mx.real(ridge(a, b, l2, weights=w, method=method)).sum(stream=mx.cpu)  # noqa: E731
        return mx.grad(fn, argnums=(0, 1, 2))(a, b, l2)

    for x, y in zip(gradients("primal"), gradients("dual"), strict=True):
        close(x, numpy(y), 10 * RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("l2", [0.0, [0.0, 0.0], [[0.0]] * 4])
@pytest.mark.parametrize("shape", [(7, 4), (4, 4)])
def test_no_penalty_is_lstsq(shape, l2, dtype):
    a, b = gaussian(shape, dtype), gaussian((shape[0], 2), dtype, 1)
    w = weights(shape[0], dtype)
    l2 = l2 if isinstance(l2, float) else array(l2, real(dtype))
    close(ridge(a, b, l2), numpy(lstsq(a, b).solution), 10 * RTOL[dtype])
    close(ridge(a, b, l2, weights=w), numpy(lstsq(a, b, weights=w).solution), 10 * RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_a_singular_system_is_nan(shape, name, dtype):
    a, b = deficient(shape, 2, dtype), gaussian((shape[0], 2), dtype, 1)
    none = mx.zeros(penalty(name, shape[1], dtype).shape)
    assert np.all(np.isnan(numpy(ridge(a, b, none))))
    assert np.all(np.isnan(numpy(ridge(a, b, none, weights=weights(shape[0], dtype)))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["primal", "dual"])
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_a_penalty_below_the_noise_is_none(shape, method, dtype):
    a, b = deficient(shape, 2, dtype), gaussian((shape[0], 2), dtype, 1)
    assert np.all(np.isnan(numpy(ridge(a, b, 1e-30, method=method))))


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_a_singular_target_is_nan(dtype):
    a, b = deficient((7, 4), 2, dtype), gaussian((7, 2), dtype, 1)
    l2 = mx.array([0.0, 1.0])
    x = numpy(ridge(a, b, l2))
    assert np.all(np.isnan(x[:, 0]))
    close(x[:, 1:], reference(a, b[:, 1:], 1.0), 10 * RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("free", [[0], [0, 1], [0, 3]])
def test_unpenalized_features(free, dtype):
    """Zeros in l2 are fine where the data decides those features: the intercept of every readout."""
    l2 = np.ones((4, 1))
    l2[free] = 0
    for shape in [(7, 4), (3, 4)]:
        a, b = gaussian(shape, dtype), gaussian((shape[0], 2), dtype, 1)
        close(ridge(a, b, array(l2, real(dtype))), reference(a, b, l2), 30 * RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
@pytest.mark.parametrize("name", PENALTIES)
def test_a_weight_counts_rows(name, shape, dtype):
    a, b, l2 = gaussian(shape, dtype), gaussian((shape[0], 2), dtype, 1), penalty(name, shape[1], dtype)
    times = [2, 1, 0] * (shape[0] // 3)
    rows = mx.array(np.repeat(np.arange(shape[0]), times))
    close(ridge(a, b, l2, weights=array(times, real(dtype))), numpy(ridge(a[rows], b[rows], l2)), 3 * RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_vector(shape, dtype):
    a, b = gaussian(shape, dtype), gaussian((shape[0],), dtype, 1)
    for l2 in (0.5, penalty("feature", shape[1], dtype)[:, 0]):
        column = l2 if isinstance(l2, float) else l2[:, None]
        x = ridge(a, b, l2)
        assert x.shape == (shape[1],)
        close(x, reference(a, b[:, None], column)[:, 0], RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("of_a", "of_b", "of_l2", "of_w"),
    [
        ((2, 6, 3), (2, 6, 2), (), None),
        ((2, 6, 3), (6, 2), (2,), (6,)),
        ((6, 3), (2, 6, 2), (3, 1), (2, 6)),
        ((2, 1, 6, 3), (4, 6, 2), (3, 2), (4, 6)),
        ((2, 3, 6), (3, 2), (2, 1, 1), None),
        ((6, 3), (6, 2), (2, 3, 2), None),
        ((6, 3), (6, 2), (5, 1, 1), (5, 6)),
        ((3, 6), (2, 3, 2), (2, 1, 2), (3,)),
    ],
)
def test_batches_broadcast(of_a, of_b, of_l2, of_w, dtype):
    a, b = gaussian(of_a, dtype), gaussian(of_b, dtype, 1)
    rng = np.random.default_rng(2)
    l2 = array(rng.uniform(0.5, 2, of_l2), real(dtype))
    w = None if of_w is None else array(rng.uniform(0.5, 2, of_w), real(dtype))
    batch = np.broadcast_shapes(of_a[:-2], of_b[:-2], of_l2[:-2], () if of_w is None else of_w[:-1])
    x = ridge(a, b, l2, weights=w)
    assert x.shape == (*batch, of_a[-1], of_b[-1])
    full_a, full_b = (mx.broadcast_to(y, (*batch, *y.shape[-2:]), stream=mx.cpu) for y in (a, b))
    full_l2 = np.broadcast_to(numpy(l2), (*batch, of_a[-1], of_b[-1]))
    full_w = np.broadcast_to(np.ones(of_a[-2]) if w is None else numpy(w), (*batch, of_a[-2]))
    for i in np.ndindex(*batch):
        one = reference(full_a[i], full_b[i], full_l2[i], array(full_w[i], mx.float64))
        close(x[i], one, 3 * RTOL[dtype])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l2", [0.0, 1.0, [1.0, 0.0]])
@pytest.mark.parametrize(
    ("of_a", "of_b"),
    [((0, 3), (0, 2)), ((3, 0), (3, 2)), ((5, 3), (5, 0)), ((0, 5, 3), (5, 2)), ((5, 3), (0, 5, 2)), ((0, 0), (0, 2))],
)
def test_empty(of_a, of_b, l2, weighted):
    a, b = mx.ones(of_a), mx.ones(of_b)
    l2 = mx.array(l2)[: of_b[-1]] if isinstance(l2, list) else mx.array(l2)
    w = mx.ones(of_a[-2]) if weighted else None
    x = ridge(a, b, l2, weights=w)
    batch = np.broadcast_shapes(of_a[:-2], of_b[:-2])
    assert x.shape == (*batch, of_a[-1], of_b[-1])
    # No data: the penalty alone says zero; without one there is no answer.
    want = np.broadcast_to(np.where(np.array(l2) > 0, 0.0, NAN), x.shape)
    np.testing.assert_array_equal(np.array(x), want)
    grads = mx.grad(lambda a, b, l2: ridge(a, b, l2, weights=w).sum(), argnums=(0, 1, 2))(a, b, l2)
    mx.eval(grads)
    assert [g.shape for g in grads] == [of_a, of_b, l2.shape]


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("shape", [(3, 5, 3), (3, 3, 5)])
def test_a_bad_matrix_gives_nan_there_only(shape, name, dtype, bad):
    a, b, l2 = gaussian(shape, dtype), gaussian((shape[1], 2), dtype, 1), penalty(name, shape[2], dtype)
    x = np.array(a)
    x[1, 2, 0] = bad
    got, want = numpy(ridge(array(x, dtype), b, l2)), numpy(ridge(a, b, l2))
    assert np.all(np.isnan(got[1]))
    close(got[[0, 2]], want[[0, 2]], RTOL[dtype])
    grad = mx.grad(lambda a: mx.real(ridge(a, b, l2)).sum(stream=mx.cpu))
    got, want = numpy(grad(array(x, dtype))), numpy(grad(a))
    assert np.all(np.isnan(got[1]))
    close(got[[0, 2]], want[[0, 2]], 10 * RTOL[dtype])


@pytest.mark.parametrize("bad", [-1.0, NAN, -INF])
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_a_bad_penalty_gives_nan(shape, name, bad):
    a, b = gaussian(shape), gaussian((shape[0], 2), seed=1)
    l2 = numpy(penalty(name, shape[1], mx.float64))
    l2[(0,) * l2.ndim] = bad
    x = numpy(ridge(a, b, array(l2, mx.float64)))
    assert np.all(np.isnan(x[:, 0]))


@pytest.mark.parametrize("bad", [-1.0, NAN, INF])
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_a_bad_weight_gives_nan(shape, dtype, name, bad):
    a, b, l2 = gaussian(shape, dtype), gaussian((shape[0], 2), dtype, 1), penalty(name, shape[1], dtype)
    w = np.ones((2, shape[0]))
    w[1, 1] = bad
    x = ridge(a, b, l2, weights=array(w, real(dtype)))
    close(x[0], reference(a, b, l2), 3 * RTOL[dtype])
    assert np.all(np.isnan(numpy(x[1])))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half(dtype):
    a, b = (gaussian(s).astype(dtype, stream=mx.cpu) for s in ((6, 3), (6, 2)))
    x = ridge(a, b, 0.5)
    assert x.dtype == dtype
    close(x, reference(a, b, 0.5), RTOL[dtype])


@pytest.mark.parametrize("l2", [1e-8, 1e-4])
@pytest.mark.parametrize("shape", [(200, 6), (6, 200)])
@pytest.mark.parametrize("form", ["number", "feature"])
def test_float32_agrees_with_float64_at_condition_1e4(form, shape, l2):
    a, b = array(with_values(*shape, np.geomspace(1, 1e-4, 6))), gaussian((shape[0], 2), mx.float32, 1)
    l2 = mx.array(l2) if form == "number" else mx.full((shape[1], 1), l2)
    wide = ridge(*(array(numpy(x), mx.float64) for x in (a, b)), l2)
    assert norm_error(ridge(a, b, l2), wide) < 1e-3


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
@pytest.mark.parametrize("form", ["number", "feature"])
@pytest.mark.parametrize("weighted", [False, True])
def test_scale(weighted, form, shape, dtype, scale):
    """The penalty of data of scale s has scale s^2, which float32 cannot hold: float64 takes it."""
    x, y = numpy(gaussian(shape, dtype)), numpy(gaussian((shape[0], 2), dtype, 1))
    w = weights(shape[0], dtype) if weighted else None
    rtol = 30 * RTOL[dtype]

    def results(scale):
        a, b = array(x * scale, dtype), array(y * scale, dtype)
        l2 = array(np.full((shape[1], 1) if form == "feature" else (), 0.7) * scale**2, mx.float64)
        fn = lambda a, b, l2: mx.real(ridge(a, b, l2, weights=w)).sum(stream=mx.cpu)  # noqa: E731
        ga, gb, gl = mx.grad(fn, argnums=(0, 1, 2))(a, b, l2)
        out = [numpy(ridge(a, b, l2, weights=w)), numpy(ga) * scale, numpy(gb) * scale, numpy(gl) * scale**2]
        if weighted:
            out.append(numpy(mx.grad(lambda w: mx.real(ridge(a, b, l2, weights=w)).sum(stream=mx.cpu))(w)))
        return out

    for got, want in zip(results(scale), results(1.0), strict=True):
        close(got, want, rtol)


# --- Penalties far from the size of the data --------------------------------------------------------------------------


def everywhere(a, b, l2):
    """Seen and unseen values, and a penalty per target: three routes in float64."""
    yield ridge(a, b, l2)
    yield mx.compile(lambda a, b: ridge(a, b, l2))(a, b)
    yield mx.vmap(lambda a: ridge(a, b, l2))(a[None])[0]
    yield ridge(a, b, l2 * mx.ones((1, 2), mx.float64))


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e-20])
@pytest.mark.parametrize("l2", [[1.0, 1.0, 1e20], [1e-10, 1.0, 1e20], [1e20, 1.0, 1.0], [1.0, 1.0, 1e40], [0.5] * 3])
def test_a_large_penalty_on_one_feature_costs_the_others_no_digit(l2, scale):
    x, b = numpy(gaussian((6, 3))) * scale, numpy(gaussian((6, 2), seed=1))
    half = np.sqrt(1 / (np.sum(x * x, axis=0) + l2))[:, None]  # to a unit diagonal, or NumPy would lose them
    want = half * np.linalg.solve(half * (x.T @ x + np.diag(l2)) * half.T, half * (x.T @ b))
    with mx.stream(mx.cpu):
        for got in everywhere(array(x, mx.float64), array(b, mx.float64), array(np.array(l2)[:, None], mx.float64)):
            np.testing.assert_allclose(numpy(got), want, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-160, 1e-200, 1e-300])
@pytest.mark.parametrize("l2", [0.1, 1e200])
@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_data_that_are_nothing_beside_the_penalty(shape, l2, scale):
    """There the solution is A^T b / l2."""
    x, b = numpy(gaussian(shape)), numpy(gaussian((shape[0], 2), seed=1))
    if scale / l2 < 1e-300:
        scale = 1e-300 * l2
    a, b, l2 = array(x * scale, mx.float64), array(b, mx.float64), array(l2, mx.float64)
    with mx.stream(mx.cpu):
        for got in (*everywhere(a, b, l2), ridge(a, b, mx.stack([l2, l2]))):
            np.testing.assert_allclose(numpy(got) / scale, x.T @ numpy(b) / numpy(l2), rtol=1e-12)


# --- The dual form --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "compiled"])
@pytest.mark.parametrize("cond", [10.0, 1e4])
def test_the_gradient_of_the_dual_form_keeps_its_digits(cond, seen):
    """At a penalty of a tenth of the smallest squared singular value, against twice the precision of float64."""
    data = problem(Case("ridge", 1, 8, 40, "float64"), cond)
    arrays = [array(data[name], mx.float64) for name in ("a", "b", "bar")]

    def fn(a, b, bar):
        value, gradient = mx.vjp(lambda a, b: ridge(a, b, data["l2"]), [a, b], [bar])
        return *value, *gradient

    with mx.stream(mx.cpu):
        got = (fn if seen else mx.compile(fn))(*arrays)
    for x, want in zip(got, reference_of("ridge", data), strict=True):
        close(x, want, 20 * 2.0**-52 * cond)


def test_the_dual_form_at_small_weights_and_at_zero():
    """Its gradient is that of the primal form: none of the two ways of dividing by a weight is wrong at its border."""
    w = array([1.0, 2.0, 1e-3, 2.1e-6, 1.9e-6, 1e-12, 0.0], mx.float64)
    a, b = gaussian((7, 9)), gaussian((7, 2), seed=1)

    def gradients(method, order):
        def loss(a, b, l2, w):
            with mx.stream(mx.cpu):
                return mx.sum(mx.square(ridge(a, b, l2, weights=w, method=method)))

        def steepness(*args):
            with mx.stream(mx.cpu):
                return sum(mx.sum(mx.sin(g)) for g in mx.grad(loss, argnums=(0, 1, 2, 3))(*args))

        return mx.grad(loss if order == 1 else steepness, argnums=(0, 1, 2, 3))(a, b, array([0.5, 2.0], mx.float64), w)

    for order in (1, 2):
        for x, y in zip(gradients("dual", order), gradients("primal", order), strict=True):
            close(x, numpy(y), 1e-9)
