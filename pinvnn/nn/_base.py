"""What every readout is: a linear layer whose weights are solved for, with a penalty that may be learned."""

import math
from collections.abc import Iterable
from numbers import Number
from typing import Any, NoReturn

import mlx.core as mx
import mlx.nn as nn

from .._factor import penalty_matrix
from .._mlx import checks, dtypes, large, on_cpu, size, visible
from .._types import ArrayLike, Penalty
from ._problem import features


class Readout(nn.Module):
    """A linear layer ``x @ weight.T + bias`` whose weights a closed form sets: frozen, zero before the first fit."""

    weight: mx.array
    bias: mx.array
    log_l2: mx.array
    learn_l2: bool
    _outputs = "output_dims"

    def __init__(self, input_dims: int, output_dims: int, l2: Penalty, bias: bool, learn_l2: bool) -> None:
        super().__init__()
        input_dims = size(type(self).__name__, "input_dims", input_dims, 1)
        output_dims = size(type(self).__name__, self._outputs, output_dims, 1)
        l2 = checks.penalty(type(self).__name__, l2, input_dims, output_dims, False)
        if isinstance(l2, mx.array) and l2.ndim > 2:
            self._fail("l2 must have at most 2 dimensions", f"shape {l2.shape}", "Use one readout for each penalty.")
        self.weight = mx.zeros((output_dims, input_dims))
        if bias:
            self.bias = mx.zeros((output_dims,))
        self.learn_l2 = bool(learn_l2)
        if learn_l2:
            with on_cpu():
                start = mx.array(l2).astype(mx.float32)
                if not all_true(start > 0):
                    self._fail("a learnable l2 must be positive", f"{l2}", "Start from a small number.")
                self.log_l2 = mx.log(start)
        else:
            self._l2 = l2  # An array would be a parameter of the module, were it not for the underscore.
        self._no_grad = _Frozen({"weight", "bias"} & set(self))

    def _fail(self, rule: str, got: str, remedy: str, method: str | None = None) -> NoReturn:
        name = type(self).__name__
        checks.fail(f"{name}.{method}" if method else name, rule, got, remedy)

    def _check_eager(self, *arrays: mx.array | None) -> None:
        """What ``fit`` refuses before it looks at values."""
        if not visible(*arrays):
            remedy = "Use solve there: readout.weight, readout.bias = readout.solve(x, y)."
            self._fail("fit must be called outside of mx.compile and mx.vmap", "a call inside of one", remedy, "fit")

    def _extra_repr(self) -> str:
        l2: Any = self.l2
        l2 = f"{l2.item():.4g}" if isinstance(l2, mx.array) and l2.ndim == 0 else getattr(l2, "shape", l2)
        return (
            f"input_dims={self.weight.shape[1]}, {self._outputs}={self.weight.shape[0]}, l2={l2}, "
            f"bias={'bias' in self}, learn_l2={self.learn_l2}"
        )

    @property
    def l2(self) -> float | mx.array:
        """The penalty, a number or an array; if it is learned, the exponential of ``log_l2``."""
        if not self.learn_l2:
            return self._l2
        with on_cpu():  # A power of e, since MLX's float64 exp is right to 1e-7 only.
            return mx.power(mx.array(math.e, mx.float64), self.log_l2.astype(mx.float64))

    def _penalty(self) -> mx.array | None:
        """The penalty as a two-dimensional float64 array, None for the number 0."""
        l2 = self.l2
        return None if isinstance(l2, Number) and l2 == 0 else penalty_matrix(l2)

    @property
    def _dims(self) -> tuple[int, int]:
        return self.weight.shape[1], self.weight.shape[0]

    def __call__(self, x: ArrayLike) -> mx.array:
        """Predictions ``(..., k)`` for ``x`` (..., n) with the stored weights."""
        x = features(type(self).__name__, "x", x, self._dims[0])
        with large(dtypes.working(x, self.weight)):
            return mx.addmm(self.bias, x, self.weight.T) if "bias" in self else x @ self.weight.T

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For pickle and copy. MLX pickles float64 arrays as float32, so that NumPy arrays take their place."""
        import numpy as np  # here, since it takes longer to import than all of MLX

        wide = {key: np.array(v) for key, v in self.items() if isinstance(v, mx.array) and v.dtype == mx.float64}
        return _restored, (type(self), {**self, **wide}, dict(self.__dict__))

    def _store(self, weight: mx.array, bias: mx.array | None) -> None:
        """Store fitted weights."""
        with on_cpu():  # As if read from a file: the last bit of a product depends on that.
            self.weight = mx.contiguous(weight)
            mx.eval(self.weight)
        if bias is not None:
            self.bias = bias

    def to_linear(self) -> nn.Linear:
        """An ``nn.Linear`` with the stored weights."""
        linear = nn.Linear(*self._dims, bias="bias" in self)
        linear.weight = self.weight
        if "bias" in self:
            linear.bias = self.bias
        return linear


def _restored(kind: type[Readout], items: dict[str, Any], attributes: dict[str, Any]) -> Readout:
    """The readout that :meth:`Readout.__reduce_ex__` took apart."""
    readout = kind.__new__(kind)
    readout.__dict__.update(attributes)
    with on_cpu():
        arrays = {key: mx.array(v, mx.float64) for key, v in items.items() if hasattr(v, "__array_interface__")}
    dict.update(readout, {**items, **arrays})
    return readout


class _Frozen(set):
    """The frozen parameters of a module, of which the first ones stay frozen.

    An override of ``unfreeze`` would not do: that of a parent module reaches into this set.
    """

    def __init__(self, names: set[str]) -> None:
        super().__init__(names)
        self.always = frozenset(names)

    def clear(self) -> None:
        self.intersection_update(self.always)

    def difference_update(self, *others: Iterable[Any]) -> None:
        super().difference_update(*others)
        self.update(self.always)


def all_true(condition: mx.array) -> bool:
    """Whether every entry is true. Evaluates."""
    return bool(mx.all(condition, stream=mx.cpu).item())
