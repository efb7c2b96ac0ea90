"""Custom functions with right and wrong derivatives, on which the test kit is tested."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx


class Rules(NamedTuple):
    """What makes f(x, y) = x^3 y, elementwise, a custom function."""

    vjp: Callable = lambda x, y, w: (3 * x * x * y * w, x * x * x * w)
    jvp: Callable = lambda x, y, dx, dy: 3 * x * x * y * dx + x * x * x * dy
    vmap: Callable | None = None

    def make(self):
        """x^3 y with these rules."""

        @mx.custom_function
        def cube(x, y):
            x, y = mx.stop_gradient(x), mx.stop_gradient(y)
            return x * x * x * y

        cube.vjp(lambda primals, cotangent, output: self.vjp(*primals, cotangent))
        # A tangent is None where nothing moves.
        cube.jvp(lambda primals, tangents: self.jvp(*primals, *map(_filled, primals, tangents)))
        if self.vmap is not None:
            cube.vmap(lambda inputs, axes: self.vmap(cube, inputs, axes))
        return cube


def _filled(primal, tangent):
    return mx.zeros_like(primal) if tangent is None else tangent


def batched(cube, inputs, axes):
    """The right vmap rule of an elementwise function: all mapped axes to the front, the others broadcast."""
    size = next(x.shape[ax] for x, ax in zip(inputs, axes, strict=True) if ax is not None and ax >= 0)
    front = [
        mx.moveaxis(x, ax, 0) if ax is not None and ax >= 0 else mx.broadcast_to(x, (size, *x.shape))
        for x, ax in zip(inputs, axes, strict=True)
    ]
    return cube(*front), 0


def _ignores_axes(cube, inputs, axes):
    return cube(*inputs), 0  # right only if every axis is 0


def _forgets_output_axis(cube, inputs, axes):
    return batched(cube, inputs, axes)[0], 1


stop = mx.stop_gradient
RIGHT = Rules()
RIGHT_WITH_VMAP = Rules(vmap=batched)
WRONG_VJP = {
    "sign": Rules(vjp=lambda x, y, w: (-3 * x * x * y * w, x * x * x * w)),
    "factor": Rules(vjp=lambda x, y, w: (2 * x * x * y * w, x * x * x * w)),
    "small factor": Rules(vjp=lambda x, y, w: (3.0001 * x * x * y * w, x * x * x * w)),
    "argument": Rules(vjp=lambda x, y, w: (3 * x * x * y * w, mx.zeros_like(y))),
    "cotangent": Rules(vjp=lambda x, y, w: (3 * x * x * y, x * x * x * w)),
    "one entry": Rules(vjp=lambda x, y, w: (3 * x * x * y * w + 1e-3 * corner(x), x * x * x * w)),
    "nan": Rules(vjp=lambda x, y, w: (3 * x * x * y * w * mx.array(float("nan"), x.dtype), x * x * x * w)),
}
WRONG_JVP = {
    "sign": Rules(jvp=lambda x, y, dx, dy: 3 * x * x * y * dx - x * x * x * dy),
    "factor": Rules(jvp=lambda x, y, dx, dy: 2 * x * x * y * dx + x * x * x * dy),
    "argument": Rules(jvp=lambda x, y, dx, dy: 3 * x * x * y * dx),
}
# Right at first order: what a rule reads is not differentiated again, as with factors that were saved.
WRONG_SECOND = {
    "saved value": Rules(vjp=lambda x, y, w: (3 * stop(x * x) * y * w, x * x * x * w)),
    "all saved": Rules(vjp=lambda x, y, w: (stop(3 * x * x * y) * w, stop(x * x * x) * w)),
    "cotangent": Rules(vjp=lambda x, y, w: (3 * x * x * y * stop(w), x * x * x * w)),
}
WRONG_VMAP = {"axes": Rules(vmap=_ignores_axes), "output axis": Rules(vmap=_forgets_output_axis)}


def corner(x):
    """1 in the last entry, 0 elsewhere."""
    return (mx.arange(x.size) == x.size - 1).reshape(x.shape).astype(x.dtype)
