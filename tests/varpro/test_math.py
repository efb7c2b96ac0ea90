"""exp, sin and cos in float64 against 50-digit decimals and against each other's derivatives."""

from decimal import Decimal, getcontext

import mlx.core as mx
import numpy as np
import pytest

from pinvnn.varpro import cos, exp, sin
from tests.support.cases import float64
from tests.support.emulated_gpu import EmulatedGpu

pytestmark = pytest.mark.usefixtures("on_cpu")

from_zero = np.linspace(-20, 20, 81)


def decimal_exp(x):
    return Decimal(float(x)).exp()


def decimal_sin(x):
    """The series, which 80 digits carry through the cancellation at 20."""
    getcontext().prec = 80
    x, term, total, k = Decimal(float(x)), Decimal(float(x)), Decimal(0), 1
    while abs(term) > Decimal(10) ** -60:
        total += term
        term = -term * x * x / ((2 * k) * (2 * k + 1))
        k += 1
    return total


@pytest.mark.parametrize("x", [-745.0, -700.5, -30.1, -1e-9, 0.0, 1e-300, 0.3, 1.0, 88.8, 100.0, 709.7])
def test_exp_is_right_to_rounding(x):
    true = decimal_exp(x)
    error = abs(Decimal(exp(float64(x)).item()) - true) / true
    # Below 1e-307 the float64 numbers themselves are spaced more widely.
    assert error < Decimal(4e-16) or abs(Decimal(exp(float64(x)).item()) - true) <= Decimal(5e-324)


def test_exp_of_what_is_not_finite():
    x = float64([np.inf, -np.inf, np.nan, 710.0, -800.0])
    np.testing.assert_array_equal(np.array(exp(x)), [np.inf, 0, np.nan, np.inf, 0])


def test_sin_is_right_to_rounding():
    true = np.array([float(decimal_sin(x)) for x in from_zero])
    np.testing.assert_allclose(np.array(sin(float64(from_zero))), true, rtol=4e-16, atol=0)


def test_cos_is_right_to_rounding():
    np.testing.assert_allclose(np.array(cos(float64(from_zero))), np.cos(from_zero), rtol=0, atol=4e-16)
    assert np.isnan(cos(float64(np.inf)).item())


DERIVATIVES = {
    "exp": (exp, [np.exp] * 4),
    "sin": (sin, [np.sin, np.cos, lambda x: -np.sin(x), lambda x: -np.cos(x)]),
    "cos": (cos, [np.cos, lambda x: -np.sin(x), lambda x: -np.cos(x), np.sin]),
}


def forward(fn):
    return lambda x: mx.jvp(fn, [x], [mx.ones_like(x)])[1][0]


def reverse(fn):
    return lambda x: mx.vjp(fn, [x], [mx.ones_like(x)])[1][0]


NESTS = {
    "forward": (forward,),
    "reverse": (reverse,),
    "vmap of reverse": (reverse, mx.vmap),
    "vmap of forward": (forward, mx.vmap),
    "reverse of vmap": (mx.vmap, reverse),
    "reverse twice": (reverse, reverse),
    "forward of reverse": (reverse, forward),
    "reverse of forward": (forward, reverse),
    "forward twice": (forward, forward),
    "vmap of reverse twice": (reverse, reverse, mx.vmap),
    "reverse three times": (reverse, reverse, reverse),
    "compiled reverse": (reverse, mx.compile),
    "compiled forward of reverse": (reverse, forward, mx.compile),
}


@pytest.mark.parametrize("nest", NESTS)
@pytest.mark.parametrize("name", DERIVATIVES)
def test_gradients_of_every_order_are_right_to_rounding(name, nest):
    fn, derivatives = DERIVATIVES[name]
    order = sum(step in (forward, reverse) for step in NESTS[nest])
    for step in NESTS[nest]:
        fn = step(fn)
    expected = derivatives[order](from_zero)
    np.testing.assert_allclose(np.array(fn(float64(from_zero))), expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16, mx.complex64], ids=str)
@pytest.mark.parametrize(("ours", "theirs"), [(exp, mx.exp), (sin, mx.sin), (cos, mx.cos)])
def test_other_dtypes_get_what_mlx_has(ours, theirs, dtype):
    x = mx.array([0.5, -1.0]).astype(dtype)
    assert ours(x).dtype == dtype
    assert mx.array_equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", DERIVATIVES)
def test_nothing_lands_on_a_default_gpu(name, monkeypatch):
    fn = DERIVATIVES[name][0]
    x = float64(from_zero)
    mx.eval(x)
    with monkeypatch.context() as patches:
        EmulatedGpu(patches)
        value = fn(x)
        slope = mx.jvp(fn, [x], [x])[1][0]
        gradient = mx.vjp(fn, [x], [x])[1][0]
    np.testing.assert_allclose(np.array(slope), np.array(gradient), rtol=1e-15)
    assert value.dtype == mx.float64
