"""The inverse of ridge regression as a function of the Gram matrix: q = (K + L)^-1 x, L = diag(l2), for each target.

Real symmetric K (a complex one is embedded), float64, differentiable at every order. With u = (K + L)^-1 q_bar,

    K_bar = -(u q^T + q u^T) / 2,    l2_bar = -u o q,    x_bar = u,    dq = (K + L)^-1 (dx - dK q - dl2 o q).

Ridge regression of A is this and products of A (``solve.py``); its dual form is in ``dual.py``.
"""

import mlx.core as mx

from .._factor.ridge_values import RidgeInverse, apply_inverse
from .._mlx.attach import attach
from .._mlx.place import on_cpu
from .._mlx.shapes import total


def penalized_inverse(k: mx.array, l2: mx.array, x: mx.array, f: RidgeInverse) -> mx.array:
    """``(K + L)^-1 x / r^2`` for ``x`` (..., n, k).

    It is divided by r^2, with the r near 1 / |A| of each target, because the inverse itself may be out of range.

    Args:
        k: r^2 K with the one r of ``f.scale_of_gram``; or a handle, of which only the derivative counts.
        l2: ``(..., 1 or n, 1 or k)``.
        x: In float64, as everything here.
        f: The inverse, as constants.
    """
    with on_cpu():
        return _penalized_inverse(k, l2, x, f, apply_inverse(f, l2, k.shape, x))


def gram_normal(k: mx.array, l2: mx.array, x: mx.array, f: RidgeInverse) -> mx.array:
    """``(K + L)^-1 x`` of a Gram matrix ``k`` that was accumulated elsewhere; all float64."""
    with on_cpu():
        return penalized_inverse(k * f.scale_of_gram * f.scale_of_gram, l2, x, f) * f.scale * f.scale


def _vjp(q, bar, k, l2, x, f: RidgeInverse):
    with on_cpu():
        u, r, ratio = penalized_inverse(k, l2, bar, f), f.scale, f.scale / f.scale_of_gram
        product = (u * ratio) @ (q * ratio).mT
        return -(product + product.mT) / 2, -(u * r) * (q * r), u


def _jvp(q, tangents, k, l2, x, f: RidgeInverse):
    dk, dl2, dx = tangents
    with on_cpu():
        r, ratio = f.scale, f.scale / f.scale_of_gram
        parts = [] if dx is None else [dx]
        parts += [] if dk is None else [-(dk + dk.mT) @ (q * ratio) * ratio / 2]
        parts += [] if dl2 is None else [-dl2 * (q * r) * r]
        return penalized_inverse(k, l2, total(parts), f)


_penalized_inverse = attach(_vjp, _jvp, 2, 2, 2, None, 2)
