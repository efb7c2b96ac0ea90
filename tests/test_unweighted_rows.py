"""Rows of weight 0 take no part in linear problems, whatever they hold: values and gradients, in every function."""

import mlx.core as mx
import numpy as np
import pytest

import pinvnn

FUNCTIONS = {
    "lstsq": lambda a, b, w: pinvnn.lstsq(a, b, weights=w)[:2],
    "ridge": lambda a, b, w: pinvnn.ridge(a, b, 0.5, weights=w),
    "ridge, dual": lambda a, b, w: pinvnn.ridge(a, b, 0.5, weights=w, method="dual"),
    "ridge by feature": lambda a, b, w: pinvnn.ridge(a, b, mx.array([[0.5], [1.0], [0.1]]), weights=w),
    "nnls": lambda a, b, w: pinvnn.nnls(a, b, weights=w),
    "lsq_linear": lambda a, b, w: pinvnn.lsq_linear(a, b, (-0.1, 0.3), l2=0.1, weights=w),
    "factorize": lambda a, b, w: pinvnn.factorize(a, weights=w).solve(b),
    "factorize with a penalty": lambda a, b, w: pinvnn.factorize(a, weights=w, l2=0.5).solve(b),
    "factorize, dual": lambda a, b, w: pinvnn.factorize(a, weights=w, l2=0.5, method="dual").solve(b),
    "logdet": lambda a, b, w: pinvnn.factorize(a, weights=w).logdet(),
}


def loss(name):
    def fn(a, b, w):
        out = FUNCTIONS[name](a, b, w)
        return sum(mx.sum(x * x) for x in (out if isinstance(out, tuple) else (out,)))

    return fn


def problem():
    """Rows of which number 2 has weight 0, and the same without it."""
    rng = np.random.default_rng(0)
    a, b, w = rng.normal(size=(7, 3)), rng.normal(size=(7, 2)), rng.uniform(0.5, 2, size=7)
    w[2] = 0
    whole = [mx.array(x, mx.float32) for x in (a, b, w)]
    return whole, [mx.array(np.delete(x, 2, axis=0), mx.float32) for x in (a, b, w)]


@pytest.mark.parametrize("transform", [lambda fn: fn, mx.compile], ids=["eager", "compiled"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("label", ["a", "b"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients(name, label, value, transform):
    whole, without = problem()
    spoiled = whole["ab".index(label)]
    spoiled[2, 1] = value
    step = transform(mx.value_and_grad(loss(name), argnums=(0, 1, 2)))
    (got, grads), (expected, exact) = step(*whole), mx.value_and_grad(loss(name), argnums=(0, 1, 2))(*without)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    for g, e in zip(grads, exact, strict=True):
        g = np.array(g)
        np.testing.assert_allclose(np.delete(g, 2, axis=0), np.array(e), rtol=1e-3, atol=1e-4)
        if (name, label) != ("logdet", "b"):  # There the row is finite, and its weight counts.
            np.testing.assert_array_equal(g[2], 0, "the row itself")


@pytest.mark.parametrize("method", ["primal", "dual"])
def test_a_bad_target_of_a_factorization_with_a_penalty(method):
    (a, b, w), _ = problem()
    b[2, 0] = np.nan

    def of(w):
        return mx.sum(mx.square(pinvnn.factorize(a, weights=w, l2=0.3, method=method).solve(b)))

    w[2] = 0
    got = np.array(mx.grad(of)(w))
    assert np.all(np.isfinite(got)) and got[2] == 0


def test_a_bad_target_of_a_factorization_takes_its_weight_out_of_that_problem_only():
    (a, b, w), _ = problem()
    targets = mx.stack([b, b])
    targets[1, 2, 0] = np.nan

    def of(b):
        return mx.grad(lambda w: mx.sum(mx.square(pinvnn.factorize(a, weights=w).solve(b))))

    both, alone, spoiled = (np.array(of(x)(w)) for x in (targets, targets[0], targets[1]))
    assert alone[2] != 0 and spoiled[2] == 0
    np.testing.assert_allclose(both, alone + spoiled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lstsq", "ridge", "nnls", "factorize"])
def test_one_problem_of_a_batch_and_vmap(name):
    whole, without = problem()
    a, b, w = (mx.stack([x, x]) for x in whole)
    a[0, 2, 0] = np.nan
    w[1, 2] = 1.0
    expected = [loss(name)(*without).item(), loss(name)(*(x[1] for x in (a, b, w))).item()]
    np.testing.assert_allclose(np.array(mx.vmap(loss(name))(a, b, w)), expected, rtol=1e-5)
    out = FUNCTIONS[name](a, b, w)
    solution = out[0] if isinstance(out, tuple) else out
    assert np.all(np.isfinite(np.array(solution)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_nan_of_positive_weight_shows(name):
    (a, b, w), _ = problem()
    a[3, 1] = np.nan
    assert np.isnan(loss(name)(a, b, w).item())


@pytest.mark.parametrize("label", ["a", "b"])
def test_complex(label):
    (a, b, w), (a0, b0, w0) = problem()
    a, b = a.astype(mx.complex64), b.astype(mx.complex64)
    (a if label == "a" else b)[2, 1] = complex(1.0, np.nan)
    got = pinvnn.lstsq(a, b, weights=w).solution
    np.testing.assert_allclose(np.array(got).real, np.array(pinvnn.lstsq(a0, b0, weights=w0).solution), atol=1e-5)
