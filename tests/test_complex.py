"""Complex derivatives through the real embedding [[Re, -Im], [Im, Re]] in float64."""

import mlx.core as mx
import numpy as np
import pytest

from pinvnn import lstsq, pinv, ridge
from pinvnn.testing import gradcheck
from tests.support.cases import array, gaussian, gradients, numpy, parts, positive

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

COMPLEX = {
    "pinv": (lambda a: pinv(a), [(5, 3)], []),
    "pinv wide": (lambda a: pinv(a), [(3, 5)], []),
    "pinv truncated": (lambda a: pinv(a, rtol=0.5), [(5, 3)], []),
    "pinv truncated wide": (lambda a: pinv(a, rtol=0.5), [(3, 5)], []),
    "lstsq": (lambda a, b: lstsq(a, b).solution, [(5, 3), (5, 2)], []),
    "lstsq wide": (lambda a, b: lstsq(a, b).solution, [(3, 5), (3, 2)], []),
    "lstsq truncated": (lambda a, b: lstsq(a, b, rtol=0.5).solution, [(5, 3), (5, 2)], []),
    "lstsq weighted": (lambda a, b, w: lstsq(a, b, weights=w).solution, [(5, 3), (5, 2)], [(5,)]),
    "lstsq weighted wide": (lambda a, b, w: lstsq(a, b, weights=w, rtol=0.5).solution, [(3, 5), (3, 2)], [(3,)]),
    "ridge": (lambda a, b, l2, w: ridge(a, b, l2, weights=w), [(5, 3), (5, 2)], [(2,), (5,)]),
    "ridge wide": (lambda a, b, l2, w: ridge(a, b, l2, weights=w), [(3, 5), (3, 2)], [(), (3,)]),
    "ridge by feature": (lambda a, b, l2: ridge(a, b, l2), [(5, 3), (5, 2)], [(3, 1)]),
}


def embedded(fn, count):
    """``fn`` of ``count`` complex arrays, given as re, im, re, im, ..., and real ones, as a real function in float64.

    A matrix becomes [[Re, -Im], [Im, Re]], weights of rows and penalties of features serve both parts, and the first
    block column of the result is [Re; Im].
    """

    def real_fn(*args):
        with mx.stream(mx.cpu):
            pairs = list(zip(args[0 : 2 * count : 2], args[1 : 2 * count : 2], strict=True))
            matrices = [mx.concatenate([mx.concatenate([x, -y], -1), mx.concatenate([y, x], -1)], -2) for x, y in pairs]
            if count > 1:
                matrices[1] = mx.concatenate(pairs[1], -2)
            rest = [mx.concatenate([x, x], 0) if doubles(x, pairs) else x for x in args[2 * count :]]
            out = fn(*matrices, *rest)
            return out[:, : out.shape[1] // 2] if count == 1 else out

    def doubles(x, pairs):
        return x.ndim and x.shape[0] in (pairs[0][0].shape if x.ndim == 2 else pairs[0][0].shape[:1])

    return real_fn


def complex_case(name):
    fn, shapes, real_shapes = COMPLEX[name]
    args = [gaussian(shape, mx.complex64, seed) for seed, shape in enumerate(shapes)]
    rest = [positive(shape, mx.float32, seed) for seed, shape in enumerate(real_shapes)]
    wide = [part for x in args for part in parts(x)] + [array(numpy(x), mx.float64) for x in rest]
    return fn, args + rest, embedded(fn, len(shapes)), wide, len(shapes)


@pytest.mark.parametrize("name", COMPLEX)
def test_the_embedded_problem(name):
    _, _, fn, args, _ = complex_case(name)
    gradcheck(fn, *args, rtol=5e-7, atol=1e-9, order=1 + (name in ("pinv truncated", "lstsq", "ridge")))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", COMPLEX)
def test_complex64_agrees_with_the_embedded_problem(name, order):
    fn, args, wide_fn, wide_args, count = complex_case(name)
    value = numpy(fn(*args))
    rng = np.random.default_rng(5)
    weight = rng.standard_normal(value.shape) + 1j * rng.standard_normal(value.shape)

    def loss(*args):
        out = fn(*args)
        # Not abs: its second derivative at complex values is wrong in MLX 0.32.
        return mx.sum(mx.real(mx.conjugate(array(weight, mx.complex64)) * out + mx.conjugate(out) * out))

    def wide_loss(*args):
        with mx.stream(mx.cpu):
            out = wide_fn(*args)
            return mx.sum(array(np.concatenate([weight.real, weight.imag], -2), mx.float64) * out + out * out)

    def squares(grads):
        with mx.stream(mx.cpu):
            return sum(mx.sum(mx.real(mx.conjugate(g) * g)) for g in grads)

    if order == 2:
        first, wide_first = loss, wide_loss
        loss = lambda *args: squares(gradients(first, args))  # noqa: E731
        wide_loss = lambda *args: squares(gradients(wide_first, args))  # noqa: E731
    got, want = gradients(loss, args), gradients(wide_loss, wide_args)
    want = [numpy(x) for x in want]
    joined = [want[2 * i] + 1j * want[2 * i + 1] for i in range(count)] + want[2 * count :]
    errors = [np.linalg.norm(numpy(x) - y) / np.linalg.norm(y) for x, y in zip(got, joined, strict=True)]
    assert max(errors) <= 1e-4, errors
