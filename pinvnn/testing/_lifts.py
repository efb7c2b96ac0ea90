"""Derivatives of a function of arrays as functions of arrays again, so that they can be checked and nested themselves.

A cotangent or tangent is one more argument: a derivative rule is itself differentiated with respect to it wherever a
loss is not linear.
"""

import mlx.core as mx

from ._trees import inexact


def _active(call, args):
    """``call`` as a function of its inexact arguments alone, returning its inexact outputs; and those arguments."""
    places = [i for i, a in enumerate(args) if inexact(a)]

    def active(*primals):
        full = list(args)
        for i, primal in zip(places, primals, strict=True):
            full[i] = primal
        return [out for out in call(*full) if inexact(out)]

    return active, [args[i] for i in places]


def vjp_of(call, count: int):
    """``(*args, *cotangents) -> [J^T w for each inexact argument]``, of a ``call`` with ``count`` arguments."""

    def vjp(*arrays):
        active, primals = _active(call, arrays[:count])
        return mx.vjp(active, primals, list(arrays[count:]))[1]

    return vjp


def jvp_of(call, count: int):
    """``(*args, *tangents) -> [J v for each inexact output]``, of a ``call`` with ``count`` arguments."""

    def jvp(*arrays):
        active, primals = _active(call, arrays[:count])
        return mx.jvp(active, primals, list(arrays[count:]))[1]

    return jvp
