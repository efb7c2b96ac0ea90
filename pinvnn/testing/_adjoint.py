"""The forward and the reverse derivative against each other, in any dtype."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ._lifts import jvp_of, vjp_of
from ._slopes import Problem, each_and_all, inner, listed, only
from ._trees import Flat, on_cpu_if_float64, random_like, to_numpy

# Allowed differences, relative to the sums of absolute products: some hundred roundings.
RTOL = {mx.float64: 1e-8, mx.float32: 1e-3, mx.complex64: 1e-3, mx.float16: 2e-2, mx.bfloat16: 1e-1}


def adjoint_check(fn: Callable[..., Any], *inputs: Any, rtol: float | None = None, seed: int = 0) -> float:
    r"""Check that vjp and jvp of ``fn`` at ``inputs`` are adjoint: <w, J v> = <J^T w, v>, in the dtype of the inputs.

    The cost is one vjp, and one jvp for each input alone and for all together, whatever their size. An error that both
    derivatives share goes unseen; :func:`gradcheck` finds it. Inner products of complex arrays are those of their real
    and imaginary parts, Re sum(conj(w) * Jv), the convention of MLX's complex gradients.

    Args:
        fn (callable): A function of the inputs that returns an array or a tree of arrays.
        inputs: Arrays, trees of arrays or :class:`mlx.nn.Module`\ s, as in :func:`gradcheck`, of any dtype.
        rtol (float): Allowed difference relative to the sum of absolute products. Default, by the least
            precise dtype of all inputs and outputs: 1e-8 for float64, 1e-3 for float32 and complex64, 2e-2 for
            float16, 1e-1 for bfloat16.
        seed (int): Seed of the random v and w. Failures print it. Default: ``0``.

    Returns:
        float: The largest relative difference that was found.

    Raises:
        AssertionError: The two are not adjoint; the message names the input.
        TypeError: No input, or no output, has a floating or complex dtype.

    Example:
        >>> import mlx.core as mx
        >>> from pinvnn.testing import adjoint_check, random_matrix
        >>> a = random_matrix((50, 40))
        >>> adjoint_check(lambda a, b: mx.exp(a) @ b, a, a.T) < 1e-4
        True
    """
    flat = Flat("adjoint_check", fn, inputs)
    rtol = max(RTOL[a.dtype] for a in flat.inexact_arrays()) if rtol is None else rtol
    with on_cpu_if_float64(flat.arrays):
        return check_adjoint(Problem.of(flat), rtol, seed)


def check_adjoint(problem: Problem, rtol: float, seed: int) -> float:
    """The largest relative difference of <w, J v> and <J^T w, v>; AssertionError if it is above rtol."""
    rng = np.random.default_rng(seed)
    count, inputs = len(problem.args), problem.inputs()
    cotangents = [random_like(out, rng) for out in problem.outputs(problem.args)]
    tangents = [random_like(problem.args[i], rng) for i in inputs]
    w, v = ([to_numpy(x) for x in parts] for parts in (cotangents, tangents))
    gradients = [to_numpy(g) for g in vjp_of(problem.call, count)(*problem.args, *cotangents)]
    worst = 0.0
    for some in each_and_all(len(inputs)):
        pushed = [to_numpy(x) for x in jvp_of(problem.call, count)(*problem.args, *only(tangents, some))]
        forward, size_forward = _products(w, pushed)
        reverse, size_reverse = _products([gradients[j] for j in some], [v[j] for j in some])
        size = max(size_forward, size_reverse)
        difference = abs(forward - reverse) / size if size > 0 else abs(forward - reverse)
        if not difference <= rtol:
            raise AssertionError(
                f"[pinvnn.testing.adjoint_check] vjp and jvp of {problem.title} must be adjoint, but got "
                f"<w, J v> = {forward:.7g} and <J^T w, v> = {reverse:.7g} for "
                f"{listed([problem.names[i] for i in inputs], some)}.\n"
                f"    off by {difference:.1e} of their terms, allowed {rtol:.1e}\n"
                f"    replay with seed={seed}; gradcheck in float64 tells which of the two is wrong"
            )
        worst = max(worst, difference)
    return worst


def _products(xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> tuple[float, float]:
    """The real inner product of two lists of arrays, and the sum of the absolute products in it."""
    pairs = list(zip(xs, ys, strict=True))
    return sum(inner(x, y) for x, y in pairs), sum(inner(np.abs(x), np.abs(y)) for x, y in pairs)
