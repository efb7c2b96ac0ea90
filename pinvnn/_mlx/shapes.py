"""Batch dimensions: broadcasting and its transpose."""

import mlx.core as mx

from .place import large


def same_batch(*arrays: mx.array) -> list[mx.array]:
    """The matrices ``(..., m, n)`` with their batch dimensions broadcast to a common shape."""
    batch = mx.broadcast_shapes(*(x.shape[:-2] for x in arrays))
    return [mx.broadcast_to(x, (*batch, *x.shape[-2:])) for x in arrays]


def diagonal(x: mx.array) -> mx.array:
    """The diagonal ``(..., n)`` of ``x`` (..., n, n), without the indices of ``mx.diagonal``."""
    n = x.shape[-1]
    return x.reshape(*x.shape[:-2], n * n)[..., :: n + 1]


def total(terms: list[mx.array]) -> mx.array:
    """Sum of at least one array."""
    return sum(terms[1:], terms[0])


def unbroadcast(x: mx.array, shape: tuple[int, ...]) -> mx.array:
    """The adjoint of ``broadcast_to``: ``x`` summed over the dimensions along which ``shape`` was broadcast."""
    if x.shape == tuple(shape):
        return x
    extra = x.ndim - len(shape)
    axes = [*range(extra), *(extra + i for i, d in enumerate(shape) if d == 1 and x.shape[extra + i] != 1)]
    with large(x.dtype):
        return mx.sum(x, axis=axes, keepdims=True).reshape(shape)
