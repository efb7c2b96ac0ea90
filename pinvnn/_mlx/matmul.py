"""Products of float32 and complex64 matrices that have the digits of float32 on every device.

MLX multiplies float32 matrices on M5 Macs and on NVIDIA GPUs since Ampere in TF32: of the 24 bits of an operand 11 are
used, and the error is 8e-4 instead of 4e-7. (``MLX_ENABLE_TF32=0`` turns that off for a whole process, if it is set
before the first product, and makes everything else on the GPU slower. This library does not touch it.)

What runs where, and this is the only place that decides it:

- Products whose errors the condition number multiplies (A z, b - A x, A^H b, Gram matrices) are summed in float64 on
  the CPU, whatever the default device: ``blocks.py``. They are thin, and on Apple machines memory is shared. For
  ``method="slices"`` the Gram matrix and A^H b are summed on the device: ``slices.py``.
- All others are float32 on the CPU, and on a GPU three products of halves, :func:`matmul`: with x = h + l, h the first
  11 bits, x y = h h' + (h l' + l h') to 2e-7, the same on every GPU.
"""

import mlx.core as mx

from .attach import attach
from .complex import h


def matmul(a: mx.array, b: mx.array) -> mx.array:
    """``a @ b``, as accurate as in float32, differentiable at every order.

    Where the product of a GPU is Inf this is NaN.
    """
    if not on_gpu(a.dtype):
        return a @ b
    return _matmul(a, b, _in_three(a, b))


def addmm(c: mx.array, a: mx.array, b: mx.array) -> mx.array:
    """``c + a @ b``, likewise."""
    return c + matmul(a, b) if on_gpu(a.dtype) else mx.addmm(c, a, b)


def on_gpu(dtype: mx.Dtype) -> bool:
    """Whether products of this dtype now run on a GPU."""
    return dtype != mx.float64 and mx.default_device() == mx.gpu


def _in_three(a, b):
    (ah, al), (bh, bl) = _halves(mx.stop_gradient(a)), _halves(mx.stop_gradient(b))
    return ah @ bh + (ah @ bl + al @ bh)


def _halves(x):
    """``(high, low)``: 11 significant bits, rounded to nearest, and the rest, of either sign."""
    if x.dtype == mx.complex64:
        high = _high(mx.real(x)) + mx.array(1j, mx.complex64) * _high(mx.imag(x))
    else:
        high = _high(x)
    return high, x - high


def _high(x):
    return (((x.view(mx.uint32) + 0x1000) >> 13) << 13).view(mx.float32)


def _vjp(out, bar, a, b):
    return matmul(bar, h(b)), matmul(h(a), bar)


def _jvp(out, tangents, a, b):
    da, db = tangents[:2]
    parts = ([] if da is None else [matmul(da, b)]) + ([] if db is None else [matmul(a, db)])
    return sum(parts[1:], parts[0])


_matmul = attach(_vjp, _jvp, 2, 2, 2, on_default_device=True)
