"""A GPU as the default device, emulated on a CPU: it refuses what a GPU refuses and multiplies as a GPU multiplies.

MLX has no float64 and no linear algebra on a GPU, and both raise. Its float32 matrix products are TF32 on M5 Macs and
on NVIDIA GPUs since Ampere: the operands keep 11 bits of their 24. All of this is done here to the functions of MLX:

- A function of ``mx.linalg`` must be told a CPU stream; an operation with a float64 input or output must be told one,
  or stand inside ``with mx.stream(mx.cpu)``. (What MLX adds in C++ follows the streams of these operations.)
- Matrix products off the CPU have their operands truncated, also in a compiled graph, under ``vmap``, and in the
  products of their derivatives of every order.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import mlx.core as mx

# Transforms take functions or place their copies by the streams of their inputs; the others build no operation.
NOT_OPERATIONS = """
    array asarray from_dlpack grad value_and_grad vjp jvp vmap compile checkpoint custom_function eval async_eval stream
    default_device default_stream set_default_device set_default_stream synchronize export_to_dot exporter
    export_function import_function
""".split()
NOT_METHODS = "dtype shape size ndim nbytes itemsize item tolist at".split()
OPERATORS = """
    abs add and eq floordiv ge getitem gt iadd imatmul imul invert isub itruediv le lt matmul mod mul ne neg or pow radd
    rfloordiv rmod rmul rpow rsub rtruediv setitem sub truediv
""".split()
# Products of matrices, and at which argument their factors begin.
PRODUCTS = {
    "matmul": 0,
    "__matmul__": 0,
    "__imatmul__": 0,
    "__rmatmul__": 0,
    "inner": 0,
    "tensordot": 0,
    "vecdot": 0,
    "gather_mm": 0,
    "segmented_mm": 0,
    "block_masked_mm": 0,
    "addmm": 1,
    "einsum": 1,
    **{f"conv{kind}": 0 for kind in ("1d", "2d", "3d", "_general")},
    **{f"conv_transpose{kind}": 0 for kind in ("1d", "2d", "3d")},
}

# As they were before any patch.
_BITS = mx.array(0xFFFFE000, mx.uint32)
_view, _and = mx.array.view, mx.array.__and__
_real, _imag, _where, _isfinite, _add, _mul = mx.real, mx.imag, mx.where, mx.isfinite, mx.add, mx.multiply
_stop = mx.stop_gradient
_J = mx.array(1j, mx.complex64)
mx.eval(_BITS, _J)


def truncated(x: mx.array) -> mx.array:
    """The float32 or complex64 ``x`` with 11 significant bits, those below cut off: an operand of TF32."""
    if x.dtype == mx.float32:
        return _view(_and(_view(x, mx.uint32), _BITS), mx.float32)
    if x.dtype == mx.complex64:
        return _where(_isfinite(x), _add(truncated(_real(x)), _mul(_J, truncated(_imag(x)))), x)
    return x


@mx.custom_function
def _operand(x):
    """What goes into a product: value and tangent are truncated."""
    return truncated(_stop(x))


@mx.custom_function
def _result(x):
    """What comes out of it: the cotangent is truncated, since it goes into two products. The transpose of the above."""
    return _stop(x)


@_operand.vjp
def _(x, bar, out):
    return _result(bar)


@_operand.jvp
def _(x, tangent):
    return _operand(tangent[0] if isinstance(tangent, (list, tuple)) else tangent)


@_operand.vmap
def _(x, axis):
    x, axis = (x[0], axis[0]) if isinstance(x, (list, tuple)) else (x, axis)
    return _operand(x), axis


@_result.vjp
def _(x, bar, out):
    return _operand(bar)


@_result.jvp
def _(x, tangent):
    return _result(tangent[0] if isinstance(tangent, (list, tuple)) else tangent)


@_result.vmap
def _(x, axis):
    x, axis = (x[0], axis[0]) if isinstance(x, (list, tuple)) else (x, axis)
    return _result(x), axis


class EmulatedGpu:
    """Makes an emulated GPU the default device for as long as ``patch`` (pytest's ``monkeypatch``) lasts.

    Attributes:
        calls: How often each function of ``mx.linalg`` was called.
        devices: The devices of the streams that are open, the innermost last.
        made: With ``record=True`` all arrays that Python saw an operation make, with its device: ``(device, array)``.
    """

    def __init__(self, patch, tf32: bool = True, record: bool = False):
        self.calls: Counter[str] = Counter()
        self.devices = ["gpu"]
        self.made: list[tuple[str, mx.array]] | None = [] if record else None
        self._tf32, self._plain_products = tf32, False
        self._busy = False  # Inside a watched call: what MLX does there by itself has the same stream.
        self._stream = mx.stream
        self._patch_devices(patch)
        for name, fn in vars(mx.linalg).items():
            if callable(fn) and not name.startswith("_"):
                patch.setattr(mx.linalg, name, self._watched(fn, name, linalg=True))
        for name, fn in list(vars(mx).items()):
            if (type(fn).__name__ == "nb_func" or name in PRODUCTS) and name not in NOT_OPERATIONS:
                patch.setattr(mx, name, self._watched(self._product(fn, name), name))
        methods = [n for n in vars(mx.array) if not n.startswith("_") and n not in NOT_METHODS]
        for name in [*methods, *(f"__{op}__" for op in OPERATORS), "__rmatmul__"]:
            member = vars(mx.array).get(name)
            if type(member).__name__ == "property":
                patch.setattr(mx.array, name, property(self._watched(member.__get__, name)))
            elif member is not None:
                patch.setattr(mx.array, name, self._watched(self._product(member, name), name))
        custom = mx.custom_function
        patch.setattr(custom, "__call__", self._watched(custom.__call__, "custom_function"))
        export = mx.export_function
        patch.setattr(mx, "export_function", self._exporting(export))

    def _patch_devices(self, patch):
        patch.setattr(mx, "stream", self.stream)
        patch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu if self.devices[-1] == "gpu" else mx.cpu, 0))

        def set_default_device(device):
            self.devices[-1] = "cpu" if _is_cpu(device) else "gpu"

        patch.setattr(mx, "set_default_device", set_default_device)

    @contextmanager
    def stream(self, s):
        """In place of ``mx.stream``: a stream of the GPU is one of the CPU in truth."""
        on_cpu = _is_cpu(s)
        with self._stream(s if on_cpu else mx.cpu):
            self.devices.append("cpu" if on_cpu else "gpu")
            try:
                yield
            finally:
                self.devices.pop()

    def _watched(self, fn, name, linalg=False):
        def call(*args, **kwargs):
            if self._busy:
                return fn(*args, **kwargs)
            device = self.devices[-1]
            if kwargs.get("stream") is not None:
                device = "cpu" if _is_cpu(kwargs["stream"]) else "gpu"
                kwargs["stream"] = mx.cpu
            if linalg:
                self.calls[name] += 1
                if device != "cpu" or kwargs.get("stream") is None:
                    raise ValueError(f"mx.linalg.{name} was called without stream=mx.cpu")
            self._busy = name != "custom_function"
            try:
                out = fn(*args, **kwargs, **({"emulated_device": device} if getattr(fn, "is_product", False) else {}))
            finally:
                self._busy = False
            if device == "gpu" and _any_float64([args, kwargs, out]):
                raise ValueError(f"{name}: float64 is not supported on the GPU")
            if self.made is not None and name != "custom_function":
                self.made += [(device, leaf) for leaf in arrays_of(out)]
            return out

        return call

    def _product(self, fn, name):
        """``fn`` with truncated operands, if it is a product of matrices."""
        if name not in PRODUCTS or not self._tf32:
            return fn
        first = PRODUCTS[name]

        def operand(x):
            if not isinstance(x, mx.array) or x.dtype not in (mx.float32, mx.complex64):
                return x
            return truncated(x) if self._plain_products else _operand(x)

        def call(*args, emulated_device="cpu", **kwargs):
            if emulated_device == "cpu":
                return fn(*args, **kwargs)
            args = list(args)
            factors = args[first:] if name == "einsum" else args[first : first + 2]
            args[first : first + len(factors)] = [operand(x) for x in factors]
            if name == "addmm":  # What is added is not rounded, nor is its cotangent.
                c, a, b, alpha, beta = *args, *[1.0] * (5 - len(args))
                alpha, beta = kwargs.pop("alpha", alpha), kwargs.pop("beta", beta)
                return _add(_mul(self._out(_matmul(a, b, **kwargs)), alpha), _mul(c, beta))
            return self._out(fn(*args, **kwargs))

        call.is_product = True
        return call

    def _out(self, x):
        return x if self._plain_products else _result(x)

    def _exporting(self, export):
        """MLX exports no custom functions, and an exported graph needs no derivative."""

        def call(*args, **kwargs):
            self._plain_products = True
            try:
                return export(*args, **kwargs)
            finally:
                self._plain_products = False

        return call


_matmul = mx.matmul


def set_device():
    """Make the device that the environment variable DEVICE names the default: cpu (the default), gpu, or emulated."""
    device = os.environ.get("DEVICE", "cpu")
    if device == "emulated":
        EmulatedGpu(SimpleNamespace(setattr=setattr))
    else:
        mx.set_default_device({"cpu": mx.cpu, "gpu": mx.gpu}[device])


def placed(dtype):
    """Where a user works: MLX's own transforms copy float64 arrays to the default device, so on the CPU for those."""
    return mx.stream(mx.cpu) if dtype == mx.float64 else nullcontext()


def finite(*trees):
    """Whether all entries of all arrays are finite; looked at on the CPU."""
    with mx.stream(mx.cpu):
        return all(mx.all(mx.isfinite(x)).item() for x in arrays_of(trees))


def _is_cpu(stream):
    return stream is not None and (stream == mx.cpu or getattr(stream, "device", None) == mx.cpu)


def arrays_of(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [leaf for branch in tree for leaf in arrays_of(branch)]
    return [tree] if isinstance(tree, mx.array) else []


def _any_float64(tree):
    return any(leaf.dtype == mx.float64 for leaf in arrays_of(tree))
