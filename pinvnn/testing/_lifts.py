"""Derivatives of a function of arrays as functions of arrays again, so that they can be checked and nested themselves.

A cotangent or tangent is one more argument, because second derivatives of a loss that is not linear differentiate the
rule with respect to it, too.
"""

from collections.abc import Sequence

import mlx.core as mx

from ._trees import FlatFunction, inexact


def _active(call: FlatFunction, args: Sequence[mx.array]) -> tuple[FlatFunction, list[mx.array]]:
    """``call`` as a function of its inexact arguments alone, returning its inexact outputs; and those arguments."""
    places = [i for i, a in enumerate(args) if inexact(a)]

    def active(*primals: mx.array) -> list[mx.array]:
        full = list(args)
        for i, primal in zip(places, primals, strict=True):
            full[i] = primal
        return [out for out in call(*full) if inexact(out)]

    return active, [args[i] for i in places]


def vjp_of(call: FlatFunction, count: int) -> FlatFunction:
    """``(*args, *cotangents) -> [J^T w for each inexact argument]``, of a ``call`` with ``count`` arguments."""

    def vjp(*arrays: mx.array) -> list[mx.array]:
        active, primals = _active(call, arrays[:count])
        return mx.vjp(active, primals, list(arrays[count:]))[1]

    return vjp


def jvp_of(call: FlatFunction, count: int) -> FlatFunction:
    """``(*args, *tangents) -> [J v for each inexact output]``, of a ``call`` with ``count`` arguments."""

    def jvp(*arrays: mx.array) -> list[mx.array]:
        active, primals = _active(call, arrays[:count])
        return mx.jvp(active, primals, list(arrays[count:]))[1]

    return jvp
