"""Everything works with a GPU as the default device, proved without one.

MLX has no linear algebra on a GPU, and refuses there every operation with a float64 input or output. This is emulated
(`tests/support/emulated_gpu.py`): each function of `mx.linalg` must be told a CPU stream, and float64 operations must
be told one too or stand inside `with mx.stream(mx.cpu)`.
"""

import mlx.core as mx
import pytest

import pinvnn
from tests.support.emulated_gpu import placed

DTYPES = [mx.float32, mx.float64, mx.complex64, mx.float16, mx.bfloat16]
SHAPES = [(6, 3), (3, 6), (4, 4), (2, 5, 3)]


def matrix(shape, dtype):
    with mx.stream(mx.cpu):
        a = mx.random.normal(shape, key=mx.random.key(0))
        if dtype == mx.complex64:
            a = a + 1j * mx.random.normal(shape, key=mx.random.key(1))
        a = a.astype(dtype)
        mx.eval(a)
        return a


def gram(a):
    with placed(a.dtype):
        return a @ mx.conj(a.swapaxes(-1, -2))


def row_weights(a):
    with placed(a.dtype):
        return mx.abs(a[..., 0]) ** 2


def singles(a):
    with placed(a.dtype):
        return [a] if a.ndim == 2 else [a[i] for i in range(a.shape[0])]


DIFFERENTIABLE = {
    "pinv": lambda a: pinvnn.pinv(a),
    "pinv with rtol": lambda a: pinvnn.pinv(a, rtol=0.4),
    "pinv hermitian": lambda a: pinvnn.pinv(gram(a), hermitian=True),
    "lstsq": lambda a: pinvnn.lstsq(a, a)[:1],
    "lstsq, all it returns": lambda a: [x for x in pinvnn.lstsq(a, a) if mx.issubdtype(x.dtype, mx.inexact)],
    "lstsq with weights": lambda a: pinvnn.lstsq(a, a, weights=row_weights(a))[:1],
    "ridge": lambda a: pinvnn.ridge(a, a, 0.5),
    "ridge with weights": lambda a: pinvnn.ridge(a, a, 0.5, weights=row_weights(a)),
}
FORWARD_ONLY = {
    "matrix_rank": lambda a: pinvnn.matrix_rank(a),
    "orth": lambda a: [pinvnn.orth(x) for x in singles(a)],
    "null_space": lambda a: [pinvnn.null_space(x) for x in singles(a)],
    "diagnose": lambda a: pinvnn.diagnose(a),
    "lstsq, all it returns": lambda a: pinvnn.lstsq(a, a),
}
TRANSFORMS = {
    "vjp": lambda fn, a: mx.grad(lambda x: loss(fn(x)))(a),
    "jvp": lambda fn, a: mx.jvp(lambda x: loss(fn(x)), [a], [a])[1],
    "vjp of vjp": lambda fn, a: mx.grad(lambda x: loss(mx.grad(lambda y: loss(fn(y)))(x)))(a),
    "jvp of vjp": lambda fn, a: mx.jvp(mx.grad(lambda x: loss(fn(x))), [a], [a])[1],
    "vmap": lambda fn, a: mx.vmap(fn)(mx.stack([a, a])),
    "vmap of vjp": lambda fn, a: mx.vmap(mx.grad(lambda x: loss(fn(x))))(mx.stack([a, a])),
}


def loss(out):
    out = list(out) if isinstance(out, (list, tuple)) else [out]
    return sum(mx.sum(mx.abs(x) ** 2) for x in out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*DIFFERENTIABLE, *FORWARD_ONLY])
def test_forward(gpu, name, dtype):
    fn = {**DIFFERENTIABLE, **FORWARD_ONLY}[name]
    for shape in SHAPES:
        mx.eval(fn(matrix(shape, dtype)))
    assert gpu.calls.total() > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_transforms(gpu, name, transform, dtype):
    for shape in SHAPES:
        a = matrix(shape, dtype)
        with placed(dtype):
            out = TRANSFORMS[transform](DIFFERENTIABLE[name], a)
        mx.eval(out)
    assert gpu.calls.total() > 0
