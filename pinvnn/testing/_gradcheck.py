"""Derivatives against finite differences."""

from collections.abc import Callable, Collection
from typing import Any, Literal, TypeAlias

import mlx.core as mx
import numpy as np

from ._slopes import Problem, jvp_groups, vjp_groups
from ._trees import Flat, inexact, on_cpu_if_float64, to_numpy
from ._verdict import Tolerance, judge, precision_of

#: A derivative to check.
Mode: TypeAlias = Literal["vjp", "jvp"]
GROUPS = {"vjp": vjp_groups, "jvp": jvp_groups}


def gradcheck(
    fn: Callable[..., Any],
    *inputs: Any,
    modes: Collection[Mode] = ("vjp", "jvp"),
    order: int = 1,
    eps: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
) -> float:
    r"""Check the derivatives of ``fn`` at ``inputs`` against finite differences.

    ``"vjp"`` moves the entries of every input one by one and compares with the gradient of a random combination of
    the outputs, for each output alone and all together. ``"jvp"`` compares the derivative along a random direction,
    for each input alone and all together. ``order=2`` then checks the first derivative in the same way, as a function
    of the inputs and of the cotangent: vjp of vjp and jvp of vjp. Of an input with more than 64 entries, 64 chosen at
    random are moved one by one, and all together along a random direction.

    The step is chosen for each line from the noise that ``fn`` shows. MLX's float64 ``exp``, ``sin``, ``cos``,
    ``erf``, ``sigmoid``, ``softmax`` and ``logsumexp`` are right to 1e-7 .. 1e-5 only; functions that use them are
    checked to as many digits as they have.

    Args:
        fn (callable): A function of the inputs that returns an array or a tree of arrays.
        inputs: Arrays, trees of arrays or :class:`mlx.nn.Module`\ s (whose trainable parameters are inputs). Arrays
            are float64, or complex64, for which MLX has no wider type: those are checked in real coordinates to 2e-3.
            Integer arrays, numbers, strings and None are passed to ``fn`` unchanged.
        modes (tuple(str)): ``"vjp"``, ``"jvp"`` or both. Default: both.
        order (int): Derivatives up to this order are checked. Default: ``1``.
        eps (float): Step, relative to the largest entry of an input. Default: chosen as said above.
        rtol (float): Allowed error relative to the largest derivative with respect to an input (for jvp: of an
            output). Default: 1e-6 (2e-3 with complex64), or as much more as the noise demands, up to 1e-3 (2e-2).
        atol (float): Allowed absolute error. Default: 1e-9 (1e-4) of abs(fn) / abs(input), which rounding may make of
            a zero.
        seed (int): Seed of the random directions. Failures print it. Default: ``0``.

    Returns:
        float: The largest relative error that was found.

    Raises:
        AssertionError: A derivative is wrong (the message names the worst entry), or cannot be judged, because ``fn``
            has a kink or a jump at the inputs or too much noise.
        TypeError: An input or output is of lower precision than float64.
        ValueError: ``modes`` or ``order`` is not one of those above.

    Example:
        >>> import mlx.core as mx
        >>> from pinvnn.testing import gradcheck, random_matrix
        >>> a = random_matrix((3, 4), dtype=mx.float64)
        >>> gradcheck(lambda a: mx.tanh(a) @ a.T, a, order=2) < 1e-6
        True
        >>> @mx.custom_function
        ... def cube(x):
        ...     return x * x * x
        >>> @cube.vjp
        ... def cube_vjp(x, cotangent, output):
        ...     return 2 * x * x * cotangent
        >>> gradcheck(cube, a, modes=["vjp"])
        Traceback (most recent call last):
            ...
        AssertionError: [pinvnn.testing.gradcheck] vjp of fn is wrong, most at inputs[0], index (1, 2), for outputs:
            ...
    """
    _validate(modes, order)
    flat = Flat("gradcheck", fn, inputs)
    _require_precision(flat)
    problem = Problem.of(flat)
    tolerance = Tolerance(precision_of([*flat.arrays, *flat.outputs]), rtol, atol)
    with on_cpu_if_float64(flat.arrays):
        _require_values(problem)
        return check_derivatives(problem, modes, order, eps, tolerance, seed)


def check_derivatives(
    problem: Problem, modes: Collection[Mode], order: int, eps: float | None, tolerance: Tolerance, seed: int
) -> float:
    """The largest relative error of all derivatives up to ``order``; AssertionError if one is wrong."""
    rng = np.random.default_rng(seed)
    worst = 0.0
    for mode in modes:
        groups = list(GROUPS[mode](problem, eps, tolerance, rng))
        worst = max(worst, judge(f"{mode} of {problem.title}", groups, tolerance, seed))
    if order > 1:
        # Second order is the same for a function that is itself a derivative.
        lifted = problem.lifted("vjp" if "vjp" in modes else "jvp", rng)
        worst = max(worst, check_derivatives(lifted, modes, order - 1, eps, tolerance, seed))
    return worst


def _validate(modes: Any, order: Any) -> None:
    if isinstance(modes, str) or not modes or not set(modes) <= {"vjp", "jvp"}:
        rule = 'modes must be a tuple of "vjp" and "jvp"'
        raise ValueError(f'[pinvnn.testing.gradcheck] {rule}, but got {modes!r}. Pass ("vjp",), say.')
    if not isinstance(order, int) or order < 1:
        raise ValueError(f"[pinvnn.testing.gradcheck] order must be 1 or more, but got {order!r}. Pass 1 or 2.")


def _require_precision(flat: Flat) -> None:
    named = [*zip(flat.names, flat.arrays, strict=True), *zip(flat.output_names, flat.outputs, strict=True)]
    wide = {mx.float64, mx.complex64}
    if any(a.dtype == mx.complex64 for _, a in named):
        wide.add(mx.float32)  # the real and imaginary parts
    for name, a in named:
        if inexact(a) and a.dtype not in wide:
            raise TypeError(
                f"[pinvnn.testing.gradcheck] inputs and outputs must be float64 or complex64, but got {a.dtype} at "
                f"{name}. A finite difference keeps about half the digits of its function, too few below float64 to "
                "tell a wrong derivative from rounding. Cast with `.astype(mx.float64, stream=mx.cpu)`, a Module with "
                "`.set_dtype(mx.float64)`; for the dtype itself there are adjoint_check and transform_check."
            )


def _require_values(problem: Problem) -> None:
    once, again = ([to_numpy(out) for out in problem.outputs(problem.args)] for _ in range(2))
    for name, first, second in zip(problem.output_names, once, again, strict=True):
        if not np.all(np.isfinite(first)):
            raise AssertionError(
                f"[pinvnn.testing.gradcheck] fn must be finite at its inputs, but got {first} at {name}. Take others."
            )
        if not np.allclose(first, second, rtol=1e-3, atol=1e-3 * np.max(np.abs(first), initial=0.0)):
            raise AssertionError(
                f"[pinvnn.testing.gradcheck] fn must give the same result each time, but got {first} and then {second} "
                f"at {name}. Give random numbers a fixed key, and set a Module to eval()."
            )
