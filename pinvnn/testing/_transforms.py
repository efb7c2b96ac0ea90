"""Every transform of MLX, applied to a function under test, beside a reference that does without it.

A case is a pair of functions of the same arrays that must agree. A transform makes a case of a case, so that transforms
nest as they do in MLX: ``vjp(vmap(case))`` is the gradient of the batched function beside the gradient of a loop.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, TypeAlias

import mlx.core as mx
import numpy as np

from ._lifts import jvp_of, vjp_of
from ._trees import FlatFunction, inexact, random_like

# The first that no array has as a dimension is taken, so that the batch axis cannot be mistaken for another one.
BATCH_SIZES = (2, 3, 5, 7)


class Case(NamedTuple):
    """``tested`` and ``reference`` must agree at each of ``points``, lists of arrays of the same shapes."""

    name: str
    tested: FlatFunction
    reference: FlatFunction
    points: list[list[mx.array]]


#: From a case and a random generator to the case under a transform.
Transform: TypeAlias = Callable[[Case, np.random.Generator], Case]
#: Transforms of which the first is applied first.
Chain: TypeAlias = tuple[Transform, ...]


def vjp(case: Case, rng: np.random.Generator) -> Case:
    """Gradient, with respect to the arguments, of a random combination of the outputs."""
    outs = [out for out in case.reference(*case.points[0]) if inexact(out)]
    return _lifted("vjp", vjp_of, outs, case, rng)


def jvp(case: Case, rng: np.random.Generator) -> Case:
    """Derivative along a random direction."""
    return _lifted("jvp", jvp_of, [a for a in case.points[0] if inexact(a)], case, rng)


def _lifted(
    name: str,
    lift: Callable[[FlatFunction, int], FlatFunction],
    like: list[mx.array],
    case: Case,
    rng: np.random.Generator,
) -> Case:
    """A derivative of the case, with random cotangents or tangents in the shapes of ``like``."""
    extra, count = [random_like(x, rng) for x in like], len(case.points[0])
    points = [[*args, *extra] for args in case.points]
    return Case(f"{name} of {case.name}", lift(case.tested, count), lift(case.reference, count), points)


def compile(case: Case, rng: np.random.Generator) -> Case:
    """The compiled function, also at values that it was not traced with: the graph must not hold any of them."""
    points = [*case.points, [a * 0.5 if inexact(a) else a for a in case.points[0]]]
    return Case(f"compile of {case.name}", mx.compile(case.tested), case.reference, points)


def checkpoint(case: Case, rng: np.random.Generator) -> Case:
    """The checkpointed function."""

    def tested(*arrays: mx.array) -> list[mx.array]:
        # Without stop_gradient MLX would differentiate a checkpoint with respect to integers, too.
        return case.tested(*[a if inexact(a) else mx.stop_gradient(a) for a in arrays])

    return Case(f"checkpoint of {case.name}", mx.checkpoint(tested), case.reference, case.points)


def vmap(*axes: int | None) -> Transform:
    """The transform that maps over ``axes``, one for each argument; further arguments are mapped over their first."""

    def vmap(case: Case, rng: np.random.Generator) -> Case:
        args = case.points[0]
        full = (*axes, *[0] * (len(args) - len(axes)))[: len(args)]
        size = next(n for n in BATCH_SIZES if not any(n in a.shape for a in args) or n == BATCH_SIZES[-1])
        ndims = [out.ndim for out in case.reference(*args)]
        mapped = mx.vmap(case.tested, in_axes=full)

        def tested(*arrays: mx.array) -> list[mx.array]:
            # MLX gives an output that depends on no mapped argument without the batch axis.
            outs = zip(mapped(*arrays), ndims, strict=True)
            return [out if out.ndim > n else mx.broadcast_to(out, (size, *out.shape)) for out, n in outs]

        points = [
            [_batched(a, axis, size, i) for i, (a, axis) in enumerate(zip(point, full, strict=True))]
            for point in case.points
        ]
        return Case(f"vmap(in_axes={full}) of {case.name}", tested, _looped(case.reference, full, size), points)

    return vmap


def _batched(a: mx.array, axis: int | None, size: int, first: int) -> mx.array:
    """Copies that differ by powers of two, so that rank, sign and symmetry are those of the user's array."""
    if axis is None:
        return a
    scales = [2.0 ** -((first + i) % 3) for i in range(size)]
    return mx.stack([a * scale if inexact(a) else a for scale in scales], axis=axis)


def _pick(a: mx.array, i: int, axis: int) -> mx.array:
    """Slice ``i`` along ``axis``; ``mx.take`` refuses arrays without elements."""
    return a[tuple(slice(i, i + 1) if d == axis % a.ndim else slice(None) for d in range(a.ndim))].squeeze(axis)


def _looped(call: FlatFunction, axes: Sequence[int | None], size: int) -> FlatFunction:
    """What vmap of ``call`` should give."""

    def loop(*arrays: mx.array) -> list[mx.array]:
        rows = []
        for i in range(size):
            picked = [a if ax is None else _pick(a, i, ax) for a, ax in zip(arrays, axes, strict=True)]
            rows.append(call(*picked))
        return [mx.stack(list(parts)) for parts in zip(*rows, strict=True)]

    return loop


def in_axes(args: list[mx.array]) -> list[tuple[int | None, ...]]:
    """Every axis of every argument: all mapped together, each with the others along their first, and each alone."""
    most = max(a.ndim for a in args)
    found: list[tuple[int | None, ...]] = [tuple(min(axis, a.ndim) for a in args) for axis in range(most + 1)]
    for i, a in enumerate(args):
        for axis in range(a.ndim + 1):
            found += [tuple(axis if j == i else rest for j in range(len(args))) for rest in (0, None)]
        found.append(tuple(None if j == i else 0 for j in range(len(args))))
    return list(dict.fromkeys(axes for axes in found if any(ax is not None for ax in axes)))


def mixed(count: int, first: int | None = 0) -> tuple[int | None, ...]:
    """Alternately 0 and None, beginning with ``first``."""
    other = None if first == 0 else 0
    return tuple(first if i % 2 == 0 else other for i in range(count))


def chains(base: Case, names: Collection[str], rng: np.random.Generator) -> list[Chain]:
    """The transforms to compare: each alone, pairs, and pairs with second derivatives."""
    count = len(base.points[0])
    by_name: dict[str, list[Transform]] = {"vmap": [vmap()], "compile": [compile], "checkpoint": [checkpoint]}
    if count > 1:
        by_name["vmap"] += [vmap(*mixed(count)), vmap(*mixed(count, None))]
    wraps = [wrap for name in by_name if name in names for wrap in by_name[name]]
    orders: dict[Chain, set[str]] = {(vjp,): {"vjp"}, (jvp,): {"jvp"}, (vjp, vjp): {"vjp"}, (vjp, jvp): {"vjp", "jvp"}}
    derivatives = [chain for chain, needed in orders.items() if needed <= set(names)]

    found: list[Chain] = [(wrap,) for wrap in wraps]
    if "vmap" in names:
        found += [(vmap(*axes),) for axes in in_axes(base.points[0])]
        found += [(vmap(*mixed(count)), vmap(*mixed(count, None)))] if count > 1 else [(vmap(0), vmap(1))]
        if "vjp" in names:
            found += [(vjp, vmap(*axes)) for axes in in_axes(vjp(base, rng).points[0])]
    found += [(inner, outer) for inner in wraps for outer in wraps]
    for derivative in derivatives:
        found += [(*derivative, wrap) for wrap in wraps] + [(wrap, *derivative) for wrap in wraps]
    # MLX itself has no jvp for what a checkpoint leaves in its gradient ("Not implemented for Depends").
    return [chain for chain in found if chain != (checkpoint, vjp, jvp)]
