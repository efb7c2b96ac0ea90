"""Each derivative of a function of arrays beside its finite difference, as groups for the verdict."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ._differences import Differences, Slope
from ._lifts import jvp_of, vjp_of
from ._linearity import SPLITS, additive, additive_beside, refuted, splits
from ._trees import Flat, FlatFunction, inexact, random_like, to_numpy
from ._verdict import Group, Tolerance

# Of an input with more entries than this, that many chosen at random are moved one by one, and all together.
MAX_ENTRIES = 64


class Problem(NamedTuple):
    """A function at a point: ``names`` for its ``args``, ``output_names`` for its inexact outputs."""

    title: str
    call: FlatFunction
    args: list[mx.array]
    names: list[str]
    output_names: list[str]

    @classmethod
    def of(cls, flat: Flat) -> "Problem":
        """The user's function at the user's inputs."""
        names = [name for name, out in zip(flat.output_names, flat.outputs, strict=True) if inexact(out)]
        return cls("fn", flat, flat.arrays, flat.names, names)

    def outputs(self, args: Sequence[mx.array]) -> list[mx.array]:
        """The outputs that have derivatives."""
        return [out for out in self.call(*args) if inexact(out)]

    def inputs(self) -> list[int]:
        """Places of the arguments that have derivatives."""
        return [i for i, a in enumerate(self.args) if inexact(a)]

    def along(self, ts: Sequence[float], directions: dict[int, np.ndarray]) -> list[list[np.ndarray]]:
        """The outputs at args + t * directions for every t, evaluated together."""
        base = {i: to_numpy(self.args[i]) for i in directions}
        rows = []
        for t in ts:
            args = list(self.args)
            for i, direction in directions.items():
                args[i] = mx.array(base[i] + t * direction, dtype=args[i].dtype)
            rows.append(self.outputs(args))
        mx.eval(rows)
        return [[to_numpy(out) for out in row] for row in rows]

    def lifted(self, mode: str, rng: np.random.Generator) -> "Problem":
        """The derivative at this point, as a function of the arguments and of the cotangents or tangents."""
        moved = [self.names[i] for i in self.inputs()]
        if mode == "vjp":
            lift, extra, gives = vjp_of, self.outputs(self.args), [f"gradient of {name}" for name in moved]
            names = [f"cotangent of {name}" for name in self.output_names]
        else:
            lift, extra, gives = jvp_of, [self.args[i] for i in self.inputs()], self.output_names
            names = [f"tangent of {name}" for name in moved]
        extra = [random_like(x, rng) for x in extra]
        call = lift(self.call, len(self.args))
        return Problem(f"{mode} of {self.title}", call, [*self.args, *extra], [*self.names, *names], gives)


def size_of(x: np.ndarray) -> float:
    """The unit of a step: a power of two near the largest absolute entry; 1 for zeros or no entries."""
    largest = float(np.max(np.abs(x), initial=0.0))
    return 2.0 ** np.round(np.log2(largest)) if largest > 0 else 1.0


def sizes_of(x: np.ndarray) -> np.ndarray:
    """The unit of a step for each entry: its own power of two where it is far smaller than the largest entry."""
    own, size = np.abs(x), size_of(x)
    small = (own > 0) & (own < size * 2.0**-10)
    return np.where(small, 2.0 ** np.round(np.log2(own, where=small, out=np.zeros_like(own))), size)


def random_direction(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random direction in which each entry moves by about its own size when the largest moves by its size."""
    units = (1.0, 1j)[: 1 + np.iscomplexobj(x)]
    return sum(unit * rng.normal(size=x.shape) for unit in units) * sizes_of(x) / size_of(x)


def each_and_all(count: int) -> list[list[int]]:
    """[[0], [1], ..., [0, 1, ...]]: each part alone and all together, for a rule may be wrong in one of them only."""
    return [*([i] for i in range(count)), *([list(range(count))] if count > 1 else [])]


def only(parts: list[mx.array], chosen: list[int]) -> list[mx.array]:
    """The chosen parts, and zeros in place of the others."""
    return [part if i in chosen else mx.zeros_like(part) for i, part in enumerate(parts)]


def inner(x: np.ndarray, y: np.ndarray) -> float:
    """Re sum(conj(x) y), the inner product of the real and imaginary parts."""
    with np.errstate(invalid="ignore"):
        return float(np.real(np.sum(np.conj(x) * y)))


def _moves(x: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray, list[float]]]:
    """The lines along which an input is moved: a label, the direction, and the units of a step to try."""
    entries = list(np.ndindex(x.shape))
    size, own = size_of(x), sizes_of(x)
    units = ((1.0, ""), (1j, ", imaginary part"))[: 1 + np.iscomplexobj(x)]
    if len(entries) > MAX_ENTRIES:
        chosen = sorted(rng.choice(len(entries), MAX_ENTRIES, replace=False))
        direction = sum(unit * rng.normal(size=x.shape) for unit, _ in units) / np.sqrt(x.size)
        yield "a random direction", direction, [size]
        entries = [entries[i] for i in chosen]
    for index in entries:
        for unit, part in units:
            direction = np.zeros(x.shape, x.dtype)
            direction[index] = unit
            yield f"index {index}{part}", direction, sorted({size, float(own[index])}, reverse=True)


def _along(gradients: list[np.ndarray], direction: np.ndarray) -> np.ndarray:
    """The derivatives along a direction that some gradients give."""
    moved = direction != 0  # elsewhere an infinite gradient times zero would be NaN
    return np.array([inner(g[moved], direction[moved]) for g in gradients])


def vjp_groups(
    problem: Problem, eps: float | None, tolerance: Tolerance, rng: np.random.Generator
) -> Iterator[Group]:
    """Gradients of random combinations of the outputs, with respect to each entry of each input."""
    outputs = problem.outputs(problem.args)
    cotangents = [random_like(out, rng) for out in outputs]
    weights = [to_numpy(w) for w in cotangents]
    chosen = each_and_all(len(outputs))
    vjp = vjp_of(problem.call, len(problem.args))
    gradients = [vjp(*problem.args, *only(cotangents, some)) for some in chosen]
    terms = [inner(np.abs(w), np.abs(to_numpy(out))) for w, out in zip(weights, outputs, strict=True)]
    sums = np.array([sum(terms[j] for j in some) for some in chosen])
    differences = Differences(eps)

    def combined(rows: list[list[np.ndarray]]) -> np.ndarray:
        parts = np.array([[inner(w, out) for w, out in zip(weights, row, strict=True)] for row in rows])
        return np.stack([parts[:, some].sum(1) for some in chosen], axis=1)

    def line(ts: Sequence[float], i: int, direction: np.ndarray) -> np.ndarray:
        return combined(problem.along(ts, {i: direction}))

    origin = combined([[to_numpy(out) for out in outputs]])[0]

    for place, i in enumerate(problem.inputs()):
        x, g = to_numpy(problem.args[i]), [to_numpy(parts[place]) for parts in gradients]
        floors = tolerance.floor(sums / size_of(x))
        enough = tolerance.enough(np.array([np.max(np.abs(part), initial=0.0) for part in g]), floors)

        def search(direction: np.ndarray, expected: np.ndarray, sizes: Sequence[float], i: int = i) -> Slope:
            return differences.slope(partial(line, i=i, direction=direction), origin, sizes, expected, enough)  # noqa: B023

        moves = list(_moves(x, rng))
        labels = [label for label, _, _ in moves]
        expected = [_along(g, direction) for _, direction, _ in moves]
        slopes = [search(direction, e, sizes) for (_, direction, sizes), e in zip(moves, expected, strict=True)]
        off = [j for j in range(len(moves)) if refuted(slopes[j], expected[j], enough)]
        for v in [random_direction(x, rng) for _ in range(SPLITS)] if off else []:
            beside = search(v, np.inf * enough, [size_of(x)])
            for j in off:
                scale = moves[j][2][-1] / size_of(x)
                both = partial(search, scale * moves[j][1] + v, sizes=[size_of(x)])
                slopes[j] = additive_beside(slopes[j], scale, beside, both)
        if labels:
            for c, some in enumerate(chosen):
                slope = Slope(*(np.array([part[c] for part in parts]) for parts in zip(*slopes, strict=True)))
                of = "for " + listed(problem.output_names, some)
                yield Group(problem.names[i], of, labels, np.array(expected)[:, c], slope, floors[c])


def jvp_groups(
    problem: Problem, eps: float | None, tolerance: Tolerance, rng: np.random.Generator
) -> Iterator[Group]:
    """Derivatives of each entry of each output, along random directions in the inputs."""
    outputs = [to_numpy(out) for out in problem.outputs(problem.args)]
    inputs = problem.inputs()
    primals = [problem.args[i] for i in inputs]
    tangents = [random_like(x, rng) * mx.array(sizes_of(to_numpy(x)), dtype=x.dtype) for x in primals]
    jvp = jvp_of(problem.call, len(problem.args))
    differences = Differences(eps)
    cuts = np.cumsum([out.size for out in outputs])[:-1]
    floors = [float(tolerance.floor(np.max(np.abs(out), initial=0.0))) for out in outputs]

    def line(ts: Sequence[float], directions: dict[int, np.ndarray]) -> np.ndarray:
        return np.array([np.concatenate([out.ravel() for out in row]) for row in problem.along(ts, directions)])

    origin = np.concatenate([out.ravel() for out in outputs])
    for some in each_and_all(len(inputs)):
        expected = [to_numpy(out).ravel() for out in jvp(*problem.args, *only(tangents, some))]
        largest = [np.max(np.abs(part), initial=0.0) for part in expected]
        enough = [np.full(e.size, tolerance.enough(x, f)) for e, x, f in zip(expected, largest, floors, strict=True)]
        directions = {inputs[j]: to_numpy(tangents[j]) for j in some}
        search = partial(differences.slope, origin=origin, sizes=[1.0], enough=np.concatenate(enough))
        slope = search(partial(line, directions=directions), expected=np.concatenate(expected))
        if refuted(slope, np.concatenate(expected), np.concatenate(enough)):
            for halves in splits(directions, rng):
                parts = [search(partial(line, directions=half), expected=slope.value) for half in halves]
                slope = additive(slope, parts)
        parts = zip(*(np.split(part, cuts) for part in slope), strict=True)
        along = "along " + listed([problem.names[i] for i in inputs], some)
        for name, out, part, one, floor in zip(problem.output_names, outputs, expected, parts, floors, strict=True):
            labels = [f"index {index}" for index in np.ndindex(out.shape)]
            yield Group(name, along, labels, part, Slope(*one), floor)


def listed(names: Sequence[str], chosen: Sequence[int]) -> str:
    """The chosen names, separated by commas."""
    return ", ".join(names[j] for j in chosen)
