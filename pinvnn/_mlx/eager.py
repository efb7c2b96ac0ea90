"""Evaluation of arguments, which is possible outside of ``mx.compile`` and ``mx.vmap`` only."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from .blocks import ROWS_PER_BLOCK, crosses, residual, times
from .centred import Centred, Matrix, in_float64
from .complex import fold
from .place import on_cpu

# Multiply-adds from which on NumPy takes less time than MLX with a fast BLAS, and what an entry that is read counts.
_LEAST_FOR_NUMPY, _READ = 2**22, 16
# Numbers of a block that stays in cache together with what is made of it, and the fewest rows of one.
_CACHED, _LEAST_ROWS = 2**16, 256


def visible(*arrays: Matrix | float | None) -> bool:
    """Evaluate the arguments and return True, or return False inside ``mx.compile`` and ``mx.vmap``.

    These have no values yet. A GPU is waited for: its work is needed for the factorization in any case.
    """
    try:
        mx.eval(arrays)
    except ValueError:
        return False
    return True


def constants(*arrays: mx.array) -> list[mx.array]:
    """The values of arrays that may be evaluated, without their graph.

    Inside vjp and jvp an evaluated array keeps the graph behind it alive, and every node of a graph costs time.
    """
    import numpy as np  # here, since it takes longer to import than all of MLX

    mx.eval(arrays)
    return [mx.array(np.asarray(x), x.dtype) for x in arrays]


def _numpy_pays(a: Matrix, columns: int, *others: Matrix | None) -> bool:
    """Whether a product of ``a`` with so many columns is large, and its arguments may be evaluated."""
    largest = max(x.size for x in (a, *others) if x is not None)
    return a.size * columns + _READ * largest >= _LEAST_FOR_NUMPY and visible(a, *others)


def evaluated_crosses(a: Matrix, rights: Sequence[Matrix], w: mx.array | None = None) -> list[mx.array]:
    """:func:`crosses`; large ones of visible arrays are evaluated by NumPy, without a graph.

    On Linux MLX's own CPU products of float64 are 10 to 50 times slower than those of NumPy, which also computes one
    triangle alone of a product X^T X.
    """
    if not _numpy_pays(a, max(b.shape[-1] for b in rights), *rights, w):
        return crosses(a, rights, w)
    import numpy as np  # here, since it takes longer to import than all of MLX

    left, others = _reader(a), [None if b is a else _reader(b) for b in rights]
    scale = None if w is None else np.asarray(w)[..., None]
    totals: list = [0.0] * len(rights)
    # NaN and Inf are arguments like others; what comes of them is checked later.
    with np.errstate(all="ignore"):
        for i in range(0, a.shape[-2], ROWS_PER_BLOCK):
            rows = slice(i, i + ROWS_PER_BLOCK)
            x = left(rows)
            xt = np.swapaxes(x, -1, -2)
            if scale is not None:
                xt = xt * np.swapaxes(scale[..., rows, :], -1, -2)
            for j, b in enumerate(others):
                totals[j] = totals[j] + xt @ (x if b is None else b(rows))
    with on_cpu():
        products = [mx.array(total, mx.float64) for total in totals]
        return [fold(product) if a.dtype == mx.complex64 else product for product in products]


def evaluated_times(a: Matrix, x: mx.array) -> mx.array:
    """:func:`times`; large real ones of visible arrays are evaluated by NumPy, without a graph."""
    if a.dtype == mx.complex64 or not _numpy_pays(a, x.shape[-1], x):
        return times(a, x)
    return _product_by_numpy(a, x, a.dtype)


def evaluated_residual(a: Matrix, b: Matrix, x: mx.array) -> mx.array:
    """:func:`residual` of real arrays in float64, likewise."""
    if not _numpy_pays(a, x.shape[-1], b, x):
        return residual(a, b, x, rounded=False)
    return _product_by_numpy(a, x, mx.float64, b)


def _product_by_numpy(a: Matrix, x: mx.array, dtype: mx.Dtype, b: Matrix | None = None) -> mx.array:
    """``a x``, or ``b - a x``."""
    import numpy as np

    right, shift = np.asarray(x), None
    if isinstance(a, Centred):  # the mean apart: a subtraction from each row of the product, and not of A
        a, shift = a.rows, np.asarray(a.mean) @ right

    def of_block(left, *target):
        product = left @ right
        if shift is not None:
            product -= shift
        return (target[0] - product if target else product,)

    return _by_numpy(of_block, [a] if b is None else [a, b], [], [dtype])[0]


def by_row_blocks(
    fn: Callable[..., Any], rows: list[Matrix], others: list[mx.array], dtypes: list[mx.Dtype]
) -> list[mx.array]:
    """``fn(*blocks, *others)`` of blocks of rows of real matrices in float64; its results are put together.

    Large ones of visible arrays are evaluated by NumPy, without a graph.

    Args:
        fn: Written in what arrays of MLX and of NumPy have in common; returns a tuple of ``(..., rows, .)``.
        rows: Matrices ``(..., m, .)``.
        others: Its other arguments, float64.
        dtypes: Those to which its results are rounded.
    """
    if _numpy_pays(rows[0], others[0].shape[-1], *rows[1:], *others):
        return _by_numpy(fn, rows, others, dtypes)
    with on_cpu():
        blocks = [slice(i, i + ROWS_PER_BLOCK) for i in range(0, rows[0].shape[-2], ROWS_PER_BLOCK)]
        parts = [fn(*(in_float64(x, block) for x in rows), *others) for block in blocks]
        parts = [[x.astype(dtype) for x, dtype in zip(part, dtypes, strict=True)] for part in parts]
        return [mx.concatenate(list(of_one), axis=-2) for of_one in zip(*parts, strict=True)]


def _by_numpy(fn, rows: list[Matrix], others: list[mx.array], dtypes: list[mx.Dtype]) -> list[mx.array]:
    import numpy as np

    readers, constants, m = [_reader(x) for x in rows], [np.asarray(x) for x in others], rows[0].shape[-2]
    step, out = max(_LEAST_ROWS, min(ROWS_PER_BLOCK, _CACHED // rows[0].shape[-1])), []
    with np.errstate(all="ignore"):
        for i in range(0, m, step):
            parts = fn(*(read(slice(i, i + step)) for read in readers), *constants)
            if not out:
                kinds = (np.float64 if dtype == mx.float64 else np.float32 for dtype in dtypes)
                shapes = ((*part.shape[:-2], m, part.shape[-1]) for part in parts)
                out = [np.empty(shape, kind) for shape, kind in zip(shapes, kinds, strict=True)]
            for whole, part in zip(out, parts, strict=True):
                whole[..., i : i + step, :] = part
    return [mx.array(whole, dtype) for whole, dtype in zip(out, dtypes, strict=True)]


def _reader(a: Matrix):
    """What :func:`in_float64` does, by NumPy: a function of a slice of rows."""
    import numpy as np

    x, mean = (np.asarray(a.rows), np.asarray(a.mean)) if isinstance(a, Centred) else (np.asarray(a), None)

    def block(rows: slice) -> Any:
        part: Any = x[..., rows, :]
        part = np.concatenate([part.real, part.imag], axis=-1) if np.iscomplexobj(part) else part
        part = part.astype(np.float64)
        return part if mean is None else np.subtract(part, mean, out=part)

    return block
