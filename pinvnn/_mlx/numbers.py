"""Checks of numbers: sizes, and integers that the working dtype cannot hold."""

import operator
from typing import Any

import mlx.core as mx

from .checks import fail
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


def refuse_inexact_integers(name: str, label: str, x: mx.array) -> None:
    """Raise if ``x`` holds integers that float32, in which they would be computed, rounds. Evaluates ``x``."""
    if x.dtype not in (mx.int32, mx.uint32, mx.int64, mx.uint64) or x.size == 0:
        return
    with on_cpu():
        exact = x.astype(mx.float32).astype(x.dtype) == x
        if not mx.all(exact).item():
            first = x.reshape(-1)[mx.argmin(exact.reshape(-1))].item()
            remedy = "Subtract an offset, or pass float64: mx.array(x, dtype=mx.float64)."
            fail(name, f"integers in {label} must be exact in float32", f"{first}", remedy)
