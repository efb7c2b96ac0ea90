"""Every named method with everything that its table says it takes, and errors for what it does not."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

import pinvnn
from pinvnn import _factorizations as classes
from pinvnn._methods import METHODS, RIDGE_METHODS, factor_problem, factor_ridge
from pinvnn.testing import adjoint_check
from tests.support.cases import DTYPES, close, deficient, gaussian, numpy, positive, real

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

SHAPES = {"tall": (7, 3), "wide": (3, 6), "square": (4, 4), "batch": (2, 6, 3)}
RTOL = {mx.float64: 1e-12, mx.float32: 1e-5, mx.complex64: 1e-5}
CASES = [
    pytest.param(method, dtype, shape, weighted, id=f"{method}-{str(dtype)[9:]}-{name}{'-weighted' * weighted}")
    for (method, dtype), (name, shape), weighted in itertools.product(
        itertools.product(METHODS, DTYPES), SHAPES.items(), [False, True]
    )
]


def taken(method, dtype, shape, weighted):
    capability = METHODS[method]
    tall = shape[-2] >= shape[-1]
    weights = {"all": True, "tall": tall, "none": False}[capability.weights]
    return dtype in capability.dtypes and (weights or not weighted)


def problem(shape, dtype, weighted):
    a, b = gaussian(shape, dtype), gaussian((*shape[:-1], 2), dtype, 1)
    return a, b, positive(shape[:-1], real(dtype)) if weighted else None


def pseudo_inverse(a, w):
    """P with x = P b."""
    a = numpy(a)
    root = np.ones(a.shape[:-1]) if w is None else np.sqrt(numpy(w))
    return np.linalg.pinv(root[..., None] * a) * root[..., None, :]


def calls(method, a, b, w):
    """Results of every public function that takes the method, beside the operation on P that each should equal."""
    f = pinvnn.factorize(a, weights=w, method=method)
    yield f.solve(b), lambda p: p @ numpy(b)
    yield f.pinv(), lambda p: p
    yield pinvnn.lstsq(a, b, weights=w, method=method).solution, lambda p: p @ numpy(b)
    if w is None:
        yield pinvnn.pinv(a, method=method), lambda p: p


@pytest.mark.parametrize(("method", "dtype", "shape", "weighted"), CASES)
def test_it_takes_what_its_table_says(method, dtype, shape, weighted):
    a, b, w = problem(shape, dtype, weighted)
    if taken(method, dtype, shape, weighted):
        p = pseudo_inverse(a, w)
        for got, of in calls(method, a, b, w):
            close(got, of(p), RTOL[dtype])
        return
    for name, call in (
        ("factorize", lambda: pinvnn.factorize(a, weights=w, method=method)),
        ("lstsq", lambda: pinvnn.lstsq(a, b, weights=w, method=method)),
    ):
        with pytest.raises(ValueError, match=rf"\[pinvnn.{name}\] method '{method}' .*Use method='auto'"):
            call()


@pytest.mark.parametrize(("method", "dtype", "shape", "weighted"), [c for c in CASES if taken(*c.values)])
def test_its_derivatives_are_adjoint(method, dtype, shape, weighted):
    a, b, w = problem(shape, dtype, weighted)

    def parts(a, b, w=w):
        f = pinvnn.factorize(a, weights=w, method=method)
        return f.solve(b), f.pinv()

    # Rows that are all fitted exactly have a gradient of 0 by their weights.
    args = (a, b, w) if weighted and shape[-2] > shape[-1] else (a, b)
    adjoint_check(lambda *args: parts(*args)[0], *args)
    adjoint_check(lambda *args: parts(*args)[1], *args)


PENALTIES = {"number": (), "feature": ("n", 1), "target": (1, "k")}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", RIDGE_METHODS)
def test_ridge_takes_every_penalty(method, dtype, penalty, shape, weighted):
    a, b, w = problem(shape, dtype, weighted)
    n, k = shape[-1], 2
    l2 = positive(tuple({"n": n, "k": k}.get(i, i) for i in PENALTIES[penalty]), mx.float64, 5)
    if classes.Penalized not in RIDGE_METHODS[method] and penalty == "feature":
        with pytest.raises(ValueError, match="the dual form needs the same l2 for all features"):
            pinvnn.ridge(a, b, l2, weights=w, method=method)
        return
    x, y = numpy(a), numpy(b)
    d = np.ones(x.shape[:-1]) if w is None else numpy(w)
    xt = np.conj(np.swapaxes(x, -1, -2)) * d[..., None, :]
    full = np.broadcast_to(numpy(l2), (n, k))
    want = [np.linalg.solve(xt @ x + np.diag(full[:, t]), xt @ y[..., t : t + 1]) for t in range(k)]
    close(pinvnn.ridge(a, b, l2, weights=w, method=method), np.concatenate(want, axis=-1), RTOL[dtype])
    if penalty != "target":  # a factorization serves all right-hand sides alike
        f = pinvnn.factorize(a, weights=w, l2=l2, method=method)
        close(f.solve(b), np.concatenate(want, axis=-1), RTOL[dtype])
        close(f.pinv(), np.linalg.solve(xt @ x + np.diag(full[:, 0]), xt), RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", RIDGE_METHODS)
def test_factorizations_with_a_penalty_are_adjoint(method, dtype):
    a, b, w = problem((3, 6), dtype, True)
    l2 = positive((1, 1), mx.float64, 5)

    def parts(a, b, w, l2):
        f = pinvnn.factorize(a, weights=w, l2=l2, method=method)
        return f.solve(b), f.pinv(), f.logdet()

    for i in range(3):
        adjoint_check(lambda *args: parts(*args)[i], a, b, w, l2)  # noqa: B023


def test_auto_takes_each_class():
    square, tall = gaussian((4, 4), mx.float64), gaussian((6, 3), mx.float64)
    l2 = mx.array([[1.0]], mx.float64)
    found = [
        factor_problem(square),
        factor_problem(tall),
        factor_problem(deficient((6, 4), 2, mx.float64)),
        factor_ridge(tall, None, l2),
        factor_ridge(tall.T, None, l2),
    ]
    assert [type(f) for f in found] == [
        classes.Square,
        classes.FullRank,
        classes.Truncated,
        classes.Penalized,
        classes.Dual,
    ]


def test_every_class_stands_in_a_table():
    def below(cls):
        return {cls, *(c for child in cls.__subclasses__() for c in below(child))}

    named = {c.factorization for c in METHODS.values()} | {c for pair in RIDGE_METHODS.values() for c in pair}
    # Square serves real square matrices, when "auto" has verified them.
    assert below(classes.Factorization) - {classes.Factorization} == named | {classes.Square}
