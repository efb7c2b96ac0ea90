"""What is decided without values, in compiled graphs and under vmap: no singular vectors where none are needed.

The graphs are those of mx.compile, the values those of mx.vmap: both have no values to look at while they are built,
but the kernels of a compiled graph take seconds to translate on Linux.
"""

from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest

from pinvnn import lstsq, ridge
from pinvnn._types import ReadoutMethod
from pinvnn.nn import LeastSquaresReadout, RidgeClassifier
from tests.support.cases import array, numpy
from tests.support.graphs import operations

pytestmark = pytest.mark.usefixtures("on_cpu")

M, N, K = 40, 5, 3
RNG = np.random.default_rng(3)
A, B, W = RNG.standard_normal((M, N)), RNG.standard_normal((M, K)), RNG.uniform(0.5, 2, M)
WIDE, FEW_ROWS = RNG.standard_normal((4, 9)), RNG.standard_normal((8, N))
PENALTIES = {
    "number": 0.3,
    "array": array(0.3, mx.float64),
    "by target": array([0.1, 1.0, 10.0], mx.float64),
    "by feature": array(np.geomspace(0.1, 10, N)[:, None], mx.float64),
    "zero": 0.0,
}
BY_VECTORS = {"SVD", "Eigh"}


def readout(method: ReadoutMethod = "auto", l2=0.0, n=N, **kwargs):
    return LeastSquaresReadout(n, K, l2=l2, method=method, **kwargs)


def labels(x):
    return mx.arange(x.shape[0]) % K


def gradients(fn, *args):
    """Value and gradients of the sum of ``fn``, as a function to compile."""
    return mx.value_and_grad(lambda *x: fn(*x).sum(), argnums=tuple(range(len(args))))


def checked_without_vectors(fn, *args, tolerance):
    """A compiled step has no singular vectors, and the values and gradients of an eager one."""
    step = gradients(fn, *args)
    value, bars = mx.compile(step)(*args)
    assert not BY_VECTORS & set(operations(value, *bars))
    value, *bars = unseen(lambda *x: flat(*step(*x)), *args)
    expected, wanted = step(*args)
    for x, y in zip([value, *bars], [expected, *wanted], strict=True):
        np.testing.assert_allclose(numpy(x), numpy(y), rtol=tolerance, atol=tolerance)


def flat(value, bars):
    return value, *bars


def unseen(fn, *args):
    """``fn(*args)`` under vmap over a batch of one."""
    out = mx.vmap(fn)(*(x[None] for x in args))
    return [x[0] for x in out] if isinstance(out, (list, tuple)) else out[0]


def arrays(dtype, *xs):
    return [array(x, dtype) for x in xs]


FLOAT32_STEPS = {
    **{
        f"ridge, l2 {kind}": (lambda a, b, l2=l2: ridge(a, b, l2), A)
        for kind, l2 in PENALTIES.items()
        if kind != "zero"
    },
    "ridge, wide": (lambda a, b: ridge(a, b, 0.3), WIDE),
    "ridge, few rows": (lambda a, b: ridge(a, b, 0.3), FEW_ROWS),
    "adapt": (lambda a, b: readout(l2=0.3).adapt(a, b, a), A),
    "adapt, wide": (lambda a, b: readout(l2=0.3, n=9).adapt(a, b, a), WIDE),
    "projected_loss": (lambda a, b: readout(l2=0.3).projected_loss(a, b), A),
    "projected_loss, wide": (lambda a, b: readout(l2=0.3, n=9).projected_loss(a, b), WIDE),
    "loo_loss": (lambda a, b: readout(l2=0.3).loo_loss(a, b), A),
    "loo_loss, learned l2": (lambda a, b: readout(l2=0.3, learn_l2=True).loo_loss(a, b), A),
    "gcv": (lambda a, b: readout(l2=0.3).gcv(a, b), A),
    "RidgeClassifier": (lambda a, b: RidgeClassifier(N, K).adapt(a, labels(a), a), A),
}
PROMISED_STEPS = {
    **{
        f"ridge, l2 {kind}": (lambda a, b, l2=l2: ridge(a, b, l2, method="cholesky"), A)
        for kind, l2 in PENALTIES.items()
    },
    "ridge, wide": (lambda a, b: ridge(a, b, 0.3, method="cholesky"), WIDE),
    "ridge, wide, by target": (lambda a, b: ridge(a, b, PENALTIES["by target"], method="cholesky"), WIDE),
    "lstsq": (lambda a, b: lstsq(a, b, method="cholesky").solution, A),
    **{
        f"{name}, l2 {l2}{', few rows' * (a is FEW_ROWS)}": (fn, a)
        for l2 in (0.0, 0.3)
        for a in (A, FEW_ROWS)
        for name, fn in {
            "adapt": lambda a, b, l2=l2: readout("cholesky", l2).adapt(a, b, a),
            "projected_loss": lambda a, b, l2=l2: readout("cholesky", l2).projected_loss(a, b),
            "loo_loss": lambda a, b, l2=l2: readout("cholesky", l2).loo_loss(a, b),
            "gcv": lambda a, b, l2=l2: readout("cholesky", l2).gcv(a, b),
            "no bias": lambda a, b, l2=l2: readout("cholesky", l2, bias=False).loo_loss(a, b),
        }.items()
    },
    "RidgeClassifier": (lambda a, b: RidgeClassifier(N, K, l2=0.0, method="cholesky").adapt(a, labels(a), a), A),
}


@pytest.mark.parametrize("name", FLOAT32_STEPS)
def test_float32_with_a_penalty_takes_no_singular_vectors(name):
    fn, a = FLOAT32_STEPS[name]
    checked_without_vectors(fn, *arrays(mx.float32, a, B[: len(a)]), tolerance=2e-5)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
@pytest.mark.parametrize("name", PROMISED_STEPS)
def test_a_promise_of_full_rank_takes_no_singular_vectors(name, dtype):
    fn, a = PROMISED_STEPS[name]
    checked_without_vectors(fn, *arrays(dtype, a, B[: len(a)]), tolerance=2e-5 if dtype == mx.float32 else 1e-10)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
def test_a_promise_with_weights(dtype):
    fn = lambda a, b, w: readout("cholesky").loo_loss(a, b, w)  # noqa: E731
    checked_without_vectors(fn, *arrays(dtype, A, B, W), tolerance=2e-5 if dtype == mx.float32 else 1e-10)


def test_the_test_can_fail():
    a, b = arrays(mx.float32, A, B)
    with pytest.raises(AssertionError):
        checked_without_vectors(lambda a, b: ridge(a, b, 0.0), a, b, tolerance=1e-3)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
@pytest.mark.parametrize("call", ["solve", "projected_loss", "loo_loss"])
def test_a_promise_that_does_not_hold_is_nan(call, dtype):
    a, b = arrays(dtype, np.concatenate([A, A[:, :1]], axis=1), B)
    run = getattr(readout("cholesky", n=N + 1), call)
    out = run(a, b)
    assert np.all(np.isnan(numpy(out[0] if call == "solve" else out)))


@pytest.mark.parametrize("l2", [0.0, -1.0], ids=str)
def test_a_compiled_dual_form_needs_a_positive_penalty(l2):
    a, b = arrays(mx.float32, WIDE, B[:4])
    x = unseen(ridge, a, b, mx.array(l2))
    assert np.all(np.isnan(numpy(x)))


@pytest.mark.parametrize("l2", [1e-8, 1e-3, 1e3, 1e12], ids=str)
@pytest.mark.parametrize("rank", [4, 2])
def test_the_compiled_dual_form_is_that_of_float64(rank, l2):
    a, b = WIDE[:rank][np.arange(4) % rank], B[:4]
    x = unseen(lambda a, b: ridge(a, b, l2), *arrays(mx.float32, a, b))
    a, b = (numpy(array(v, mx.float32)).astype(np.float64) for v in (a, b))
    stacked = np.concatenate([a, np.sqrt(l2) * np.eye(9)])
    expected = np.linalg.lstsq(stacked, np.concatenate([b, np.zeros((9, K))]))[0]
    assert np.linalg.norm(numpy(x) - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("method", ["auto", "cholesky"])
def test_under_vmap(method):
    a, b = array(RNG.standard_normal((3, 4, 9)), mx.float32), array(RNG.standard_normal((3, 4, K)), mx.float32)
    for fn in (lambda a, b: ridge(a, b, 0.3, method=method), lambda a, b: readout(method, 0.3, n=9).adapt(a, b, a)):
        np.testing.assert_allclose(numpy(mx.vmap(fn)(a, b)), numpy(fn(a, b)), rtol=1e-5, atol=1e-6)


def test_too_few_rows_for_a_promise():
    start = r"\[pinvnn.LeastSquaresReadout.solve\] method 'cholesky' needs at least 6 rows without"
    with pytest.raises(ValueError, match=start + r" a penalty, but got 5\."):
        readout("cholesky").solve(*arrays(mx.float32, A[:5], B[:5]))
    start = r"\[pinvnn.RidgeClassifier\] method must be 'auto' or 'cholesky', but got 'svd'"
    with pytest.raises(ValueError, match=start):
        RidgeClassifier(N, K, method=cast(Any, "svd"))


def test_leave_one_out_with_too_few_digits_is_nan():
    """A row that alone carries a feature: a promise of full rank cannot hold without it."""
    a = A.copy()
    a[:, 0] = 0
    a[7, 0] = 1
    a, b = arrays(mx.float32, a, B)
    out = numpy(unseen(readout("cholesky").loo_predictions, a, b))
    assert np.isnan(out[7]).all() and np.isfinite(np.delete(out, 7, axis=0)).all()
