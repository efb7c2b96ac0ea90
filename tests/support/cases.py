"""What the tests of the functions share: shapes, matrices, and closeness relative to the largest entry."""

import mlx.core as mx
import numpy as np

DTYPES = [mx.float32, mx.float64, mx.complex64]
SHAPES = {"tall": (6, 3), "wide": (3, 6), "square": (4, 4), "column": (5, 1), "row": (1, 5), "one": (1, 1)}
EMPTY = [(0, 3), (3, 0), (0, 0), (0, 4, 3), (2, 0, 3), (2, 3, 0)]

# Relative error allowed to a value; the inputs have condition numbers near 10.
RTOL = {mx.float64: 1e-13, mx.float32: 3e-6, mx.complex64: 3e-6, mx.float16: 4e-3, mx.bfloat16: 3e-2}


def array(x, dtype=mx.float32):
    """An MLX array, float64 on the CPU."""
    return mx.array(np.asarray(x), dtype=dtype)


def float64(x):
    """A float64 array from numbers."""
    return array(np.asarray(x, dtype=float), mx.float64)


def inner(x, y):
    """The inner product of two arrays, real."""
    return mx.sum(mx.real(mx.conjugate(x) * y) if x.dtype == mx.complex64 else x * y)


def real(dtype):
    """The dtype of a magnitude, or of a weight."""
    return mx.float32 if dtype == mx.complex64 else dtype


def numpy(x):
    """float64 or complex128, so that a reference computed from it is exact to the precision of ``x``."""
    if x.dtype == mx.complex64:
        return np.array(x).astype(np.complex128)
    return np.array(x if x.dtype == mx.float64 else x.astype(mx.float32)).astype(np.float64)


def gaussian(shape, dtype=mx.float64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return array(x + 1j * rng.standard_normal(shape) if dtype == mx.complex64 else x, dtype)


def positive(shape, dtype=mx.float64, seed=3):
    """Weights or penalties between 1/2 and 2."""
    return array(np.random.default_rng(seed).uniform(0.5, 2, shape), dtype)


def deficient(shape, rank, dtype=mx.float64, seed=0):
    """A product of two Gaussian matrices."""
    rng = np.random.default_rng(seed)

    def factor(*shape):
        return rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if dtype == mx.complex64 else 0)

    return array(factor(*shape[:-1], rank) @ factor(*shape[:-2], rank, shape[-1]), dtype)


def with_values(m, n, s, seed=0):
    """A float64 matrix (m, n) with the singular values ``s``, as a NumPy array."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((d, len(s))))[0] for d in (m, n))
    return (u * np.asarray(s)) @ v.T


def hilbert(n):
    i = np.arange(n)
    return 1.0 / (1 + i[:, None] + i[None, :])


def gradients(loss, args):
    """With respect to each of ``args``, as a list even if there is one."""
    grads = mx.grad(loss, list(range(len(args))))(*args)
    return list(grads) if len(args) > 1 else [grads]


def error(got, want):
    """Largest difference, relative to the largest entry of ``want``; inf where only one of them is finite."""
    got, want = (numpy(x) if isinstance(x, mx.array) else np.asarray(x) for x in (got, want))
    assert got.shape == want.shape, (got.shape, want.shape)
    if not np.array_equal(np.isfinite(got), np.isfinite(want)):
        return np.inf
    scale = np.max(np.abs(want), initial=0.0, where=np.isfinite(want))
    return float(np.max(np.abs(got - want), initial=0.0, where=np.isfinite(want)) / (scale or 1.0))


def close(got, want, rtol):
    found = error(got, want)
    assert found <= rtol, f"relative error {found:.1e}, allowed {rtol:.1e}"


def norm_error(got, want):
    """Difference in the Frobenius norm, relative to that of ``want``."""
    got, want = numpy(got), numpy(want)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def parts(x):
    """Real and imaginary part of a complex64 array, float64."""
    z = numpy(x)
    return array(z.real, mx.float64), array(z.imag, mx.float64)
