"""Checks of numbers: sizes, and integers that the working dtype cannot hold, among data and weights."""

import operator
from typing import Any

import mlx.core as mx

from .._types import ArrayLike
from . import dtypes
from .checks import array, fail, real_array
from .eager import visible
from .place import on_cpu


def size(name: str, label: str, value: Any, least: int = 0) -> int:
    """``value`` as an int of at least ``least``. It may be any integer, NumPy's included, but no bool."""
    kind = "a positive integer" if least else "a non-negative integer"
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        fail(name, f"{label} must be {kind}", f"{value!r}", "Pass a size.")
    return number


def refuse_inexact_integers(
    name: str, label: str, x: mx.array, work: mx.Dtype = mx.float32, remedy: str | None = None
) -> None:
    """Raise if ``x`` holds integers that ``work``, in which they would be computed, rounds; nothing inside graphs."""
    if x.dtype not in (mx.int32, mx.uint32, mx.int64, mx.uint64) or x.size == 0 or not visible(x):
        return
    with on_cpu():
        exact = _exact(x, dtypes.real(work))
        if not mx.all(exact).item():
            first = mx.argmin(exact.reshape(-1))
            if remedy is None:
                remedy = "Subtract an offset"
                if work != mx.float64 and _exact(x, mx.float64).reshape(-1)[first].item():
                    remedy += f", or pass float64: mx.array({label}, dtype=mx.float64)"
                remedy += "."
            got = f"{x.reshape(-1)[first].item()}"
            fail(name, f"integers in {label} must be exact in {dtypes.name(dtypes.real(work))}", got, remedy)


def weights_array(name: str, label: str, x: ArrayLike, work: mx.Dtype) -> mx.array:
    """``x`` as a real array in the real dtype that goes with ``work``, which must not round integers."""
    x, real = array(name, label, x), dtypes.name(dtypes.real(work))
    remedy = f"If rounded ones will do, cast them: {label}.astype(mx.{real})."
    refuse_inexact_integers(name, label, x, work, remedy)
    return real_array(name, label, x, work)


def _exact(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """Which integers of ``x`` the ``dtype`` holds. One that it rounds to the end of their range does not come back."""
    rounded = x.astype(dtype)
    bits = 8 * x.dtype.size - (x.dtype in (mx.int32, mx.int64))
    return mx.logical_and(rounded < 2.0**bits, mx.where(rounded < 2.0**bits, rounded, 0).astype(x.dtype) == x)
