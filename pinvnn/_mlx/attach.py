"""Give a value a derivative: the only module that works around the quirks of ``mx.custom_function``.

A rule that is to be differentiated again must be made of things that are differentiable themselves. So a value is
computed once, by any algorithm, as a constant, and ``attach`` gives it a derivative that is written in attached values
and matrix products. A factorization is then never differentiated and never repeated: the rules receive its factors as
constants ("hints"). This is the ``state`` and ``transpose`` of lineax's solvers, in MLX.

Arguments are arrays, None, or records: NamedTuples of arrays, records, None and strings, whose property ``cores`` says
for each array how many of its trailing dimensions are no batch; or :class:`Centred` matrices, which have derivatives
as arrays do. ``mx.custom_function`` takes arrays alone, so that one
is built, and kept, for each structure of the arguments.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import cache
from itertools import takewhile
from typing import Any, cast

import mlx.core as mx

from .centred import Centred
from .place import large, on_cpu
from .shapes import unbroadcast

_ARRAY = object()  # stands for an array in the structure of arguments


def _flatten(fields: Iterable[Any], of_fields: Iterable[Any], leaves: list[mx.array], cores: list[int | None]):
    """The structure of ``fields``, hashable; appends their arrays and the cores of these to the two lists."""
    found: list[Any] = []
    for x, core in zip(fields, of_fields, strict=True):
        if isinstance(x, mx.array):
            leaves.append(x)
            cores.append(core)
            found.append(_ARRAY)
        elif isinstance(x, tuple):
            inner = _flatten(x, core if isinstance(core, tuple) else cast(Any, x).cores, leaves, cores)
            found.append((type(x), inner))
        else:
            found.append(x)
    return tuple(found)


def _unflatten(structures: tuple[Any, ...], leaves: Iterator[mx.array]) -> list[Any]:
    return [
        next(leaves) if s is _ARRAY else s[0](*_unflatten(s[1], leaves)) if isinstance(s, tuple) else s
        for s in structures
    ]


def _mapped(axis: int | None) -> bool:
    return axis is not None and axis >= 0


def _to_front(args, axes, cores) -> list[mx.array]:
    """Each mapped axis moved to the front and batch dimensions aligned: vmap becomes one more batch dimension."""
    mapped = [_mapped(ax) for ax in axes]
    moved = [mx.moveaxis(a, ax, 0) if on else a for a, ax, on in zip(args, axes, mapped, strict=True)]
    batch = max(a.ndim - core - on for a, core, on in zip(moved, cores, mapped, strict=True))
    out = []
    for a, core, on in zip(moved, cores, mapped, strict=True):
        lead, rest = (a.shape[:1], a.shape[1:]) if on else ((1,), a.shape)
        out.append(a.reshape(*lead, *(1,) * (batch + core - len(rest)), *rest))
    return out


def attach(
    vjp: Callable[..., Any], jvp: Callable[..., Any], *cores: int | None, on_default_device: bool = False
) -> Callable[..., mx.array]:
    """Build ``f(*args, value)``, which is ``value`` with the derivatives ``vjp`` and ``jvp`` with respect to ``args``.

    The value is a constant: nothing flows back through its computation.

    Args:
        vjp: ``vjp(out, bar, *args)`` returns the cotangents of the first args, None where there is none; the other args
            (the hints) get none. ``out`` is the attached value, so that the rule may be differentiated again.
        jvp: ``jvp(out, tangents, *args)`` returns the tangent of the value. Tangents are those of the args before the
            first record, None where nothing moves.
        cores: The number of trailing dimensions of each argument (and, last, of the value) that are not batch
            dimensions; None for a record. Arguments broadcast over batch dimensions; vmap adds one, without a second
            factorization.
        on_default_device: Whether nothing is float64, and ``f`` need not run on the CPU.
    """
    # MLX refuses float64 on a GPU stream, and hints are float64. The custom function only returns its value: CPU.
    place = nullcontext if on_default_device else on_cpu

    @cache
    def build(structures: tuple[Any, ...], leaf_cores: tuple[int | None, ...]) -> Callable[..., mx.array]:
        @mx.custom_function
        def f(*leaves):
            return leaves[-1]

        @f.vjp
        def _vjp(leaves, bar, out):
            args = _unflatten(structures, iter(leaves))
            bars: list[mx.array | None] = []
            for x, b in zip(args, vjp(out, bar, *args), strict=False):
                if x is not None:
                    bars.append(None if b is None else unbroadcast(b, x.shape))
                    bars += [None] * isinstance(x, Centred)  # its mean
            bars += [None] * (len(leaves) - len(bars))
            return tuple(_zeros(x) if b is None else b for x, b in zip(leaves, bars, strict=True))

        @f.jvp
        def _jvp(leaves, tangents):
            moving, along = iter(tangents), []
            for structure in takewhile(lambda s: not isinstance(s, tuple) or s[0] is Centred, structures):
                along.append(None if structure is None else next(moving))
                if isinstance(structure, tuple):
                    next(moving)  # its mean
            with place():
                out = f(*leaves)
            return jvp(out, along, *_unflatten(structures, iter(leaves)))

        @f.vmap
        def _vmap(leaves, axes):
            # A mapped argument may arrive with size 1 along its axis, if MLX means it to be broadcast.
            size = max(x.shape[ax] for x, ax in zip(leaves, axes, strict=True) if _mapped(ax))
            with place():
                *leaves, value = _to_front(leaves, axes, leaf_cores)
                return f(*leaves, mx.broadcast_to(value, (size, *value.shape[1:]))), 0

        return cast(Callable[..., mx.array], f)

    def attached(*args):
        leaves: list[mx.array] = []
        leaf_cores: list[int | None] = []
        structures = _flatten(args[:-1], cores[:-1], leaves, leaf_cores)
        # The gradient is stopped here, once, and not in what the value is computed from: mx.compile of MLX 0.32 fails
        # ("_Map_base::at") if several stopped copies of one element-wise result are in use.
        with place():
            return build(structures, (*leaf_cores, cores[-1]))(*leaves, mx.stop_gradient(args[-1]))

    return attached


def attach_like(fn: Callable[..., mx.array], count: int, *cores: int | None) -> Callable[..., mx.array]:
    """Build ``f(*args, value)``, which is ``value`` with the derivatives of ``fn(*args)`` in its first ``count`` args.

    ``value`` is what ``fn`` computes, by a faster route that need not be differentiable.
    """
    return attach(*rules_like(fn, count), *cores)


def rules_like(fn: Callable[..., mx.array], count: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The vjp and the jvp of ``fn`` in its first ``count`` args, as :func:`attach` takes them."""

    def along(args, moving):
        """``fn`` as a function of the arguments with the numbers ``moving``, and these arguments."""

        def of_moving(*moved):
            full = list(args)
            for i, x in zip(moving, moved, strict=True):
                full[i] = full[i]._replace(rows=x) if isinstance(full[i], Centred) else x
            return fn(*full)

        moved = (args[i] for i in moving)
        return of_moving, [x.rows if isinstance(x, Centred) else x for x in moved]

    def vjp(out, bar, *args):
        moving = [i for i in range(count) if args[i] is not None]
        bars = iter(mx.vjp(*along(args, moving), [bar])[1])
        return [None if args[i] is None else next(bars) for i in range(count)]

    def jvp(out, tangents, *args):
        moving = [i for i in range(count) if tangents[i] is not None]
        return mx.jvp(*along(args, moving), [tangents[i] for i in moving])[1][0]

    return vjp, jvp


def _zeros(x: mx.array) -> mx.array:
    with large(x.dtype):
        return mx.zeros_like(x)


def constant(fn: Callable[[mx.array], Any], outputs: int) -> Callable[..., Any]:
    """A factorization ``fn`` of one batched array, with ``outputs`` results, as a constant for which vmap works.

    vmap adds a batch dimension. MLX's own vmap of qr, lu and solve raises, and of triangular solves is silently wrong.
    """
    f = mx.custom_function(fn)

    @f.vmap
    def _vmap(x, axis):
        x, axis = (x[0], axis[0]) if isinstance(x, (list, tuple)) else (x, axis)
        with on_cpu():
            out = f(mx.moveaxis(x, axis, 0))
        return out, (0,) * outputs if outputs > 1 else 0

    def on_the_cpu(x):
        with on_cpu():
            return f(mx.stop_gradient(x))

    return on_the_cpu
