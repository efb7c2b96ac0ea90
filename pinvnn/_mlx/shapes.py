"""Batch dimensions: broadcasting and its transpose."""

import mlx.core as mx

from .place import large


def same_batch(*arrays):
    """The arrays, broadcast over their batch dimensions."""
    batch = mx.broadcast_shapes(*(x.shape[:-2] for x in arrays))
    return [mx.broadcast_to(x, (*batch, *x.shape[-2:])) for x in arrays]


def unbroadcast(x, shape):
    """Sum ``x`` over the batch dimensions that were broadcast, back to ``shape``."""
    if x.shape == tuple(shape):
        return x
    extra = x.ndim - len(shape)
    axes = [*range(extra), *(extra + i for i, d in enumerate(shape) if d == 1 and x.shape[extra + i] != 1)]
    with large(x.dtype):
        return mx.sum(x, axis=axes, keepdims=True).reshape(shape)
