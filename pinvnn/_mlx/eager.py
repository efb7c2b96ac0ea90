"""Looking at values, which a lazy graph allows outside of ``mx.compile`` and ``mx.vmap``, and only there."""

import mlx.core as mx

from .blocks import BLOCK, crosses
from .place import on_cpu

# Blocks whose products are evaluated together.
_BLOCKS = 16


def visible(*arrays) -> bool:
    """Evaluate the arrays (or numbers, or None) if one may look at them.

    One may not inside ``mx.compile`` and ``mx.vmap``, where there are no values yet, nor with a GPU as default device,
    for which one would have to wait.
    """
    if mx.default_device() != mx.cpu:
        return False
    try:
        mx.eval(arrays)
    except ValueError:
        return False
    return True


def evaluated_crosses(a, rights, w=None):
    """:func:`crosses` of visible arrays, evaluated.

    In a trace of vjp or jvp an evaluated array keeps the graph behind it, here the float64 copy of each row block:
    twice the memory of ``a``. So the sums are taken chunk by chunk, and only their values go on.
    """
    m, step = a.shape[-2], _BLOCKS * BLOCK
    if m <= step:
        return crosses(a, rights, w)
    import numpy as np  # here, since it takes longer to import than all of MLX

    totals = [0.0] * len(rights)
    with on_cpu():
        for i in range(0, m, step):
            rows = slice(i, i + step)
            block = a[..., rows, :]
            parts = [block if b is a else b[..., rows, :] for b in rights]
            parts = crosses(block, parts, None if w is None else w[..., rows])
            mx.eval(parts)
            totals = [total + np.array(part) for total, part in zip(totals, parts, strict=True)]
        return [mx.array(total, mx.float64) for total in totals]
