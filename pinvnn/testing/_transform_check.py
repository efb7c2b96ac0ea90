"""Every transform of MLX against a reference computed without it."""

from collections.abc import Callable, Collection
from typing import Any, Literal, TypeAlias

import mlx.core as mx
import numpy as np

from ._adjoint import check_adjoint
from ._gradcheck import Mode, check_derivatives
from ._slopes import Problem
from ._transforms import Case, Chain, chains, jvp, vjp
from ._trees import Flat, on_cpu_if_float64, to_numpy
from ._verdict import Tolerance, precision_of

#: A transform to check.
TransformName: TypeAlias = Literal["vjp", "jvp", "vmap", "compile", "checkpoint"]
TRANSFORMS: tuple[TransformName, ...] = ("vjp", "jvp", "vmap", "compile", "checkpoint")
# Allowed differences from a reference that computes in another order. In float64 MLX's exp, sin and cos differ by 1e-5
# between a vector and its elements, so that no closer tolerance would hold.
RTOL = {mx.float64: 1e-4, mx.float32: 1e-2, mx.complex64: 1e-2, mx.float16: 5e-2, mx.bfloat16: 2e-1}
SHOWN = 8  # failures that a message spells out


def transform_check(
    fn: Callable[..., Any],
    *inputs: Any,
    transforms: Collection[TransformName] = TRANSFORMS,
    rtol: float | None = None,
    seed: int = 0,
) -> int:
    r"""Check ``fn`` at ``inputs`` under each transform of MLX, alone and nested, against a reference without it.

    - vjp, jvp and both derivatives of the vjp: against finite differences (float64, complex64), and against each
      other in every dtype.
    - vmap over every axis of every input, together, alone, with others not mapped, and nested: against a loop.
    - compile, at other values than it was traced with, and checkpoint: against the plain function.
    - Nested: each of the four derivatives of each of vmap, compile and checkpoint; each of these three of each
      derivative; and pairs of the three.

    The jvp of the gradient of a checkpoint is left out, since MLX has none.

    Args:
        fn (callable): A function of the inputs that returns an array or a tree of arrays, such as a custom function.
        inputs: Arrays, trees of arrays or :class:`mlx.nn.Module`\ s, as in :func:`gradcheck`, of any dtype. For vmap
            they are stacked with copies that differ by a power of two. Where ``fn`` is not finite no derivatives are
            compared, but NaN has to stay NaN under every transform.
        transforms (tuple(str)): The ones to check, from ``"vjp"``, ``"jvp"``, ``"vmap"``, ``"compile"`` and
            ``"checkpoint"``. Default: all.
        rtol (float): Allowed difference from a reference, relative to its largest entry. Default, by the least precise
            dtype of all inputs and outputs: 1e-4 for float64, 1e-2 for float32 and complex64, 5e-2 for float16, 2e-1
            for bfloat16.
        seed (int): Seed of the random directions. Failures print it. Default: ``0``.

    Returns:
        int: How many transforms and nested transforms were compared.

    Raises:
        AssertionError: Some are wrong or raise; the message lists them.
        TypeError: No input, or no output, has a floating or complex dtype.
        ValueError: ``transforms`` is empty or names another one.

    Example:
        >>> import mlx.core as mx
        >>> from pinvnn.testing import random_matrix, transform_check
        >>> a, b = random_matrix((3, 4)), random_matrix((4, 2), seed=1)
        >>> transform_check(mx.matmul, a, b) > 50
        True
    """
    if isinstance(transforms, str) or not transforms or not set(transforms) <= set(TRANSFORMS):
        rule = f"transforms must be some of {TRANSFORMS}"
        raise ValueError(f'[pinvnn.testing.transform_check] {rule}, but got {transforms!r}. Pass ("vmap",), say.')
    flat = Flat("transform_check", fn, inputs)
    rtol = max(RTOL[a.dtype] for a in flat.inexact_arrays()) if rtol is None else rtol
    base = Case("fn", flat, flat, [flat.arrays])
    rng = np.random.default_rng(seed)
    with on_cpu_if_float64(flat.arrays):
        usable, failures = _derivatives(base, flat, transforms, rtol, seed)
        grid = chains(base, usable, rng)
        for chain in grid:
            name, text = _run(base, chain, rng, rtol)
            if text:
                failures.append(f"{name}: {text}")
    if failures:
        hidden = len(failures) - SHOWN
        lines = [f"[pinvnn.testing.transform_check] {len(failures)} of {len(grid)} transforms and nestings fail:"]
        lines += failures[:SHOWN] + ([f"and {hidden} more"] if hidden > 0 else []) + [f"replay with seed={seed}"]
        raise AssertionError("\n    ".join(lines))
    return len(grid)


def _derivatives(
    base: Case, flat: Flat, transforms: Collection[TransformName], rtol: float, seed: int
) -> tuple[list[str], list[str]]:
    """The transforms that do not raise by themselves, and the failures of the derivatives."""
    rng = np.random.default_rng(seed)
    failures, broken = [], set()
    for chain in [(vjp,), (jvp,), (vjp, vjp), (vjp, jvp)]:
        if {t.__name__ for t in chain} <= set(transforms) - broken:
            name, text = _run(base, chain, rng, rtol)  # Against itself: this finds what raises.
            if text:
                failures.append(f"{name}: {text}")
                broken.add(chain[-1].__name__)
    modes: list[Mode] = [mode for mode in ("vjp", "jvp") if mode in transforms and mode not in broken]
    for check in _derivative_checks(flat, modes, rtol, rng, seed):
        try:
            check()
        except AssertionError as error:
            failures.append(str(error).replace("\n", "\n    "))
    return [name for name in transforms if name not in broken], failures


def _derivative_checks(
    flat: Flat, modes: list[Mode], rtol: float, rng: np.random.Generator, seed: int
) -> list[Callable[[], float]]:
    """Checks against finite differences where the dtype allows, and of vjp against jvp."""
    if not modes or not all(bool(mx.all(mx.isfinite(out))) for out in flat.outputs):
        return []
    problem, connected = Problem.of(flat), flat.inexact_arrays()
    checks: list[Callable[[], float]] = []
    if all(a.dtype in (mx.float64, mx.complex64) for a in connected):
        tolerance = Tolerance(precision_of(connected), None, None)
        checks.append(lambda: check_derivatives(problem, modes, 2, None, tolerance, seed))
    if len(modes) == 2:
        checks.append(lambda: check_adjoint(problem, rtol, seed))
        checks.append(lambda: check_adjoint(problem.lifted("vjp", rng), rtol, seed))
    return checks


def _run(base: Case, chain: Chain, rng: np.random.Generator, rtol: float) -> tuple[str, str | None]:
    """The name of a chain of transforms and its failure, None if it passes."""
    case = base
    try:
        for transform in chain:
            case = transform(case, rng)
    except Exception as error:  # Whatever a transform raises is what the user wants to read.
        return f"{chain[-1].__name__} of {case.name}", f"raised {type(error).__name__}: {error}"
    return case.name, failure(case, rtol)


def failure(case: Case, rtol: float) -> str | None:
    """The first difference between a case and its reference, None if they agree."""
    for point in case.points:
        try:
            got, expected = case.tested(*point), case.reference(*point)
            mx.eval(got, expected)
        except Exception as error:
            return f"raised {type(error).__name__}: {error}"
        for i, (x, y) in enumerate(zip(got, expected, strict=True)):
            if x.shape != y.shape or x.dtype != y.dtype:
                return f"output {i} has {x.shape} {x.dtype}, expected {y.shape} {y.dtype}"
            found = _difference(to_numpy(x), to_numpy(y), rtol)
            if found:
                return f"output {i}, {found}"
    return None


def _difference(got: np.ndarray, expected: np.ndarray, rtol: float) -> str | None:
    scale = np.max(np.abs(expected), where=np.isfinite(expected), initial=0.0)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0.0, np.abs(got - expected))
    off[~np.isfinite(off)] = np.inf
    if np.all(off <= rtol * scale):
        return None
    worst = np.unravel_index(np.argmax(off), off.shape)
    index = tuple(int(i) for i in worst)
    return f"index {index}: got {got[worst]:.7g}, expected {expected[worst]:.7g}"
