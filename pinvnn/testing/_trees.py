"""A function of trees and Modules as a function of a flat list of arrays, each with a name for messages."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np

#: A function of a flat list of arrays that returns such a list.
FlatFunction: TypeAlias = Callable[..., list[mx.array]]


def inexact(x: mx.array) -> bool:
    """Whether ``x`` has a floating or complex dtype, so that derivatives with respect to it exist."""
    return mx.issubdtype(x.dtype, mx.inexact)


def on_cpu_if_float64(arrays: Sequence[mx.array]) -> AbstractContextManager[Any]:
    """The CPU as default device if an array is float64, a dtype that no other device has."""
    return mx.stream(mx.cpu) if any(a.dtype == mx.float64 for a in arrays) else nullcontext()


def to_numpy(x: mx.array) -> np.ndarray:
    """The values of ``x`` in float64 or complex128."""
    if x.dtype == mx.complex64:
        return np.array(x).astype(np.complex128)
    if x.dtype != mx.float64:
        x = x.astype(mx.float32)  # NumPy has no bfloat16
    return np.array(x).astype(np.float64)


def random_like(x: mx.array, rng: np.random.Generator) -> mx.array:
    """Standard normal values in the shape and dtype of ``x``."""
    values = rng.normal(size=x.shape)
    if x.dtype == mx.complex64:
        values = values + 1j * rng.normal(size=x.shape)
    return mx.array(values, dtype=x.dtype)


def _children(tree: Any) -> list[tuple[str, Any]]:
    """The items of a dict, list or tuple, each with its part of the path; none for anything else."""
    if isinstance(tree, dict):
        return [(f"[{key!r}]", value) for key, value in tree.items()]
    if isinstance(tree, (list, tuple)):
        fields = getattr(tree, "_fields", None)  # of a NamedTuple
        if fields:
            return [(f".{field}", getattr(tree, field)) for field in fields]
        return [(f"[{i}]", value) for i, value in enumerate(tree)]
    return []


def named_arrays(tree: Any, name: str) -> list[tuple[str, mx.array]]:
    """All arrays of a tree in order, each with its path, such as ``inputs[0]['w']``. Of a Module: what it trains."""
    if isinstance(tree, mx.array):
        return [(name, tree)]
    if isinstance(tree, nn.Module):
        tree = tree.trainable_parameters()
    return [found for key, value in _children(tree) for found in named_arrays(value, name + key)]


def _replaced(tree: Any, arrays: Iterator[mx.array], changed: list[tuple[nn.Module, dict[str, Any]]]) -> Any:
    """``tree`` with its arrays taken from the iterator. Modules are updated in place and noted in ``changed``."""
    if isinstance(tree, mx.array):
        return next(arrays)
    if isinstance(tree, nn.Module):
        changed.append((tree, tree.parameters()))
        tree.update(_replaced(tree.trainable_parameters(), arrays, changed))
        return tree
    if isinstance(tree, dict):
        return {key: _replaced(value, arrays, changed) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[_replaced(value, arrays, changed) for value in tree])
    if isinstance(tree, (list, tuple)):
        return type(tree)(_replaced(value, arrays, changed) for value in tree)
    return tree


class Flat:
    """``fn`` as a function of the arrays in ``inputs``, returning the list of arrays in its result.

    Numbers, strings and None are passed to ``fn`` unchanged. The parameters of a Module are put back after each call.

    Attributes:
        arrays: The arrays of ``inputs``.
        names: Their paths.
        outputs: The arrays in ``fn(*inputs)``.
        output_names: The paths of ``outputs``.
    """

    def __init__(self, caller: str, fn: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
        if not callable(fn):
            raise TypeError(f"[pinvnn.testing.{caller}] fn must be callable, but got {fn!r}. Pass the function first.")
        self._fn, self._inputs = fn, inputs
        found = named_arrays(inputs, "inputs")
        self.names, self.arrays = [name for name, _ in found], [array for _, array in found]
        self._require_inexact(caller, "inputs must hold", self.arrays)
        with on_cpu_if_float64(self.arrays):
            found = named_arrays(self._result(self.arrays), "outputs")
        self.output_names, self.outputs = [name for name, _ in found], [array for _, array in found]
        self._require_inexact(caller, "fn must return", self.outputs)

    @staticmethod
    def _require_inexact(caller: str, rule: str, arrays: list[mx.array]) -> None:
        if not any(map(inexact, arrays)):
            raise TypeError(
                f"[pinvnn.testing.{caller}] {rule} MLX arrays of a floating or complex dtype, but got "
                f"{[str(a.dtype) for a in arrays] or 'no array'}. Use such arrays, or trees or Modules that hold them."
            )

    def _result(self, arrays: Sequence[mx.array]) -> Any:
        changed: list[tuple[nn.Module, dict[str, Any]]] = []
        try:
            given = iter(arrays)
            return self._fn(*[_replaced(tree, given, changed) for tree in self._inputs])
        finally:
            for module, parameters in reversed(changed):
                module.update(parameters)

    def __call__(self, *arrays: mx.array) -> list[mx.array]:
        return [array for _, array in named_arrays(self._result(arrays), "outputs")]

    def inexact_arrays(self) -> list[mx.array]:
        """The inputs and outputs that have a floating or complex dtype."""
        return [a for a in [*self.arrays, *self.outputs] if inexact(a)]
