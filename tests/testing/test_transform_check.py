"""transform_check passes what is right under every transform and names the transform that is wrong."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from pinvnn.testing import random_matrix, transform_check
from pinvnn.testing._transform_check import TRANSFORMS
from pinvnn.testing._transforms import Case, chains, in_axes
from tests.support.custom_functions import (
    RIGHT,
    RIGHT_WITH_VMAP,
    WRONG_JVP,
    WRONG_SECOND,
    WRONG_VJP,
    WRONG_VMAP,
    Rules,
    batched,
)

DTYPES = [mx.float64, mx.float32, mx.complex64, mx.float16, mx.bfloat16]


def pair(dtype=mx.float64):
    return random_matrix((3, 2), dtype=dtype), random_matrix((3, 2), dtype=dtype, seed=1)


# MLX compiles each fused kernel with the system's C++ compiler, a second or so each: once, not for every dtype.
NO_COMPILE = ("vjp", "jvp", "vmap", "checkpoint")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_function_of_mlx_passes(dtype):
    assert transform_check(lambda x, y: (x * y, mx.sum(x, axis=0)), *pair(dtype), transforms=NO_COMPILE) > 50


@pytest.mark.parametrize("dtype", [mx.float64, mx.float32], ids=str)
def test_right_rules_pass(dtype):
    assert transform_check(RIGHT_WITH_VMAP.make(), *pair(dtype), transforms=NO_COMPILE) > 50
    assert transform_check(RIGHT.make(), *pair(dtype), transforms=("vjp", "jvp", "checkpoint")) > 8


def test_right_rules_pass_compiled():
    assert transform_check(RIGHT_WITH_VMAP.make(), *pair(mx.float32)) > 90


def test_outputs_that_no_mapped_input_reaches_pass():
    assert transform_check(lambda x, y: (x * x, y * y), *pair(mx.float32)) > 50


def test_modules_integers_and_constants_pass():
    model = nn.Linear(3, 4, bias=False)
    labels = mx.array([0, 3, 1, 2, 2])

    def loss(model, x, labels, reduction):
        return nn.losses.cross_entropy(model(x), labels, reduction=reduction), labels + 1

    assert transform_check(loss, model, random_matrix((5, 3)), labels, "none", transforms=NO_COMPILE) > 50


@pytest.mark.usefixtures("on_cpu")  # an emulated GPU has an addmm of its own
def test_a_fault_of_mlx_itself_is_found():
    # MLX 0.32.4 cannot map a bias alone.
    with pytest.raises(AssertionError, match=r"vmap\(in_axes=\(None, None, 0\)\) of fn: raised .*addmm"):
        transform_check(lambda x, w, c: mx.addmm(c, x, w), random_matrix((2, 3)), random_matrix((3, 2)), mx.ones(2))


# Every wrong function, and a name that its report has to hold.
WRONG = {
    **{f"vjp, {name}": (rules, "vjp of fn is wrong") for name, rules in WRONG_VJP.items()},
    **{f"jvp, {name}": (rules, "jvp of fn is wrong") for name, rules in WRONG_JVP.items()},
    **{f"second order, {name}": (rules, "vjp of vjp of fn is wrong") for name, rules in WRONG_SECOND.items()},
}


@pytest.mark.parametrize(("rules", "report"), WRONG.values(), ids=WRONG)
def test_a_wrong_derivative_is_reported(rules, report):
    with pytest.raises(AssertionError, match=rf"\[pinvnn.testing.transform_check\](?s:.*){report}"):
        transform_check(rules.make(), *pair(), transforms=("vjp", "jvp", "checkpoint"))


@pytest.mark.parametrize("name", ["sign", "factor", "argument"])
def test_a_wrong_derivative_is_reported_in_float32_too(name):
    with pytest.raises(AssertionError, match="must be adjoint"):
        transform_check(WRONG_VJP[name].make(), *pair(mx.float32), transforms=("vjp", "jvp"))


@pytest.mark.parametrize(
    ("rules", "report"),
    [
        (WRONG_VMAP["axes"], r"vmap\(in_axes=\(1, 1\)\) of fn: output 0 has"),
        (WRONG_VMAP["output axis"], r"vmap\(in_axes=\(0, 0\)\) of fn: output 0 has"),
        (Rules(vmap=lambda cube, inputs, axes: (2 * cube(*inputs), 0)), r"in_axes=\(0, 0\)\) of fn: output 0, index"),
    ],
    ids=["axes", "output axis", "values"],
)
def test_a_wrong_vmap_rule_is_reported(rules, report):
    with pytest.raises(AssertionError, match=report):
        transform_check(rules.make(), *pair(mx.float32), transforms=("vmap",))


def test_a_missing_rule_is_reported_as_what_mlx_raises():
    @mx.custom_function
    def inverse(a):
        return mx.linalg.inv(a, stream=mx.cpu)  # no stop_gradient: jvp walks into Inverse

    inverse.vjp(lambda a, w, _: -inverse(a).T @ w @ inverse(a).T)
    a = random_matrix((3, 3), cond=10, dtype=mx.float64)
    assert transform_check(inverse, a, transforms=("vjp", "compile", "checkpoint")) > 10
    with pytest.raises(AssertionError, match=r"jvp of fn: raised ValueError: .*Not implemented for Inverse"):
        transform_check(inverse, a)


def test_what_is_baked_into_a_compiled_graph_is_reported():
    with pytest.raises(AssertionError, match="compile of fn: raised"):
        transform_check(lambda x: x * mx.max(x).item(), random_matrix((2, 2)), transforms=("compile",))
    calls = []

    def counts(x):
        calls.append(1)
        return x + len(calls)

    with pytest.raises(AssertionError, match="compile of fn: output 0, index"):
        transform_check(counts, random_matrix((2, 2)), transforms=("compile",))


def test_nan_must_stay_where_it_is():
    x = mx.array([[1.0, float("nan")], [2.0, 3.0]])
    assert transform_check(lambda x: x * 2, x, transforms=NO_COMPILE) > 20
    loses = Rules(vmap=lambda fn, inputs, axes: (mx.nan_to_num(batched(fn, inputs, axes)[0]), 0))
    with pytest.raises(AssertionError, match="got 0, expected nan"):
        transform_check(loses.make(), x, x, transforms=("vmap",))


def test_every_axis_of_every_argument_is_mapped():
    args = [mx.zeros((2, 3)), mx.zeros(4)]
    axes = in_axes(args)
    assert len(set(axes)) == len(axes)
    for axis in (0, 1, 2):
        assert {(axis, 0), (axis, None)} <= set(axes)
    for axis in (0, 1):
        assert {(0, axis), (None, axis)} <= set(axes)
    assert {(1, 1), (2, 1)} <= set(axes) and (None, None) not in axes


def test_the_grid_holds_the_pairs_that_are_promised():
    names = set()
    x, y = pair()
    base = Case("fn", lambda x, y: [x * y], lambda x, y: [x * y], [[x, y]])
    with mx.stream(mx.cpu):
        for chain in chains(base, TRANSFORMS, np.random.default_rng(0)):
            names.add(" ".join(t.__name__ for t in chain))
    for wrap in ("vmap", "compile", "checkpoint"):
        for derivative in ("vjp", "jvp", "vjp vjp", "vjp jvp"):
            assert f"{derivative} {wrap}" in names
            assert f"{wrap} {derivative}" in names or (wrap, derivative) == ("checkpoint", "vjp jvp")
        for other in ("vmap", "compile", "checkpoint"):
            assert f"{wrap} {other}" in names


def test_what_is_left_out_is_what_mlx_cannot_do():
    x = random_matrix((2, 2))
    gradient = mx.grad(lambda x: mx.sum(mx.checkpoint(mx.tanh)(x)))
    with pytest.raises(ValueError, match="Not implemented for Depends"):
        mx.jvp(gradient, [x], [x])


def test_long_reports_are_cut():
    with pytest.raises(AssertionError, match=r"(?s)[0-9]+ of [0-9]+ .*and [0-9]+ more\n    replay with seed=2"):
        wrong = Rules(vmap=lambda cube, inputs, axes: (2 * cube(*inputs), 0)).make()
        transform_check(wrong, *pair(mx.float32), transforms=("vmap",), seed=2)


@pytest.mark.parametrize("transforms", ["vmap", (), ("vmap", "pmap")])
def test_bad_transforms_are_refused(transforms):
    with pytest.raises(ValueError, match=r"\[pinvnn.testing.transform_check\] transforms must be some of"):
        transform_check(mx.abs, mx.zeros(2), transforms=transforms)
