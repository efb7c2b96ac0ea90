"""Looking at values, which a lazy graph allows outside of ``mx.compile`` and ``mx.vmap``, and only there."""

import mlx.core as mx

from ._place import on_cpu


def detached(*arrays):
    """The arrays (or numbers, or None), evaluated, as constants that share their memory; None where one must not look.

    That is inside ``mx.compile`` and ``mx.vmap``, where there are no values yet, and with a GPU as default device, for
    which one would have to wait. In a trace of vjp or jvp an evaluated array keeps the graph behind it, and so would
    all that is computed from it (the float64 copy of each row block, say); what is computed from these does not.
    """
    if mx.default_device() != mx.cpu:
        return None
    try:
        mx.eval(arrays)
        return [_alias(x) if isinstance(x, mx.array) else x for x in arrays]
    except (TypeError, ValueError):
        return None


def _alias(x):
    if mx.cuda.is_available():  # its memory may be out of the reach of an alias
        return x
    if x.dtype != mx.float64:
        return mx.from_dlpack(x)
    with on_cpu():  # MLX takes float64 from outside as float32
        return mx.from_dlpack(x.view(mx.int64)).view(mx.float64)
