"""Derivatives of every function in every argument: finite differences, forward against reverse, float32, memory.

(Complex: test_complex.py.)
"""

import mlx.core as mx
import numpy as np
import pytest

from pinvnn import lstsq, pinv, ridge
from pinvnn.testing import adjoint_check, gradcheck, random_matrix
from tests.support.cases import (
    DTYPES,
    array,
    close,
    deficient,
    gaussian,
    gradients,
    norm_error,
    numpy,
    positive,
    real,
    with_values,
)

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

RTOL = 5e-7  # of finite differences in float64, relative to the largest entry of a gradient


def float64(shape, seed=0, cond=5.0):
    return random_matrix(shape, cond=cond, dtype=mx.float64, seed=seed)


def check(fn, *args, order=2):
    gradcheck(fn, *args, order=order, rtol=RTOL, atol=1e-9)


# --- pinv -------------------------------------------------------------------------------------------------------------

MATRICES = {
    "tall": float64((4, 2)),
    "wide": float64((2, 4)),
    "square": float64((3, 3)),
    "column": float64((3, 1)),
    "row": float64((1, 3)),
    "batch": float64((2, 3, 2)),
    "repeated": array(with_values(4, 2, [2.0, 2.0]), mx.float64),
    "repeated square": array(with_values(3, 3, [2.0, 2.0, 2.0]), mx.float64),
}
# Singular values with a cutoff that drops some that are not zero; (kept, dropped) may repeat among themselves.
TRUNCATED = {
    "one": [2.0, 1.5, 0.5],
    "two": [2.0, 0.5, 0.4],
    "repeated kept": [2.0, 2.0, 0.5],
    "repeated dropped": [2.0, 0.5, 0.5],
    "nearly zero": [2.0, 1.0, 1e-6],
}


@pytest.mark.parametrize("a", MATRICES.values(), ids=MATRICES)
def test_pinv(a):
    check(pinv, a)


@pytest.mark.parametrize("s", TRUNCATED.values(), ids=TRUNCATED)
@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (3, 3)])
def test_pinv_truncated(shape, s):
    check(lambda a: pinv(a, rtol=0.4), array(with_values(*shape, s), mx.float64))


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (3, 3)])
def test_pinv_rank_deficient(shape):
    """Through a product of rank 2, which finite differences do not leave."""
    left, right = float64((shape[0], 2)), float64((shape[1], 2), 1)
    check(lambda x, y: pinv(x @ y.T, rtol=1e-6), left, right)


def test_pinv_hermitian():
    check(lambda a: pinv(a, hermitian=True), float64((3, 3)))
    check(lambda a: pinv(a, hermitian=True, rtol=0.4), array(with_values(3, 3, [2.0, 1.0, 0.3]), mx.float64))


def test_pinv_at_zero_dropped_values_is_golub_pereyra():
    a = deficient((6, 4), 2)
    p, x, g = numpy(pinv(a)), numpy(a), numpy(gaussian((4, 6), seed=1))
    got = numpy(mx.vjp(pinv, [a], [array(g, mx.float64)])[1][0])
    left, right = np.eye(6) - x @ p, np.eye(4) - p @ x
    close(got, -p.T @ g @ p.T + left @ g.T @ p @ p.T + p.T @ p @ g.T @ right, 1e-12)


# --- lstsq ------------------------------------------------------------------------------------------------------------


def outputs(a, b, w=None, **cut):
    r = lstsq(a, b, weights=w, **cut)
    # Residuals of a problem with m <= n vanish identically, and have no derivative to compare.
    return [r.solution, *([r.residuals] if a.shape[-2] > a.shape[-1] or cut else [])]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["tall", "wide", "square", "column", "row", "repeated"])
def test_lstsq(name, weighted):
    a = MATRICES[name]
    args = [a, float64((a.shape[0], 1), 1)] + [positive(a.shape[0])] * weighted
    check(outputs, *args)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(4, 3), (3, 4)])
@pytest.mark.parametrize("s", [TRUNCATED["one"], TRUNCATED["two"]])
def test_lstsq_truncated(s, shape, weighted):
    a = array(with_values(*shape, s), mx.float64)
    args = [a, float64((shape[0], 1), 1)] + [array(np.linspace(1, 1.1, shape[0]), mx.float64)] * weighted
    check(lambda *args: outputs(*args, rtol=0.4), *args)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(4, 3), (3, 4)])
def test_lstsq_rank_deficient(shape, weighted):
    args = [float64((shape[0], 2)), float64((shape[1], 2), 1), float64((shape[0], 1), 2)]
    args += [positive(shape[0])] * weighted
    check(lambda x, y, b, *w: outputs(x @ y.T, b, *w, rtol=1e-6), *args)


@pytest.mark.parametrize(
    ("of_a", "of_b", "of_w"),
    [((2, 4, 2), (4, 1), None), ((4, 2), (2, 4, 1), (4,)), ((2, 1, 2, 3), (2, 2, 1), (2,)), ((4, 2), (4,), (2, 4))],
)
def test_lstsq_broadcast(of_a, of_b, of_w):
    args = [gaussian(of_a), gaussian(of_b, seed=1), *([positive(of_w)] if of_w else [])]
    check(lambda *args: outputs(*args)[0], *args, order=1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(4, 2), (2, 4), (3, 3), (2, 3, 2)])
def test_singular_values(shape, weighted):
    a, w = gaussian(shape), positive(shape[-2])
    fn = lambda a, *w: lstsq(a, mx.zeros(shape[-2]), weights=w[0] if w else None).singular_values  # noqa: E731
    check(fn, a, *[w] * weighted)


def test_numerically_zero_singular_values_have_no_gradient():
    a = deficient((6, 4), 2)
    fn = lambda a: lstsq(a, mx.zeros(6)).singular_values[2:].sum(stream=mx.cpu)  # noqa: E731
    assert not np.any(numpy(mx.grad(fn)(a)))


def test_the_sum_of_repeated_singular_values():
    """Each alone has a kink there; their sum, the nuclear norm, has the gradient U V^T at first order."""
    x = with_values(5, 3, [2.0, 2.0, 2.0])
    g = mx.grad(lambda a: lstsq(a, mx.zeros(5)).singular_values.sum(stream=mx.cpu))(array(x, mx.float64))
    close(g, x / 2, 1e-13)


# --- ridge ------------------------------------------------------------------------------------------------------------

PENALTIES = {"number": (), "target": (2,), "feature": ("n", 1), "each": ("n", 2)}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("shape", [(4, 2), (2, 4), (3, 3)])
def test_ridge(shape, name, weighted):
    l2 = positive([shape[1] if d == "n" else d for d in PENALTIES[name]], seed=4)
    args = [float64(shape), float64((shape[0], 2), 1), l2] + [positive(shape[0])] * weighted
    check(lambda a, b, l2, w=None: ridge(a, b, l2, weights=w), *args)


@pytest.mark.parametrize("method", ["primal", "dual"])
@pytest.mark.parametrize("shape", [(4, 3), (3, 4)])
def test_ridge_by_either_form(shape, method):
    args = [float64(shape), float64((shape[0], 2), 1), positive((2,)), positive(shape[0])]
    check(lambda a, b, l2, w: ridge(a, b, l2, weights=w, method=method), *args)


@pytest.mark.parametrize(
    ("of_a", "of_b", "of_l2", "of_w"),
    [
        ((2, 4, 2), (4, 1), (), None),
        ((4, 2), (2, 4, 1), (2, 1), (4,)),
        ((2, 3), (2, 2), (2, 1, 1), (2,)),
        ((4, 2), (4,), (2,), (2, 4)),
        ((4, 2), (4, 2), (2, 2, 2), None),
        ((2, 4, 2), (4,), (2, 2), None),
    ],
)
def test_ridge_broadcast(of_a, of_b, of_l2, of_w):
    args = [gaussian(of_a), gaussian(of_b, seed=1), positive(of_l2, seed=4), *([positive(of_w)] if of_w else [])]
    check(lambda a, b, l2, w=None: ridge(a, b, l2, weights=w), *args, order=1)


def test_ridge_without_penalty_is_lstsq():
    a, b = float64((5, 3)), float64((5, 2), 1)
    check(lambda a, b: ridge(a, b, 0.0), a, b)
    for x, y in zip(*(mx.grad(f, (0, 1))(a, b) for f in (
        lambda a, b: ridge(a, b, 0.0).sum(stream=mx.cpu), lambda a, b: lstsq(a, b).solution.sum(stream=mx.cpu)
    )), strict=True):  # fmt: skip
        close(x, numpy(y), 1e-13)


# --- Weight 0 ---------------------------------------------------------------------------------------------------------

WEIGHTED = {
    "lstsq": lambda a, b, w: lstsq(a, b, weights=w).solution,
    "residuals": lambda a, b, w: lstsq(a, b, weights=w).residuals,
    "ridge": lambda a, b, w: ridge(a, b, 0.5, weights=w),
    "ridge by feature": lambda a, b, w: ridge(a, b, array([[0.5]] * a.shape[-1], mx.float64), weights=w),
    "singular values": lambda a, b, w: lstsq(a, b, weights=w).singular_values,
}


@pytest.mark.parametrize("fn", WEIGHTED.values(), ids=WEIGHTED)
def test_at_weight_zero(fn):
    w = array([1.0, 0.0, 2.0, 0.5], mx.float64)
    check(lambda a, b: fn(a, b, w), float64((4, 2)), float64((4, 1), 1))


@pytest.mark.parametrize("fn", WEIGHTED.values(), ids=WEIGHTED)
@pytest.mark.parametrize("order", [1, 2])
def test_gradient_in_a_weight_at_zero(order, fn):
    """Differences would need negative weights, so: the limit from above, where the other tests hold."""
    a, b = float64((6, 3)), float64((6, 2), 1)
    w = np.array([1.0, 0.0, 2.0, 0.5, 0.0, 1.5])

    def first(a, b, w):
        return mx.sum(mx.square(fn(a, b, w), stream=mx.cpu), stream=mx.cpu)

    def second(a, b, w):
        return sum(mx.square(g, stream=mx.cpu).sum(stream=mx.cpu) for g in mx.grad(first, (0, 1, 2))(a, b, w))

    gradient = mx.grad([first, second][order - 1], argnums=(0, 1, 2))
    at, above = (gradient(a, b, array(x, mx.float64)) for x in (w, np.maximum(w, 1e-12)))
    for x, y in zip(at, above, strict=True):
        close(x, numpy(y), 1e-9)


# --- Forward against reverse, in every dtype --------------------------------------------------------------------------

FUNCTIONS = {
    "pinv": (pinv, "a"),
    "pinv truncated": (lambda a: pinv(a, rtol=0.4), "a"),
    "lstsq": (lambda a, b: outputs(a, b), "ab"),
    "lstsq weighted": (lambda a, b, w: outputs(a, b, w), "abw"),
    "lstsq weighted truncated": (lambda a, b, w: outputs(a, b, w, rtol=0.4), "abw"),
    "singular values": (lambda a, w: lstsq(a, mx.zeros(a.shape[-2]), weights=w).singular_values, "aw"),
    "ridge": (lambda a, b, w, l2: ridge(a, b, l2, weights=w), "abwl"),
}


def arguments(shape, dtype, names):
    every = {
        "a": lambda: gaussian(shape, dtype),
        "b": lambda: gaussian((*shape[:-1], 2), dtype, 1),
        "w": lambda: positive(shape[:-1], real(dtype)),
        "l": lambda: positive((), real(dtype)),
    }
    return [every[name]() for name in names]


def at_full_row_rank(name, shape):
    """Where weights change nothing, and there is only rounding to compare."""
    return name == "lstsq weighted" and shape[-2] <= shape[-1]


@pytest.mark.parametrize("dtype", [*DTYPES, mx.float16, mx.bfloat16])
@pytest.mark.parametrize(
    ("name", "shape"),
    [(n, s) for n in FUNCTIONS for s in ((6, 3), (3, 6), (2, 4, 4)) if not at_full_row_rank(n, s)],
)
def test_forward_is_adjoint_to_reverse(name, shape, dtype):
    fn, names = FUNCTIONS[name]
    half = dtype in (mx.float16, mx.bfloat16)
    args = arguments(shape, mx.float32 if half else dtype, names)
    adjoint_check(fn, *[x.astype(dtype, stream=mx.cpu) if half else x for x in args])


# --- float32 against float64 at condition 1e4 -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(200, 6), (6, 200), (6, 6)])
@pytest.mark.parametrize("name", ["pinv", "lstsq", "lstsq weighted", "ridge", "singular values"])
def test_float32_agrees_with_float64(shape, name):
    fn, names = FUNCTIONS[name]
    a = array(with_values(*shape, np.geomspace(1, 1e-4, 6)))
    args = [a, *arguments(shape, mx.float32, names)[1:]]
    if name == "ridge":
        args[-1] = mx.array(1e-8)
    first = lambda *args: out[0] if isinstance(out := fn(*args), list) else out  # noqa: E731
    weight = gaussian(first(*args).shape, seed=7)

    def loss(*args):
        out = first(*args)
        with mx.stream(mx.cpu):
            return mx.sum(out * weight.astype(out.dtype))

    wide = [array(numpy(x), mx.float64) for x in args]
    assert norm_error(first(*args), first(*wide)) < 1e-3
    pairs = list(zip(gradients(loss, args), gradients(loss, wide), strict=True))
    errors = [norm_error(x, y) for x, y in (pairs[:2] if at_full_row_rank(name, shape) else pairs)]
    assert max(errors) < 1e-3, errors


@pytest.mark.parametrize("mean", [0, 300, 1000])
@pytest.mark.parametrize("shape", [(200, 20), (20, 200), (2, 90, 5)], ids=str)
def test_the_gradient_of_pinv_keeps_its_digits_far_from_zero(shape, mean):
    """Condition 10 about the mean of the longer side; products of A itself would lose the digits of the mean."""
    rows = mx.swapaxes(gaussian(shape, mx.float32), -1, -2) if shape[-2] < shape[-1] else gaussian(shape, mx.float32)
    rows = rows * mx.linspace(0.3, 1, rows.shape[-1]) + mean
    a = mx.swapaxes(rows, -1, -2) if shape[-2] < shape[-1] else rows
    w = gaussian((*a.shape[:-2], a.shape[-1], a.shape[-2]), mx.float32, 1)
    slope = mx.grad(lambda a, w: mx.sum(pinv(a) * w))
    with mx.stream(mx.cpu):
        expected = slope(a.astype(mx.float64), w.astype(mx.float64))
    assert norm_error(slope(a, w), expected) < 2e-6


@pytest.mark.parametrize("dtype", [mx.float32, mx.complex64])
def test_memory_of_a_gradient(dtype):
    """A rule that formed an m x m matrix would need 40 GB, or 80."""
    rows, columns = (100_000, 64) if dtype == mx.float32 else (100_000, 8)
    a = mx.random.normal((rows, columns), key=mx.random.key(0)).astype(dtype)
    weight = mx.random.normal((columns, rows), key=mx.random.key(1))
    mx.eval(a, weight)
    mx.reset_peak_memory()
    g = mx.grad(lambda a: mx.sum(mx.real(pinv(a)) * weight))(a)
    mx.eval(g)
    assert bool(mx.all(mx.isfinite(mx.abs(g)))) and float(mx.abs(g).max()) > 0
    # On a GPU a product has two halves of each factor, and the emulated one truncates copies of them.
    assert mx.get_peak_memory() < (400e6 if mx.default_device() == mx.cpu else 600e6)
