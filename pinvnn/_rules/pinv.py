"""Derivative rules of the large problems: pure functions of the inputs, the attached result and the hints.

Notation as in ``spectral.py`` and docs/math.md: A is m x n and tall, P = A^+ (n x m), D = diag(w), K = A^H D A,
B = K^+ truncated, x = B A^H D b, z = B x_bar; ``out`` is the result with its derivative attached. Golub and Pereyra
1973, Eq. 4.12 (doi 10.1137/0710036), reads, for a constant rank,

    dP    = -P dA P + B dA^H (I - A P) + (I - P A) dA^H P^H P
    A_bar = -P^H G P^H + (I - A P) G^H B + P^H P G^H (I - P A),    G = P_bar.

Since P = B A^H, every term but G^H B has A on its left, and all of them gather in one n x n matrix:

    A_bar = G^H B + A M,    M = -(B T + T^H B) + D + D^H,  D = S(B G A + T^H),  T = G P^H,

which is the exact derivative of the truncated pseudo-inverse too (``spectral.pull_back``), costs four products of size
m n^2, and never forms an m x m matrix. lstsq is the same rule with G = x_bar b^H, of rank k, and T = x_bar x^H. There
the terms without D are better written with the residual, whose digits b z^H - A x z^H would lose:

    A_bar = (b - A x) z^H - (A z) x^H + A (D + D^H).

The small factors belong to r A (r a power of two), which is where r comes from; it is split over both sides of a
product so that none overflows at scales of 1e30. Small solutions are float64 until they leave this file.
"""

import mlx.core as mx

from .._factor.right_factor import CORES, Factor
from .._factor.values import reciprocal
from .._mlx.attach import attach, attach_like
from .._mlx.complex import embed, h, unembed
from .._mlx.dtypes import real
from .._mlx.place import astype, large, on_cpu
from .products import (
    gram,
    gram_tangent,
)
from .spectral import inverse, inverse_matrix, pull_back, split, split_weight


def _pinv_vjp(p, g, a, *hints):
    f = Factor(*hints)
    k, r = gram(a, None, f), astype(f.r, real(a.dtype))
    with on_cpu():
        b = unembed(inverse_matrix(k, f) * f.r, a.dtype)
    with large(a.dtype):
        t = g @ h(p)
        bt = b @ t
        m = -(bt + h(bt)) if f.full else _truncated(k, t, (g * r) @ a, f, a.dtype)
        return (_sum_of_products(h(g), b, a, m) * r,)


def _truncated(k, t, ga, f: Factor, dtype):
    """M / r from T and G A where singular values may have been dropped."""
    with on_cpu():
        return unembed(pull_back(k, embed(t), embed(ga) * f.r, f, real(dtype)) * f.r, dtype)


def _sum_of_products(a, b, c, d):
    """``a b + c d``, the second product summed onto the first."""
    if a.dtype == mx.complex64 or a.ndim > 2:
        return a @ b + c @ d
    return mx.addmm(a @ b, c, d)


def _pinv_jvp(p, tangents, a, *hints):
    # dP = B dA^H + (C^H - B dK) P + B C A^H
    f = Factor(*hints)
    da = tangents[0]
    k, r = gram(a, None, f), astype(f.r, real(a.dtype))
    dk = gram_tangent(da, None, a, None, f.r)
    with on_cpu():
        c = split(k, dk, f)
        bc = unembed(inverse(k, c, f) * f.r, a.dtype)
        b = unembed(inverse_matrix(k, f) * f.r, a.dtype)
        left = unembed(c.mT - inverse(k, dk, f), a.dtype)
    with large(a.dtype):
        return (b @ h(da) + bc @ h(a)) * r + left @ p


def _pinv_vjp_by_vectors(p, g, a, *hints):
    # With the left vectors U = A V / s at hand, in the bases U and V: of Y = V^T G and Z = Y U all is read off
    # (T = Z / s, G A = Z s), and A_bar = (Y^T / s^2 + U s M) V^T. No digit is lost to cond(A).
    *hints, u = hints
    f = Factor(*hints)
    with on_cpu():
        beta, weight = reciprocal(f, 2)[..., :, None], split_weight(f)
        narrow = (f.v, beta, weight, f.s[..., None, :], reciprocal(f, 1)[..., None, :], f.r)
        v, beta, weight, s, over_s, r = (x.astype(a.dtype) for x in narrow)
    with large(a.dtype):
        y = v.mT @ (g * r)
        z = y @ u
        t = z * over_s
        m = weight * (beta * (z * s) + t.mT) - beta * t
        inner = y.mT * beta.mT + u @ (s.mT * (m + m.mT))
        value = (inner @ v.mT) * r
    return (_as_pinv_vjp(p, g, a, *hints, value),)


_as_pinv_vjp = attach_like(lambda *args: _pinv_vjp(*args)[0], 3, (2, 2, 2, *CORES, 2))
attach_pinv = attach(_pinv_vjp, _pinv_jvp, (2, *CORES, 2))
attach_pinv_by_vectors = attach(
    _pinv_vjp_by_vectors, lambda p, tangents, a, *hints: _pinv_jvp(p, tangents, a, *hints[:-1]), (2, *CORES, 2, 2)
)


