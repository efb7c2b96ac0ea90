"""Derivative rule of the log determinant of a Gram matrix: l = log det(K + L).

    dl = tr((K + L)^-1 (dK + dL)),    K_bar = l_bar (K + L)^-1,    l2_bar = l_bar diag((K + L)^-1)

summed over the dimensions along which l2 broadcasts. An embedded complex matrix has the square of the determinant.
"""

import mlx.core as mx

from .._factor.ridge_values import RidgeInverse, log_determinant
from .._factor.right_factor import RightFactor
from .._mlx.attach import attach
from .._mlx.centred import Matrix
from .._mlx.place import on_cpu
from .._mlx.shapes import total
from .products import gram_handle
from .ridge import penalized_inverse
from .spectral import inverse_matrix


def logdet(a: Matrix, w: mx.array | None, l2: mx.array | None, f: RightFactor | RidgeInverse) -> mx.array:
    """``log det(A^H D A + L)``, ``(...)`` in float64; -inf where ``f`` drops a singular value.

    Its derivative there is NaN. ``l2`` is ``(..., 1 or n, 1)``, of embedded problems ``(..., 1 or 2n, 1)``, or None.
    """
    with on_cpu():
        k, n = gram_handle(a, w, f), a.shape[-1]
        value = _logdet(k, l2, f, log_determinant(f, l2, k.shape[-1]))
        return value * (n / k.shape[-1])


def _inverse(k, l2, f):
    """(K + L)^-1 / r^2; NaN where it does not exist."""
    if l2 is None:
        singular = mx.any(f.kept == 0, axis=-1)[..., None, None]
        return mx.where(singular, mx.array(float("nan"), mx.float64), inverse_matrix(k, f))
    eye = mx.broadcast_to(mx.eye(k.shape[-1], dtype=mx.float64), k.shape)
    return penalized_inverse(k, l2, eye, f)


def _diagonal(x):
    return mx.sum(x * mx.eye(x.shape[-1], dtype=mx.float64), axis=-1, keepdims=True)


def _vjp(_, bar, k, l2, f):
    with on_cpu():
        bar = bar[..., None, None]
        r = _inverse(k, l2, f)
        return bar * r, None if l2 is None else bar * _diagonal(r) * f.scale * f.scale


def _jvp(_, tangents, k, l2, f):
    dk, dl2 = tangents
    with on_cpu():
        r = _inverse(k, l2, f)
        parts = [] if dk is None else [mx.sum(r * dk, axis=(-2, -1))]
        parts += [] if dl2 is None else [mx.sum(_diagonal(r) * f.scale * f.scale * dl2, axis=(-2, -1))]
        return total(parts)


_logdet = attach(_vjp, _jvp, 2, 2, None, 0)
