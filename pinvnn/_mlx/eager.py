"""Evaluation of arguments, which is possible outside of ``mx.compile`` and ``mx.vmap`` only."""

import mlx.core as mx

from .blocks import ROWS_PER_BLOCK, crosses
from .place import on_cpu

# Row blocks whose products are evaluated together.
_BLOCKS_PER_EVALUATION = 16


def visible(*arrays: mx.array | float | None) -> bool:
    """Evaluate the arguments and return True, or return False where that is impossible or slow.

    It is impossible inside ``mx.compile`` and ``mx.vmap``, which have no values yet, and slow with a GPU as default
    device, whose work would have to be waited for.
    """
    if mx.default_device() != mx.cpu:
        return False
    try:
        mx.eval(arrays)
    except ValueError:
        return False
    return True


def evaluated_crosses(a: mx.array, rights: list[mx.array], w: mx.array | None = None) -> list[mx.array]:
    """:func:`crosses` of visible arrays, evaluated.

    Inside vjp and jvp an evaluated array keeps its graph alive, here a float64 copy of each row block: twice the memory
    of ``a``. So some blocks at a time are evaluated and only the values of their sums are kept.
    """
    m, step = a.shape[-2], _BLOCKS_PER_EVALUATION * ROWS_PER_BLOCK
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
