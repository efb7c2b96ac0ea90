"""Dtype promotion: the dtype in which the work is done, and that of the result."""

import mlx.core as mx

_HALF = {mx.float16, mx.bfloat16}


def working(*arrays: mx.array) -> mx.Dtype:
    """The dtype in which the work is done: half and integers become float32; complex64 wins, then float64."""
    dtypes = [x.dtype for x in arrays]
    return next((d for d in (mx.complex64, mx.float64) if d in dtypes), mx.float32)


def result(*arrays: mx.array) -> mx.Dtype:
    """The dtype of the result: float16 or bfloat16 if all floating input is of that type, else the working dtype."""
    kinds = {x.dtype for x in arrays if mx.issubdtype(x.dtype, mx.inexact)}
    return kinds.pop() if len(kinds) == 1 and kinds <= _HALF else working(*arrays)


def real(dtype: mx.Dtype) -> mx.Dtype:
    """The dtype of the absolute value of a ``dtype``."""
    return mx.float32 if dtype == mx.complex64 else dtype


def name(dtype: mx.Dtype) -> str:
    """The ``dtype`` as NumPy names it: ``"float32"``."""
    return str(dtype).split(".")[-1]


def eps(dtype: mx.Dtype) -> float:
    """Spacing of the working ``dtype`` at 1 (float16 and bfloat16 work in float32)."""
    return 2.0**-52 if dtype == mx.float64 else 2.0**-23
