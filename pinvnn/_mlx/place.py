"""Where an operation runs.

Factorizations exist on the CPU only, and so does float64; both would raise on a GPU. Large products of float32 and
complex64 arrays run on the default device, or on the ``stream`` that the caller asked for.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mlx.core as mx

from .._types import Stream

CPU = mx.cpu


def on_cpu() -> AbstractContextManager[Any]:
    """Context in which operations run on the CPU: for factorizations and everything in float64."""
    return mx.stream(CPU)


def astype(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """``x`` as ``dtype``, converted on the CPU if either is float64."""
    if x.dtype == dtype:
        return x
    with large(mx.float64 if mx.float64 in (x.dtype, dtype) else dtype):
        return x.astype(dtype)


def large(dtype: mx.Dtype, stream: Stream = None) -> AbstractContextManager[Any]:
    """Context for the large products of a ``dtype``: the CPU for float64, else ``stream`` or the default device."""
    if dtype == mx.float64:
        return on_cpu()
    return nullcontext() if stream is None else mx.stream(stream)
