"""The large products, of size m n k and m n^2, with their derivatives.

Products with a narrow factor are summed in float64 on the CPU, for float32 input, too, and whatever the default device:
float32 sums would spoil the second digit of the gradient of a matrix of condition 1e4. (What runs where:
``_mlx/matmul.py``.) The power of two r, near 1 / |A|, keeps float32 products at scales of 1e30 in range.
"""

import mlx.core as mx

from .._factor.ridge_values import RidgeInverse
from .._factor.right_factor import RightFactor
from .._mlx.attach import attach, attach_like
from .._mlx.blocks import cross, times, times_and_residual
from .._mlx.blocks import residual as residual_by_blocks
from .._mlx.centred import Matrix, rounded
from .._mlx.complex import embed, h, stack, unstack
from .._mlx.dtypes import real
from .._mlx.matmul import matmul
from .._mlx.place import astype, large, on_cpu
from .._mlx.shapes import same_batch


def real_dot(x: mx.array, y: mx.array) -> mx.array:
    """Re <x_i, y_i> of each row, ``(..., m)``."""
    return mx.sum(mx.real(mx.conjugate(x) * y) if x.dtype == mx.complex64 else x * y, axis=-1)


def weigh(w: mx.array | None, x: mx.array) -> mx.array:
    """``diag(w) x``; None stands for weights of 1."""
    return x if w is None else w[..., None] * x


# --- With a narrow factor -------------------------------------------------------------------------


def product(a: Matrix, x: mx.array, r: mx.array) -> mx.array:
    """``A x`` for stacked float64 ``x`` (..., n or 2n, k), in the dtype of ``a``."""
    return _exact_product(a, x, r, times(a, x))


def residual(b: Matrix, a: Matrix, x: mx.array, r: mx.array) -> mx.array:
    """``b - A x`` for stacked float64 ``x``, which must not be rounded before: the difference has its digits."""
    return _exact_residual(b, a, x, r, residual_by_blocks(a, b, x))


def product_and_residual(a: Matrix, z: mx.array, b: Matrix, x: mx.array, r: mx.array) -> mx.array:
    """``[A z | (b - A x) r]`` (..., m, 2k): both in one pass over ``a``; ``r`` is ``(..., 1, 1 or k)``."""
    return _exact_product_and_residual(a, z, b, x, r, times_and_residual(a, z, b, x, r))


def cross_product(a: Matrix, b: Matrix, r: mx.array) -> mx.array:
    """``r A^H b``, stacked float64 ``(..., n or 2n, k)``."""
    return _exact_cross_product(a, b, r, _exact_cross(a, b, r))


def _product(a, x, r):
    with on_cpu():
        x = unstack(x / r, a.dtype)
    r = astype(r, real(a.dtype))
    with large(a.dtype):
        return matmul(rounded(a) * r, x)


def _residual(b, a, x, r):
    ax = _product(a, x, r)
    with large(a.dtype):
        return rounded(b) - ax


def _product_and_residual(a, z, b, x, r):
    with on_cpu():
        one, scale = mx.max(r, axis=-1, keepdims=True), r.astype(real(a.dtype))
    az, rest = product(a, z, one), residual(b, a, x, one)
    with large(a.dtype):
        return mx.concatenate(same_batch(az, rest * scale), axis=-1)


def _cross_product(a, b, r):
    r = astype(r, real(a.dtype))
    with large(a.dtype):
        ab = matmul(h(rounded(a) * r), rounded(b))
    return stack(ab)


def _exact_cross(a, b, r):
    with on_cpu():  # float64 sums of float32 products cannot overflow; those of float64 products can.
        return cross(a, b * r) if a.dtype == mx.float64 else cross(a, b) * r


_exact_product = attach_like(_product, 2, 2, 2, 2, 2)
_exact_residual = attach_like(_residual, 3, 2, 2, 2, 2, 2)
_exact_product_and_residual = attach_like(_product_and_residual, 4, 2, 2, 2, 2, 2, 2)
_exact_cross_product = attach_like(_cross_product, 2, 2, 2, 2, 2)


# --- The Gram matrix: a handle --------------------------------------------------------------------


def gram_handle(a: Matrix, w: mx.array | None, f: RightFactor | RidgeInverse) -> mx.array:
    """An array of zeros, ``(..., n or 2n, n or 2n)``, with the derivative of K = r^2 A^H D A; never read."""
    with on_cpu():
        r, n = f.scale_of_gram, a.shape[-1] * (2 if a.dtype == mx.complex64 else 1)
        return _gram(a, w, r, mx.broadcast_to(mx.array(0.0, mx.float64), (*r.shape[:-2], n, n)))


def _gram_vjp(out, k_bar, a, w, r):
    # A_bar = D A (K_bar + K_bar^H),  w_bar_i = Re <a_i, (A M)_i> / 2
    with on_cpu():
        m = k_bar + k_bar.mT
        if a.dtype == mx.complex64:  # The adjoint of the embedding is twice its inverse on embedded matrices.
            (rr, ri), (ir, ii) = (mx.split(x, 2, axis=-1) for x in mx.split(m, 2, axis=-2))
            m = mx.concatenate([rr + ii, ir - ri], axis=-2)
        am = product(a, m * r, r)
    r = astype(r, real(a.dtype))
    with large(a.dtype):
        am = am * r
        return weigh(w, am), None if w is None else real_dot(rounded(a), am) / 2


def gram_tangent(da, dw, a, w, r):
    """The tangent dK = r^2 (dA^H D A + A^H D dA + A^H dD A), embedded; ``da`` or ``dw`` is None where it is zero."""
    r = astype(r, real(a.dtype))
    with large(a.dtype):
        parts, a = [], rounded(a) * r
        if da is not None:
            da_a = matmul(h(da * r), weigh(w, a))
            parts.append(da_a + h(da_a))
        if dw is not None:
            parts.append(matmul(h(a), weigh(dw, a)))
        return embed(parts[0] if len(parts) == 1 else parts[0] + parts[1])


_gram = attach(_gram_vjp, lambda out, d, a, w, r: gram_tangent(d[0], d[1], a, w, r), 2, 1, 2, 2)
