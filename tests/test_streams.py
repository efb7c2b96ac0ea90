"""Everything works with a GPU as the default device, proved without one.

MLX has no linear algebra on a GPU, and refuses there every operation with a float64 input or output. Both are watched
here from Python: each function of `mx.linalg` must be told a CPU stream, and float64 operations must be told one too or
stand inside `with mx.stream(mx.cpu)`. (What MLX adds in C++ follows the streams of these operations.)
"""

from collections import Counter
from contextlib import contextmanager, nullcontext

import mlx.core as mx
import pytest

import pinvnn
from pinvnn._factor import full_rank, ridge_inverse
from pinvnn._mlx import eager

DTYPES = [mx.float32, mx.float64, mx.complex64, mx.float16, mx.bfloat16]
SHAPES = [(6, 3), (3, 6), (4, 4), (2, 5, 3)]

# Transforms take functions or place their copies by the streams of their inputs; the others build no operation.
NOT_OPERATIONS = """
    array asarray from_dlpack grad value_and_grad vjp jvp vmap compile checkpoint custom_function eval async_eval stream
    default_device default_stream set_default_device set_default_stream synchronize export_to_dot exporter
""".split()
NOT_METHODS = "dtype shape size ndim nbytes itemsize item tolist at".split()
OPERATORS = """
    abs add and eq floordiv ge getitem gt iadd imatmul imul invert isub itruediv le lt matmul mod mul ne neg or pow radd
    rfloordiv rmod rmul rpow rsub rtruediv setitem sub truediv
""".split()


class DefaultGpu:
    """Raises where MLX would if the default device were a GPU, and counts the calls of `mx.linalg`."""

    def __init__(self, monkeypatch):
        self.calls = Counter()
        self.devices = ["gpu"]
        self.busy = False  # Inside a watched call: what MLX does there by itself has the same stream.
        self._stream = mx.stream
        monkeypatch.setattr(mx, "stream", self.stream)
        for name, fn in vars(mx.linalg).items():
            if callable(fn) and not name.startswith("_"):
                monkeypatch.setattr(mx.linalg, name, self.watched(fn, name, linalg=True))
        for name, fn in vars(mx).items():
            if type(fn).__name__ == "nb_func" and name not in NOT_OPERATIONS:
                monkeypatch.setattr(mx, name, self.watched(fn, name))
        methods = [n for n in vars(mx.array) if not n.startswith("_") and n not in NOT_METHODS]
        for name in [*methods, *(f"__{op}__" for op in OPERATORS)]:
            member = vars(mx.array)[name]
            if type(member).__name__ == "property":
                monkeypatch.setattr(mx.array, name, property(self.watched(member.__get__, name)))
            else:
                monkeypatch.setattr(mx.array, name, self.watched(member, name))
        visible = eager.visible  # Values are looked at only where the CPU is the default.
        for module in (full_rank, ridge_inverse):
            monkeypatch.setattr(module, "visible", lambda *arrays: self.devices[-1] == "cpu" and visible(*arrays))
        custom = mx.custom_function
        monkeypatch.setattr(custom, "__call__", self.watched(custom.__call__, "custom_function"))

    @contextmanager
    def stream(self, s):
        with self._stream(s):
            self.devices.append("cpu" if is_cpu(s) else "gpu")
            try:
                yield
            finally:
                self.devices.pop()

    def watched(self, fn, name, linalg=False):
        def call(*args, **kwargs):
            outermost, self.busy = not self.busy, name != "custom_function"
            try:
                out = fn(*args, **kwargs)
            finally:
                self.busy = not outermost
            placed = is_cpu(kwargs.get("stream"))
            if linalg:
                self.calls[name] += 1
                if outermost and not placed:
                    raise ValueError(f"mx.linalg.{name} was called without stream=mx.cpu")
            elif outermost and not placed and self.devices[-1] == "gpu" and any_float64([args, kwargs, out]):
                raise ValueError(f"{name}: float64 is not supported on the GPU")
            return out

        return call


def is_cpu(stream):
    return stream is not None and (stream == mx.cpu or getattr(stream, "device", None) == mx.cpu)


def any_float64(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return any(any_float64(leaf) for leaf in tree)
    return isinstance(tree, mx.array) and tree.dtype == mx.float64


def placed(dtype):
    """Where a user works: MLX's own transforms copy float64 arrays to the default device, so on the CPU for those."""
    return mx.stream(mx.cpu) if dtype == mx.float64 else nullcontext()


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


@pytest.fixture
def gpu(monkeypatch):
    mx.disable_compile()  # A graph that an earlier test compiled would hide its calls.
    with monkeypatch.context() as patches:
        yield DefaultGpu(patches)
    mx.enable_compile()


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a: mx.linalg.inv(a), "without stream=mx.cpu"),
        (lambda a: a.astype(mx.float64), "astype: float64"),
        (lambda a: a + mx.array(1.0, mx.float64), "__add__: float64"),
        (lambda a: mx.stop_gradient(mx.zeros((2, 2), mx.float64, stream=mx.cpu)), "stop_gradient: float64"),
        (lambda a: mx.zeros((2, 2), mx.float64, stream=mx.cpu).T, "T: float64"),
        (lambda a: mx.zeros((2, 2), mx.float64, stream=mx.cpu)[0], "getitem__: float64"),
        (lambda a: mx.custom_function(lambda x, h: x)(a, mx.array(1.0, mx.float64)), "custom_function: float64"),
    ],
)
def test_the_watch_sees_what_a_gpu_would_refuse(gpu, wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(mx.eye(2))


def test_the_watch_lets_through_what_a_gpu_would_take(gpu):
    a = mx.eye(2) @ mx.array([[1.0, 2.0], [0.0, 1.0]])
    with mx.stream(mx.cpu):
        b = a.astype(mx.float64) * 2
        c = mx.linalg.inv(b, stream=mx.cpu)
        d = mx.custom_function(lambda x, h: x)(a, b)
    e = mx.sum(b, stream=mx.cpu)
    assert gpu.calls == {"inv": 1}
    mx.eval(c, d + 1, e)
