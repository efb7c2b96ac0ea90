"""adjoint_check in every dtype."""

import mlx.core as mx
import pytest

from pinvnn.testing import adjoint_check, random_matrix
from tests.support.custom_functions import RIGHT, WRONG_JVP, WRONG_SECOND, WRONG_VJP

DTYPES = [mx.float64, mx.float32, mx.complex64, mx.float16, mx.bfloat16]
# By one part in 10,000 is for gradcheck to see; the others are wrong enough for every dtype.
PLAIN = [name for name in WRONG_VJP if name not in ("small factor", "one entry")]


def pair(dtype):
    return random_matrix((3, 2), dtype=dtype), random_matrix((3, 2), dtype=dtype, seed=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fn", [lambda x, y: mx.tanh(x) * y, lambda x, y: (x.T @ y, mx.square(x)), lambda x, y: y])
def test_functions_of_mlx_pass(fn, dtype):
    for seed in range(3):
        adjoint_check(fn, *pair(dtype), seed=seed)


def test_conjugates_are_of_the_right_side():
    a, b = random_matrix((3, 2), dtype=mx.complex64), random_matrix((2, 4), dtype=mx.complex64, seed=1)
    assert adjoint_check(lambda a, b: mx.conj(a) @ b, a, b) < 1e-4

    @mx.custom_function
    def product(a, b):
        return mx.stop_gradient(a) @ mx.stop_gradient(b)

    product.vjp(lambda primals, w, _: (w @ primals[1].T, mx.conj(primals[0].T) @ w))  # should be B^H
    product.jvp(lambda primals, tangents: tangents[0] @ primals[1] + primals[0] @ tangents[1])
    with pytest.raises(AssertionError, match=r"for inputs\[0\]\."):
        adjoint_check(product, a, b)


@pytest.mark.parametrize("dtype", [mx.float64, mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("rules", [*(WRONG_VJP[name] for name in PLAIN), *WRONG_JVP.values()])
def test_a_derivative_that_is_wrong_in_one_mode_is_caught(rules, dtype):
    with pytest.raises(AssertionError, match=r"vjp and jvp of fn must be adjoint, but got <w, J v> = "):
        adjoint_check(rules.make(), *pair(dtype), seed=1)


def test_right_rules_pass_and_second_order_is_not_looked_at():
    assert adjoint_check(RIGHT.make(), *pair(mx.float64)) < 1e-12
    assert adjoint_check(WRONG_SECOND["saved value"].make(), *pair(mx.float64)) < 1e-12


def test_the_message_names_the_input_and_the_seed():
    with pytest.raises(AssertionError, match=r"(?s)for inputs\[1\]\..*replay with seed=7"):
        adjoint_check(WRONG_VJP["argument"].make(), *pair(mx.float32), seed=7)


def test_rtol_is_what_is_allowed():
    slightly, inputs = WRONG_VJP["small factor"].make(), pair(mx.float64)
    assert adjoint_check(slightly, *inputs, rtol=1e-3) > 1e-8
    with pytest.raises(AssertionError, match="allowed 1.0e-08"):
        adjoint_check(slightly, *inputs)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match=r"\[pinvnn.testing.adjoint_check\] inputs must hold"):
        adjoint_check(mx.abs, mx.array([1, 2]))
