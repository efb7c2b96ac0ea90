"""Give a value a derivative: the only module that works around the quirks of ``mx.custom_function``.

A rule that is to be differentiated again must be made of things that are differentiable themselves. So a value is
computed once, by any algorithm, as a constant, and ``attach`` gives it a derivative that is written in attached values
and matrix products. A factorization is then never differentiated and never repeated: the rules receive its factors as
constants ("hints"). This is the ``state`` and ``transpose`` of lineax's solvers, in MLX.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import mlx.core as mx

from .place import large, on_cpu
from .shapes import unbroadcast


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
    vjp: Callable[..., Any], jvp: Callable[..., Any], cores: tuple[int, ...], on_default_device: bool = False
) -> Callable[..., mx.array]:
    """Build ``f(*args, value)``, which is ``value`` with the derivatives ``vjp`` and ``jvp`` with respect to ``args``.

    The value is a constant: nothing flows back through its computation.

    Args:
        vjp: ``vjp(out, bar, *args)`` returns the cotangents of the first args; the rest (the hints) get none. ``out``
            is the attached value, so that the rule may be differentiated again.
        jvp: ``jvp(out, tangents, *args)``; a tangent is None where nothing moves.
        cores: The number of trailing dimensions of each argument (and, last, of the value) that are not batch
            dimensions. Arguments broadcast over batch dimensions; vmap adds one, without a second factorization.
        on_default_device: Whether nothing is float64, and ``f`` need not run on the CPU.
    """
    # MLX refuses float64 on a GPU stream, and hints are float64. The custom function only returns its value: CPU.
    place = nullcontext if on_default_device else on_cpu

    @mx.custom_function
    def f(*args):
        with place():
            return mx.stop_gradient(args[-1])

    def call(*args):
        with place():
            return cast(mx.array, f(*args))

    @f.vjp
    def _vjp(args, bar, _):
        bars = vjp(call(*args), bar, *args[:-1])
        bars = [None if b is None else unbroadcast(b, a.shape) for b, a in zip(bars, args, strict=False)]
        return tuple(_zeros(a) if b is None else b for b, a in _pad(bars, args))

    @f.jvp
    def _jvp(args, tangents):
        return jvp(call(*args), tangents[:-1], *args[:-1])

    @f.vmap
    def _vmap(args, axes):
        # A mapped argument may arrive with size 1 along its axis, if MLX means it to be broadcast.
        size = max(a.shape[ax] for a, ax in zip(args, axes, strict=True) if _mapped(ax))
        with place():
            *args, value = _to_front(args, axes, cores)
            return f(*args, mx.broadcast_to(value, (size, *value.shape[1:]))), 0

    # The gradient is stopped here, once, and not in what the value is computed from: mx.compile of MLX 0.32 fails
    # ("_Map_base::at") if several stopped copies of one element-wise result are in use.
    def with_stopped_value(*args):
        with place():
            return call(*args[:-1], mx.stop_gradient(args[-1]))

    return with_stopped_value


def attach_like(fn: Callable[..., mx.array], count: int, cores: tuple[int, ...]) -> Callable[..., mx.array]:
    """Build ``f(*args, value)``, which is ``value`` with the derivatives of ``fn(*args)`` in its first ``count`` args.

    ``value`` is what ``fn`` computes, by a faster route that need not be differentiable.
    """

    def vjp(out, bar, *args):
        return mx.vjp(lambda *moving: fn(*moving, *args[count:]), list(args[:count]), [bar])[1]

    def jvp(out, tangents, *args):
        moving = [i for i in range(count) if tangents[i] is not None]

        def along(*moved):
            full = list(args)
            for i, x in zip(moving, moved, strict=True):
                full[i] = x
            return fn(*full)

        return mx.jvp(along, [args[i] for i in moving], [tangents[i] for i in moving])[1][0]

    return attach(vjp, jvp, cores)


def _pad(bars, args):
    """(cotangent, argument) of all arguments, None for the hints."""
    return zip([*bars, *[None] * (len(args) - len(bars))], args, strict=True)


def _zeros(x: mx.array) -> mx.array:
    with large(x.dtype):
        return mx.zeros_like(x)


def constant(fn: Callable[[mx.array], Any], outputs: int) -> Callable[..., Any]:
    """A factorization ``fn`` of one batched array, with ``outputs`` results, as a constant for which vmap works.

    vmap adds a batch dimension. MLX's own vmap of qr, lu and solve raises, and of triangular solves is silently wrong.
    """

    @mx.custom_function
    def f(x):
        with on_cpu():
            out = fn(mx.stop_gradient(x))
            return [mx.stop_gradient(o) for o in out] if outputs > 1 else mx.stop_gradient(out)

    @f.vjp
    def _vjp(x, bars, _):
        return _zeros(x)

    @f.vmap
    def _vmap(x, axis):
        x, axis = (x[0], axis[0]) if isinstance(x, (list, tuple)) else (x, axis)
        with on_cpu():
            out = f(mx.moveaxis(x, axis, 0))
        return out, [0] * outputs if outputs > 1 else 0

    def on_the_cpu(x):
        with on_cpu():
            return f(x)

    return on_the_cpu
