"""gradcheck where a function has no derivative: that cannot be judged; and beside such points, where it can."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from pinvnn.testing import gradcheck


def array(*values, shape=None):
    return mx.array(np.reshape(values, shape or -1), dtype=mx.float64)


def cube_root(x):
    return mx.sign(x) * mx.power(mx.abs(x), 1 / 3)


# name: function, inputs at which it has no derivative
KINKS = {
    "relu": (lambda x: mx.maximum(x, 0), array(0.0, 0.5, -1.0)),
    "abs": (mx.abs, array(0.0, 0.5, -1.0)),
    "abs of complex": (mx.abs, mx.array([0j, 1 + 1j])),
    "lower end of clip": (lambda x: mx.clip(x, 0.0, 1.0), array(0.0, 0.5, -1.0)),
    "upper end of clip": (lambda x: mx.clip(x, 0.0, 1.0), array(1.0, 0.5, -1.0)),
    "leaky relu": (nn.leaky_relu, array(0.0, 1.0)),
    "a small kink": (lambda x: x + 0.01 * mx.abs(x), array(0.0, 0.3)),
    "noise": (lambda x: mx.abs(mx.exp(x) - 1), array(0.0, 2.0)),
    "large numbers": (lambda x: mx.maximum(x - 1e20, 0), array(1e20, -3e20)),
    "small numbers": (lambda x: mx.maximum(x - 1e-20, 0), array(1e-20, -3e-20)),
    "max of two equal": (mx.max, array(1.0, 1.0, -1.0)),
    "max of three equal": (mx.max, array(1.0, 1.0, 1.0, 0.0)),
    "max of rows": (lambda x: mx.max(x, axis=1), array(1, 1, -1, 2, 3, 4, shape=(2, 3))),
    "maximum of two arrays": (mx.maximum, array(1.0, 2.0), array(1.0, 3.0)),
    "sort of two equal": (mx.sort, array(1.0, 1.0, -1.0)),
    "sort of three equal": (mx.sort, array(1.0, 1.0, 1.0)),
    "median of three equal": (lambda x: mx.sort(x)[1], array(1.0, 1.0, 1.0)),
    "largest two of three equal": (lambda x: mx.topk(x, 2), array(1.0, 1.0, -1.0, 1.0)),
    "sqrt at 0": (mx.sqrt, array(0.0, 1.0)),
    "sqrt of abs": (lambda x: mx.sqrt(mx.abs(x)), array(0.0, 1.0)),
    "cube root": (cube_root, array(0.0, 1.0)),
    "norm of zeros": (lambda x: mx.linalg.norm(x, stream=mx.cpu), array(0.0, 0.0)),
    "norm of a row of zeros": (lambda x: mx.linalg.norm(x, axis=1, stream=mx.cpu), array(0, 0, 1, 2, shape=(2, 2))),
    "where": (lambda x: mx.where(x < 0.5, x, 2 * x - 0.5), array(0.5, 1.0)),
    "where with a jump": (lambda x: mx.where(x < 0.5, x, x + 1), array(0.5, 1.0)),
    "sign": (mx.sign, array(0.0, 1.0)),
    "floor": (mx.floor, array(1.0, 0.5)),
    "mean absolute error": (lambda x, y: mx.mean(mx.abs(x - y)), array(1, 2, 3), array(1, 1, 1)),
    "a product": (lambda x, w: nn.relu(x @ w), array(1, -1, 2, 2, shape=(2, 2)), array(1, 1, 2, 1, shape=(2, 2))),
}


@pytest.mark.parametrize("name", KINKS)
@pytest.mark.parametrize("mode", ["vjp", "jvp"])
def test_at_a_kink_no_derivative_is_right_or_wrong(name, mode):
    fn, *inputs = KINKS[name]
    with pytest.raises(AssertionError, match=f"{mode} of fn cannot be judged"):
        gradcheck(fn, *inputs, modes=[mode])


@pytest.mark.parametrize("mode", ["vjp", "jvp"])
@pytest.mark.parametrize("power", [2, 3])
def test_a_kink_of_the_derivative_is_one_of_the_second_order(mode, power):
    def fn(x):
        return nn.relu(x) ** power if power == 3 else mx.square(nn.relu(x))

    x = array(0.0, 0.5)
    assert gradcheck(fn, x, modes=[mode]) < 1e-6
    if power == 2:
        with pytest.raises(AssertionError, match=f"{mode} of {mode} of fn cannot be judged"):
            gradcheck(fn, x, modes=[mode], order=2)
    else:
        assert gradcheck(fn, x, modes=[mode], order=2) < 1e-6


def test_the_message_says_how_large_the_kink_is():
    with pytest.raises(AssertionError, match=r"one-sided derivatives differ by .*: fn has a kink or a jump"):
        gradcheck(lambda x: mx.sum(mx.abs(x)), array(0.0, 1.0))


def scaled(fn, factor):
    """``fn`` whose derivatives are multiplied by ``factor``."""

    @mx.custom_function
    def wrong(x):
        return fn(mx.stop_gradient(x))

    wrong.vjp(lambda x, w, _: factor * mx.vjp(fn, [x], [w])[1][0])
    wrong.jvp(lambda x, v: factor * mx.jvp(fn, [x], [v])[1][0])
    return wrong


# Smooth but for 0.5, where each has a kink or a jump.
BESIDE = {
    "relu": lambda x: mx.maximum(x - 0.5, 0),
    "relu and more": lambda x: mx.maximum(x - 0.5, 0) + x * x * x,
    "abs": lambda x: mx.abs(x - 0.5) * (1 + x * x),
    "clip": lambda x: 3 * mx.clip(x, -0.7, 0.5),
    "square of relu": lambda x: mx.square(mx.maximum(x - 0.5, 0)),
    "kink": lambda x: mx.where(x < 0.5, x * x, 3 * x - 1.25),
    "jump": lambda x: mx.where(x < 0.5, x, x + 1),
    "sort": lambda x: mx.sort(mx.concatenate([x, array(0.5)])),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("distance", [-0.05, -1e-4, -1e-7, 1e-7, 1e-4, 0.05])
def test_beside_a_kink_a_right_derivative_passes_and_a_wrong_one_is_wrong(name, distance):
    fn, x = BESIDE[name], array(0.5 + distance, 0.9, -0.4)
    assert gradcheck(fn, x) < 1e-4
    factor = np.random.default_rng(3).choice([-1.0, 0.0, 0.9, 1.01, 2.0])
    for mode in ("vjp", "jvp"):
        with pytest.raises(AssertionError, match=f"{mode} of fn is wrong"):
            gradcheck(scaled(fn, float(factor)), x, modes=[mode])


@pytest.mark.parametrize("mode", ["vjp", "jvp"])
def test_a_wrong_entry_beside_an_entry_with_a_kink_is_wrong(mode):
    with pytest.raises(AssertionError, match=rf"{mode} of fn is wrong, most at .*, index \([12],\)"):
        gradcheck(scaled(lambda x: mx.maximum(x, 0) + x, 1.01), array(0.0, 0.5, -1.0), modes=[mode])


def test_a_wrong_derivative_where_relu_is_constant_is_wrong():
    @mx.custom_function
    def leaking(x):
        return mx.maximum(mx.stop_gradient(x), 0)

    leaking.vjp(lambda x, w, _: mx.where(x > 0, w, 0.1 * w))
    with pytest.raises(AssertionError, match=r"vjp of fn is wrong, most at inputs\[0\], index \(1,\)"):
        gradcheck(leaking, array(0.5, -1e-3, 1.0), modes=["vjp"])


def test_nan_where_the_function_is_smooth_is_wrong():
    with pytest.raises(AssertionError, match="vjp of fn is wrong"):
        gradcheck(lambda x: mx.square(mx.linalg.norm(x, stream=mx.cpu)), array(0.0, 0.0), modes=["vjp"])


@pytest.mark.parametrize("fn", [mx.square, mx.cos, mx.cosh, lambda x: x * mx.abs(x), lambda x: mx.exp(-50 * x * x)])
def test_functions_that_are_even_or_bend_sharply_have_no_kink(fn):
    assert gradcheck(fn, array(0.0, 1e-3, -0.2)) < 1e-3
