"""On an emulated GPU, whose float32 products are TF32, values and gradients are as good as on the CPU.

And on the CPU: the gradient of a residual is as good as that of the solution.
"""

from contextlib import nullcontext

import mlx.core as mx
import numpy as np
import pytest

from pinvnn import causal_ridge, factorize, lsq_linear, lstsq, nnls, pinv, ridge
from pinvnn.nn import LeastSquaresReadout, LogisticReadout
from pinvnn.streaming import moments, solve_moments
from tests.support.cases import array, numpy
from tests.support.emulated_gpu import EmulatedGpu

M, N, K = 120, 6, 2
RNG = np.random.default_rng(1)
WEIGHTS = np.random.default_rng(2).uniform(0.5, 2, M)
OF_PINV, OF_SOLUTION, OF_QUERY = (RNG.standard_normal(shape) for shape in [(N, M), (N, K), (M, K)])


def problem(condition, scales=0.0, mean=0.0):
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((d, N)))[0] for d in (M, N))
    a = (u * np.geomspace(1, 1 / condition, N)) @ v.T * np.sqrt(M) * 10 ** np.linspace(-scales, scales, N) + mean
    b = a @ rng.standard_normal((N, K)) / np.linalg.norm(a) + rng.standard_normal((M, K))
    return array(a), array(b)


PROBLEMS = {
    "condition 10": problem(10),
    "condition 1e4": problem(1e4),
    "scaled columns": problem(100, scales=1),
    "means of 1000": problem(10, mean=1000),
}


def readout(l2):
    return LeastSquaresReadout(N, K, l2=l2, bias=False)


def dot(x, y):
    return mx.sum(x * array(y, x.dtype))


FUNCTIONS = {
    "pinv": lambda a, b: dot(pinv(a), OF_PINV),
    "pinv by cholesky": lambda a, b: dot(pinv(a, method="cholesky"), OF_PINV),
    "lstsq": lambda a, b: dot(lstsq(a, b).solution, OF_SOLUTION),
    "residuals": lambda a, b: mx.sum(lstsq(a, b).residuals),
    "ridge": lambda a, b: dot(ridge(a, b, 1e-6), OF_SOLUTION),
    "adapt": lambda a, b: dot(readout(1e-6).adapt(a, b, a), OF_QUERY),
    "projected_loss": lambda a, b: readout(1e-6).projected_loss(a, b),
    "projected_loss, l2 = 0": lambda a, b: readout(0.0).projected_loss(a, b),
    "loo_loss": lambda a, b: readout(1e-6).loo_loss(a, b),
    "loo_loss, l2 = 0": lambda a, b: readout(0.0).loo_loss(a, b),
}


def with_intercept(l2):
    return LeastSquaresReadout(N, K, l2=l2)


def weights(a):
    return array(WEIGHTS, a.dtype)


def labels(a):
    return mx.arange(a.shape[0]) % 3


def logistic():
    return LogisticReadout(N, 3, l2=1e-3)


def streamed(a, b):
    return solve_moments(moments(a, b), 1e-6, bias=True, dtype=a.dtype)[0].T


def uncertain(a, b):
    found = with_intercept(1e-6).uncertainty(a, b)
    return mx.sum(mx.square(found.leverage)) + mx.sum(found.residual_variance)


FUNCTIONS |= {
    "lstsq, weights": lambda a, b: dot(lstsq(a, b, weights=weights(a)).solution, OF_SOLUTION),
    "adapt, intercept": lambda a, b: dot(with_intercept(1e-6).adapt(a, b, a), OF_QUERY),
    "projected_loss, intercept": lambda a, b: with_intercept(1e-6).projected_loss(a, b),
    "loo_loss, intercept, weights": lambda a, b: with_intercept(0.0).loo_loss(a, b, weights(a)),
    "gcv": lambda a, b: with_intercept(1e-6).gcv(a, b),
    "uncertainty": uncertain,
    "factorize": lambda a, b: dot(factorize(a, weights=weights(a)).solve(b), OF_SOLUTION),
    "factorize, pinv": lambda a, b: dot(factorize(a, weights=weights(a)).pinv(), OF_PINV),
    "leverages": lambda a, b: mx.sum(mx.square(factorize(a, l2=1e-6).leverages())),
    "logdet": lambda a, b: factorize(a).logdet(),
    "nnls": lambda a, b: dot(nnls(a, b), OF_SOLUTION),
    "lsq_linear": lambda a, b: dot(lsq_linear(a, b, (-0.01, 0.01), l2=1e-3), OF_SOLUTION),
    "causal_ridge": lambda a, b: dot(causal_ridge(a, a, b, 1e-2), OF_QUERY),
    "logistic, adapt": lambda a, b: mx.sum(mx.square(logistic().adapt(a, labels(a), a))),
    "logistic, projected_loss": lambda a, b: logistic().projected_loss(a, labels(a)),
    "logistic, loo_loss": lambda a, b: logistic().loo_loss(a, labels(a)),
    "streaming": lambda a, b: dot(streamed(a, b), OF_SOLUTION),
}


def value_and_gradients(fn, a, b, exact=False, compiled=False):
    with mx.stream(mx.cpu) if exact else nullcontext():
        if exact:
            a, b = a.astype(mx.float64), b.astype(mx.float64)
        run = mx.value_and_grad(fn, argnums=(0, 1))
        value, bars = (mx.compile(run) if compiled else run)(a, b)
        mx.eval(value, bars)
        return [numpy(x) for x in (value, *bars)]


def errors(got, want):
    return [np.linalg.norm(x - y) / np.linalg.norm(y) if np.any(y) else 0.0 for x, y in zip(got, want, strict=True)]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.usefixtures("on_the_cpu_device")
def test_as_good_as_on_the_cpu(monkeypatch, kind, name):
    as_good_as_on_the_cpu(monkeypatch, FUNCTIONS[name], *PROBLEMS[kind])


@pytest.mark.parametrize("rtol", [None, 0.3], ids=["full", "truncated"])
@pytest.mark.parametrize("shape", [(8, 6), (6, 6), (6, 8), (4, 20)], ids=str)
@pytest.mark.parametrize("condition", [10, 1e4])
@pytest.mark.usefixtures("on_the_cpu_device")
def test_matrices_that_are_nearly_square_or_wide(monkeypatch, condition, shape, rtol):
    rng, least = np.random.default_rng(3), min(shape)
    u, v = (np.linalg.qr(rng.standard_normal((d, least)))[0] for d in shape)
    a, b = array((u * np.geomspace(1, 1 / condition, least)) @ v.T), array(rng.standard_normal((shape[0], K)))
    bars = rng.standard_normal(shape[::-1]), rng.standard_normal((shape[1], K))
    for fn in (
        lambda a, b: dot(pinv(a, rtol=rtol), bars[0]),
        lambda a, b: dot(lstsq(a, b, rtol=rtol).solution, bars[1]),
        lambda a, b: LeastSquaresReadout(shape[1], K, l2=1e-3).loo_loss(a, b),
    ):
        as_good_as_on_the_cpu(monkeypatch, fn, a, b)


def as_good_as_on_the_cpu(monkeypatch, fn, a, b):
    want = value_and_gradients(fn, a, b, exact=True)
    of_cpu = errors(value_and_gradients(fn, a, b), want)
    with monkeypatch.context() as patches:
        EmulatedGpu(patches)
        of_gpu = errors(value_and_gradients(fn, a, b), want)
    for cpu, emulated in zip(of_cpu, of_gpu, strict=True):
        assert emulated <= max(3 * cpu, 1e-6), (of_cpu, of_gpu)


@pytest.fixture
def on_the_cpu_device():
    if mx.default_device() != mx.cpu:
        pytest.skip("compares the CPU with an emulated GPU")


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n == "residuals" or ("loss" in n and "logistic" not in n)])
@pytest.mark.parametrize("kind", ["condition 1e4", "means of 1000"])
def test_the_gradient_of_a_residual_has_its_digits(kind, name):
    a, b = PROBLEMS[kind]
    want = value_and_gradients(FUNCTIONS[name], a, b, exact=True)
    assert max(errors(value_and_gradients(FUNCTIONS[name], a, b), want)) < 1e-6


# Rows that are rounded when they are centred are those of another problem.
WITH_INTERCEPT = {
    "projected_loss": lambda a, b: with_intercept(1e-6).projected_loss(a, b),
    "projected_loss, l2 = 0": lambda a, b: with_intercept(0.0).projected_loss(a, b),
    "projected_loss, by target": lambda a, b: with_intercept(mx.array([1e-6, 1e-3])).projected_loss(a, b),
    "projected_loss, weights": lambda a, b: with_intercept(0.0).projected_loss(a, b, weights(a)),
    "projected_loss, batch": lambda a, b: mx.sum(
        with_intercept(1e-6).projected_loss(mx.stack([a, 2 * a]), b, mx.stack([weights(a), weights(a)[::-1]]))
    ),
    "loo_loss": lambda a, b: with_intercept(1e-6).loo_loss(a, b),
    "loo_loss, l2 = 0": lambda a, b: with_intercept(0.0).loo_loss(a, b),
    "loo_loss, weights": lambda a, b: with_intercept(1e-6).loo_loss(a, b, weights(a)),
    "gcv": lambda a, b: with_intercept(1e-6).gcv(a, b),
}
CENTRED = {"condition 1e4": PROBLEMS["condition 1e4"], "about 300": problem(1e4, mean=300)}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", WITH_INTERCEPT)
@pytest.mark.parametrize("kind", CENTRED)
def test_an_intercept_costs_no_digits(kind, name, compiled):
    a, b = CENTRED[kind]
    want = value_and_gradients(WITH_INTERCEPT[name], a, b, exact=True)
    assert max(errors(value_and_gradients(WITH_INTERCEPT[name], a, b, compiled=compiled), want)) < 2e-6


@pytest.mark.parametrize("name", WITH_INTERCEPT)
@pytest.mark.parametrize("kind", CENTRED)
@pytest.mark.usefixtures("on_the_cpu_device")
def test_an_intercept_costs_no_digits_on_a_gpu(monkeypatch, kind, name):
    as_good_as_on_the_cpu(monkeypatch, WITH_INTERCEPT[name], *CENTRED[kind])


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_gradients_of_the_solution_on_a_gpu_keep_their_digits(gpu, compiled):
    a, b = PROBLEMS["condition 1e4"]
    want = value_and_gradients(FUNCTIONS["ridge"], a, b, exact=True)
    assert max(errors(value_and_gradients(FUNCTIONS["ridge"], a, b, compiled=compiled), want)) < 1e-6
