"""Derivative rules of the pseudo-inverse, and the notation of the rules of least squares.

A rule is a pure function of the arguments, the result with its derivative attached (``out``, ``p``, ``x``), a cotangent
or tangents, and constants ("hints"): the fields of a :class:`RightFactor`. docs/math.md has the derivations.

    A       m x n and tall; a wide problem is that of A^H
    D       diag(w), the weights of the rows
    K       A^H D A, the Gram matrix, n x n
    B       K^+ with the dropped eigenvalues truncated
    P       A^+ = B A^H, n x m
    S(R)    the kept-by-dropped block of R over differences of eigenvalues (``spectral.split``)
    dX      the tangent of X
    X_bar   the cotangent of X; G = P_bar
    r       a power of two near 1 / |A|. The small factors are those of r A; r is split over both sides of a product so
            that neither 1e-30 nor 1e30 leaves the range of float32 on the way.

Golub and Pereyra 1973, Eq. 4.12 (doi 10.1137/0710036), reads at constant rank

    dP    = -P dA P + B dA^H (I - A P) + (I - P A) dA^H P^H P
    A_bar = -P^H G P^H + (I - A P) G^H B + P^H P G^H (I - P A).

Since P = B A^H, every term but G^H B has A on its left, and they gather in one n x n matrix:

    A_bar = G^H B + A M,    M = -(B T + T^H B) + Q + Q^H,  Q = S(B G A + T^H),  T = G P^H.

Where rows are far from 0, A is split into 1 c, a row near their mean in each, and C, whose products keep the digits.
It is exact where non-zero values are truncated, too (``spectral.pull_back``), costs four products of size m n^2, and
needs no m x m matrix.
"""

import mlx.core as mx

from .._factor.right_factor import RightFactor
from .._factor.values import reciprocal
from .._mlx.attach import attach, attach_like
from .._mlx.complex import embed, embed_stacked, h, unembed
from .._mlx.dtypes import real
from .._mlx.matmul import addmm, matmul, on_gpu
from .._mlx.place import astype, large, on_cpu
from .products import cross_product, gram_handle, gram_tangent
from .spectral import inverse, inverse_matrix, pull_back, split, split_weight

_ROWS_OF_SHIFT = 64  # as many give a mean that is near enough, whatever the order of the rows


def _pinv_vjp(p, g, a, f: RightFactor):
    k, r = gram_handle(a, None, f), astype(f.r, real(a.dtype))
    with large(a.dtype):
        # A = C + 1 c, c near the mean row: where rows are far from 0, float32 products of A itself, or of P, lose the
        # digits of |c| / |C|.
        shift = mx.stop_gradient(mx.mean(a[..., :: max(1, a.shape[-2] // _ROWS_OF_SHIFT), :], axis=-2, keepdims=True))
        near, gr = (a - shift) * r, g * r
    with on_cpu():
        wide, c = inverse_matrix(k, f) * f.r, embed(shift) * f.r
    ga = _product_with_rows(gr, a, near, c, f.r)
    with on_cpu():
        # In float64, which B has, too, (G A) B would lose cond(A)^2 digits.
        t = g @ h(p) if a.dtype == mx.float64 else ga @ wide
        if f.full:
            bt = wide @ t
            m = -(bt + bt.mT)
        else:
            m = pull_back(k, t, ga * f.r, f, real(a.dtype)) * f.r
        # One array, since on CUDA the host waits for each that crosses to the GPU.
        small = mx.concatenate([unembed(x, a.dtype) for x in (wide, m, c @ m)], axis=-2)
    with large(a.dtype):
        n = a.shape[-1]
        b, m, row = mx.split(small, [n, 2 * n], axis=-2)
        return (_sum_of_products(h(gr), b, near, m, row),)


def _product_with_rows(g, a, near, c, r):
    """G A from r A = ``near`` + 1 c in each row, embedded. Its errors pass B twice: on a GPU it is a float64 sum."""
    if on_gpu(a.dtype):
        with on_cpu():
            return embed_stacked(cross_product(h(g), a, mx.ones((1, 1), mx.float64)), a.dtype)
    with large(a.dtype):
        product, total = g @ near, g @ mx.ones((near.shape[-2], 1), g.dtype)
    with on_cpu():
        return (embed(product) + embed(total) @ c) / r


def _sum_of_products(a, b, c, d, row) -> mx.array:
    """``a b + c d`` plus ``row`` in each row, without intermediate arrays for the products, where MLX can."""
    if a.dtype == mx.complex64 or a.ndim > 2:
        return matmul(a, b) + matmul(c, d) + row
    return addmm(addmm(row, a, b), c, d)


def _pinv_jvp(p, tangents, a, f: RightFactor):
    # dP = B dA^H + (C^H - B dK) P + B C A^H
    da = tangents[0]
    k, r = gram_handle(a, None, f), astype(f.r, real(a.dtype))
    dk = gram_tangent(da, None, a, None, f.r)
    with on_cpu():
        c = split(k, dk, f)
        bc = unembed(inverse(k, c, f) * f.r, a.dtype)
        b = unembed(inverse_matrix(k, f) * f.r, a.dtype)
        left = unembed(c.mT - inverse(k, dk, f), a.dtype)
    with large(a.dtype):
        return (matmul(b, h(da)) + matmul(bc, h(a))) * r + matmul(left, p)


def _pinv_vjp_by_vectors(p, g, a, f: RightFactor, u):
    # The same in the bases U = A V / s and V, if the left singular vectors U are at hand. With Y = V^T G and Z = Y U,
    # T is Z / s and G A is Z s, and A_bar = (Y^T / s^2 + U s M) V^T. No digit is lost to cond(A).
    with on_cpu():
        beta, weight = reciprocal(f, 2)[..., :, None], split_weight(f)
        narrow = (f.v, beta, weight, f.s[..., None, :], reciprocal(f, 1)[..., None, :], f.r)
        v, beta, weight, s, over_s, r = (x.astype(a.dtype) for x in narrow)
    with large(a.dtype):
        y = matmul(v.mT, g * r)
        z = matmul(y, u)
        t = z * over_s
        m = weight * (beta * (z * s) + t.mT) - beta * t
        inner = y.mT * beta.mT + matmul(u, s.mT * (m + m.mT))
        value = matmul(inner, v.mT) * r
    return (_as_pinv_vjp(p, g, a, f, value),)


_as_pinv_vjp = attach_like(lambda *args: _pinv_vjp(*args)[0], 3, 2, 2, 2, None, 2)
#: ``attach_pinv(a, f, value)``: the pseudo-inverse with its derivative.
attach_pinv = attach(_pinv_vjp, _pinv_jvp, 2, None, 2)
#: ``attach_pinv_by_vectors(a, f, u, value)``: the same if the left singular vectors ``u`` are at hand.
attach_pinv_by_vectors = attach(
    _pinv_vjp_by_vectors, lambda p, tangents, a, f, u: _pinv_jvp(p, tangents, a, f), 2, None, 2, 2
)
