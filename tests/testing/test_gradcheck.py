"""gradcheck passes what is right and names what is wrong."""

import re
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from pinvnn.testing import gradcheck, random_matrix
from tests.support.custom_functions import RIGHT, WRONG_JVP, WRONG_SECOND, WRONG_VJP, Rules, corner

BOTH = ("vjp", "jvp")


def pair(scale=1.0, dtype=mx.float64):
    with mx.stream(mx.cpu):
        x, y = random_matrix((3, 2), dtype=dtype), random_matrix((3, 2), dtype=dtype, seed=1)
        return x * mx.array(scale, dtype), y * mx.array(scale, dtype)


def ids(table):
    return [pytest.param(value, id=name) for name, value in table.items()]


# --- Right functions pass --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
def test_right_rules_pass(order):
    assert gradcheck(RIGHT.make(), *pair(), order=order) < 1e-9


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-8, 1e8, 1e30, 1e40])
def test_scale_of_the_input_does_not_matter(scale):
    assert gradcheck(RIGHT.make(), *pair(scale), order=2) < 1e-9
    with pytest.raises(AssertionError, match="vjp of fn is wrong"):
        gradcheck(WRONG_VJP["small factor"].make(), *pair(scale))


def test_entries_of_very_different_size_have_steps_of_their_own():
    x = mx.array([1e-10, 1.0, 1e10], dtype=mx.float64)
    assert gradcheck(lambda x: 1 / x, x) < 1e-9


# float64 exp, sin and cos of MLX are computed in float32 here and there: a staircase for small steps.
NOISY = {
    "exp": mx.exp,
    "sin": mx.sin,
    "fast sin": lambda x: mx.sin(20 * x),
    "erf": mx.erf,
    "sigmoid": mx.sigmoid,
    "softmax": lambda x: mx.softmax(x, axis=-1),
    "logsumexp": lambda x: mx.logsumexp(x, axis=-1),
    "attention": lambda x: mx.softmax(mx.sin(x @ x.T), axis=-1) @ x,
}


@pytest.mark.parametrize("fn", ids(NOISY))
def test_noisy_functions_pass_and_a_wrong_factor_in_them_does_not(fn):
    @mx.custom_function
    def wrong(x):
        return fn(mx.stop_gradient(x))

    @wrong.vjp
    def _vjp(x, w, _):
        return 1.003 * mx.vjp(fn, [x], [w])[1][0]

    for seed in range(3):
        x = random_matrix((4, 3), dtype=mx.float64, seed=seed)
        assert gradcheck(fn, x, order=2, seed=seed) < 1e-3
        with pytest.raises(AssertionError, match="vjp of fn is wrong"):
            gradcheck(wrong, x, modes=["vjp"], seed=seed)


@mx.custom_function
def inverse(a):
    return mx.stop_gradient(mx.linalg.inv(mx.stop_gradient(a), stream=mx.cpu))


@inverse.vjp
def _inverse_vjp(a, w, _):
    p = inverse(a)
    return -(p.swapaxes(-1, -2) @ w @ p.swapaxes(-1, -2))


@inverse.jvp
def _inverse_jvp(a, da):
    p = inverse(a)
    return -(p @ da @ p)


@pytest.mark.parametrize("cond", [1e1, 1e3, 1e5, 1e7])
def test_a_near_pole_passes(cond):
    a = random_matrix((5, 5), cond=cond, dtype=mx.float64)
    assert gradcheck(inverse, a, order=2) < 1e-5


def test_a_derivative_of_zero_passes():
    x, y = pair()
    assert gradcheck(lambda x, y: 1.0 * y, x, y, order=2) < 1e-9
    a = random_matrix((4, 4), cond=100, dtype=mx.float64)
    assert gradcheck(lambda a: inverse(a) @ a, a) < 1e-3  # zero up to rounding, in which it has no digits


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 0, 3)])
def test_scalars_and_empty_arrays(shape):
    x = mx.full(shape, 0.7, dtype=mx.float64, stream=mx.cpu)
    assert gradcheck(lambda x: x * x, x, order=2) < 1e-9


def test_a_large_input_is_sampled_and_an_error_anywhere_is_seen():
    x, y = random_matrix((40, 30), dtype=mx.float64), random_matrix((40, 30), dtype=mx.float64, seed=1)
    assert gradcheck(RIGHT.make(), x, y) < 1e-9
    wrong = Rules(vjp=lambda x, y, w: (3 * x * x * y * w + corner(x), x * x * x * w))
    with pytest.raises(AssertionError, match=r"inputs\[0\], a random direction"):
        gradcheck(wrong.make(), x, y, modes=["vjp"])


# --- Wrong functions do not ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", ids(WRONG_VJP))
def test_a_wrong_vjp_is_caught_and_its_jvp_passes(rules):
    with pytest.raises(AssertionError, match="vjp of fn is wrong"):
        gradcheck(rules.make(), *pair())
    assert gradcheck(rules.make(), *pair(), modes=["jvp"]) < 1e-9


@pytest.mark.parametrize("rules", ids(WRONG_JVP))
def test_a_wrong_jvp_is_caught_and_its_vjp_passes(rules):
    with pytest.raises(AssertionError, match="jvp of fn is wrong"):
        gradcheck(rules.make(), *pair())
    assert gradcheck(rules.make(), *pair(), modes=["vjp"], order=2) < 1e-9


@pytest.mark.parametrize("rules", ids(WRONG_SECOND))
@pytest.mark.parametrize("mode", BOTH)
def test_a_wrong_second_order_is_caught_in_both_modes(rules, mode):
    fn = rules.make()
    assert gradcheck(fn, *pair()) < 1e-9
    if mode == "vjp":
        with pytest.raises(AssertionError, match="vjp of vjp of fn is wrong"):
            gradcheck(fn, *pair(), modes=["vjp"], order=2)
    else:
        x, y = pair()
        with pytest.raises(AssertionError, match="jvp of fn is wrong"):
            gradcheck(lambda x, w: mx.vjp(fn, [x, y], [w])[1], x, y, modes=["jvp"])


def test_the_message_names_the_worst_entry():
    with pytest.raises(AssertionError) as caught:
        gradcheck(WRONG_VJP["one entry"].make(), *pair(), seed=5)
    text = str(caught.value)
    assert "[pinvnn.testing.gradcheck] vjp of fn is wrong, most at inputs[0], index (2, 1), for outputs:" in text
    analytic, numeric = (float(re.search(rf"{word} +(\S+?),?\s", text).group(1)) for word in ("analytic", "numeric"))
    assert analytic - numeric == pytest.approx(1e-3, rel=1e-6)
    assert "1 of 12 entries are off, in inputs[0]" in text
    assert "replay with seed=5" in text


def test_the_message_names_input_and_output_in_trees():
    class Result(NamedTuple):
        good: mx.array
        bad: mx.array

    fn = WRONG_VJP["argument"].make()
    x, y = pair()
    with pytest.raises(AssertionError, match=r"inputs\[0\]\['y'\]\[1\], index \(\d, \d\), for outputs\.bad:"):
        gradcheck(lambda tree: Result(tree["x"] * 2, fn(tree["x"], tree["y"][1])), {"x": x, "y": [3.0, y, None]})


def test_each_output_is_checked_by_itself():
    # Beside an output of size 1e9 the error would be lost.
    fn = WRONG_VJP["small factor"].make()
    with pytest.raises(AssertionError, match=r"for outputs\[1\]"):
        gradcheck(lambda x, y: (1e9 * x, fn(x, y)), *pair())


def test_a_kink_at_the_input_is_not_called_a_wrong_gradient():
    with pytest.raises(AssertionError, match="vjp of fn cannot be judged"):
        gradcheck(lambda x: mx.where(x < 0.5, x, 2 * x), mx.array([0.5], dtype=mx.float64), modes=["vjp"])


def test_noise_beyond_all_use_is_not_called_a_wrong_gradient():
    with pytest.raises(AssertionError, match="cannot be judged"):
        gradcheck(lambda x: x.astype(mx.float16).astype(mx.float64), random_matrix((2, 2), dtype=mx.float64))


# --- Modules, complex arrays, options --------------------------------------------------------------------------------


def test_modules_are_inputs_and_come_back_unchanged():
    with mx.stream(mx.cpu):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        model.set_dtype(mx.float64)
        before = [p for _, p in nn.utils.tree_flatten(model.parameters())]
        assert gradcheck(lambda m, x: m(x), model, random_matrix((5, 3), dtype=mx.float64), order=2) < 1e-9
        after = [p for _, p in nn.utils.tree_flatten(model.parameters())]
    assert all(p is q for p, q in zip(before, after, strict=True))


def test_frozen_parameters_are_no_inputs():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.free, self.fixed = random_matrix((2, 2), dtype=mx.float64), random_matrix((2, 2), dtype=mx.float64)
            self.freeze(keys="fixed")

        def __call__(self):
            return WRONG_VJP["argument"].make()(self.free, self.fixed)

    assert gradcheck(lambda m: m(), Scaled()) < 1e-9
    with pytest.raises(AssertionError, match=r"\['fixed'\]"):
        gradcheck(lambda m: m(), Scaled().unfreeze())


COMPLEX = {
    "conj": lambda a: mx.conj(a) @ a.T,
    "abs": lambda a: mx.abs(a),
    "parts": lambda a: mx.real(a) * mx.imag(a),
    "divide": lambda a: 1 / (a + 3),
    "exp": mx.exp,
}


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("fn", ids(COMPLEX))
def test_complex_functions_pass(fn):
    assert gradcheck(fn, random_matrix((3, 2), dtype=mx.complex64)) < 2e-3


def complex_product(conjugate):
    @mx.custom_function
    def product(a, b):
        return mx.stop_gradient(a) @ mx.stop_gradient(b)

    @product.vjp
    def _vjp(primals, w, _):
        a, b = primals
        # The gradient over the reals: A_bar = W B^H, B_bar = A^H W.
        return w @ conjugate(b.T), mx.conj(a.T) @ w

    return product


@pytest.mark.usefixtures("on_cpu")
def test_a_missing_conjugate_is_caught():
    a, b = random_matrix((3, 2), dtype=mx.complex64), random_matrix((2, 4), dtype=mx.complex64, seed=1)
    assert gradcheck(complex_product(mx.conj), a, b, modes=["vjp"], order=2) < 2e-3
    with pytest.raises(AssertionError, match=r"vjp of fn is wrong, most at inputs\[0\]"):
        gradcheck(complex_product(lambda x: x), a, b, modes=["vjp"])


def test_eps_rtol_and_atol():
    x = random_matrix((2, 2), dtype=mx.float64)
    slightly = WRONG_VJP["small factor"].make()
    assert gradcheck(lambda x: x * x * x, x, eps=1e-3) < 1e-9
    assert 1e-5 < gradcheck(slightly, x, x, rtol=1e-3, modes=["vjp"]) < 1e-4
    assert gradcheck(slightly, x, x, atol=1e-2, modes=["vjp"]) > 0
    with pytest.raises(AssertionError, match="allowed 0.0e"):
        gradcheck(lambda x: mx.log(x * x), x, rtol=0.0, atol=0.0)


def test_the_seed_alone_decides_and_no_global_state_is_touched():
    x, y = pair()
    np.random.seed(1)
    mx.random.seed(1)
    numpy_state, key = np.random.get_state()[1].copy(), np.array(mx.random.state[0])

    def message(seed):
        with pytest.raises(AssertionError) as caught:
            gradcheck(WRONG_VJP["sign"].make(), x, y, seed=seed)
        return str(caught.value)

    assert message(3) == message(3) != message(4)
    assert np.array_equal(numpy_state, np.random.get_state()[1]) and np.array_equal(key, np.array(mx.random.state[0]))


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_low_precision_is_refused_with_the_reason_and_the_remedy(dtype):
    with pytest.raises(TypeError, match=r"(?s)must be float64 or complex64, but got .* at inputs\[1\]\..*astype"):
        gradcheck(lambda x, y: x, pair()[0], random_matrix((2, 2), dtype=dtype))
    with pytest.raises(TypeError, match=r"at outputs\."):
        gradcheck(lambda x: x.astype(dtype), pair()[0])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((lambda x: x, mx.array([1, 2])), {}, TypeError, "inputs must hold .* but got .*int32"),
        ((lambda x: x,), {}, TypeError, "inputs must hold .* but got no array"),
        ((lambda x: x > 0, mx.zeros(2, mx.float64, stream=mx.cpu)), {}, TypeError, "fn must return .* but got .*bool"),
        ((mx.zeros(2), mx.zeros(2)), {}, TypeError, "fn must be callable"),
        ((mx.abs, mx.zeros(2)), {"modes": "vjp"}, ValueError, "modes must be a tuple"),
        ((mx.abs, mx.zeros(2)), {"modes": ("backward",)}, ValueError, "modes must be a tuple"),
        ((mx.abs, mx.zeros(2)), {"order": 0}, ValueError, "order must be 1 or more, but got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, options, error, message):
    with pytest.raises(error, match=r"(?s)\[pinvnn.testing.gradcheck\] " + message):
        gradcheck(*arguments, **options)


def test_a_function_that_is_not_finite_or_not_repeatable_is_refused():
    x = pair()[0]
    with pytest.raises(AssertionError, match="fn must be finite at its inputs"):
        gradcheck(lambda x: mx.log(-x * x), x)
    counter = iter(range(100))
    with pytest.raises(AssertionError, match="fn must give the same result each time"):
        gradcheck(lambda x: x + next(counter), x)
