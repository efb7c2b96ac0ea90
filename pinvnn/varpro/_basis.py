"""The basis alpha -> Phi as a function of one flat float64 vector, with its directional derivatives."""

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from .._mlx import large

BATCH_ENTRIES = 2**22
"""Entries of the derivative that are formed at once: 32 MiB in float64."""


class Basis:
    """Evaluates ``function(tree, *inputs)`` and its derivatives at flat float64 vectors, and counts the evaluations.

    Args:
        function: the basis; an ``nn.Module`` whose own trainable parameters are alpha where ``tree`` is None.
        tree: alpha, any tree of arrays, or None.
        inputs: further arguments of the basis, constant.
        dtype: dtype in which the basis is evaluated (float32 or float64).
    """

    def __init__(self, function: Callable, tree: Any, inputs: tuple, dtype: mx.Dtype):
        self.module: Any = function if tree is None else None
        self.function, self.inputs, self.dtype = function, inputs, dtype
        self.template = self.module.trainable_parameters() if tree is None else tree
        leaves = arrays(self.template)
        self.shapes = [leaf.shape for leaf in leaves]
        self.ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
        self.start = self.flat(self.template)
        self.evaluations = self.derivatives = 0
        self.mode = ""

    def tree(self, x: np.ndarray) -> Any:
        """The flat vector ``x`` (p,) in the shape that the caller gave alpha."""
        return self._fill(self._leaves(x))

    def flat(self, tree: Any) -> np.ndarray:
        """A tree like alpha as a flat vector (p,)."""
        return np.concatenate([to_numpy(leaf).ravel() for leaf in arrays(tree)])

    def names(self, mask: np.ndarray) -> tuple[str, ...]:
        """The names of the entries of alpha that ``mask`` (p,) marks: ``alpha[1]``, ``alpha.rates[0]``."""
        found: tuple[str, ...] = ()
        labels = [name for name, _ in tree_flatten(self.template)]  # type: ignore[misc]
        for name, shape, part in zip(labels, self.shapes, np.split(mask, self.ends), strict=True):
            found += entries(f"alpha.{name}" if name else "alpha", part.reshape(shape))
        return found

    def round(self, x: np.ndarray) -> np.ndarray:
        """``x`` as the basis sees it, in its dtype."""
        return x if self.dtype == mx.float64 else x.astype(np.float32).astype(np.float64)

    def __call__(self, x: np.ndarray) -> mx.array:
        """Phi (m, n) at ``x``, evaluated."""
        self.evaluations += 1
        with large(self.dtype):
            phi = self._apply(*self._leaves(x))
            mx.eval(phi)
        return phi

    def tangents(self, x: np.ndarray, entries: int) -> Iterator[np.ndarray]:
        """The derivatives of Phi with respect to x_0, x_1, ...: p arrays (m, n) in float64; ``entries`` is m n.

        Forward mode, many directions at once under ``mx.vmap`` where that agrees with a product taken alone, one at a
        time where it does not, and reverse mode where the basis holds a function without a forward rule.
        """
        self.derivatives += 1
        self.mode = self.mode or self._choose_mode(x, entries)
        if self.mode == "reverse":
            yield from self._reverse(x)
            return
        batch = max(1, BATCH_ENTRIES // max(entries, 1)) if self.mode == "forward, vmap" else 1
        for first in range(0, x.size, batch):
            yield from self._forward(x, np.eye(x.size)[first : first + batch])

    def push(self, x: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """The derivative of Phi along ``direction`` (p,), (m, n): one forward-mode product."""
        return self._forward(x, direction[None])[0]

    def pull(self, x: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
        """The gradient (p,) of the sum of ``cotangent`` (m, n) times Phi: one reverse-mode product."""
        with large(self.dtype):
            gradient = mx.vjp(self._apply, self._leaves(x), [to_mlx(cotangent, self.dtype)])[1]
            return np.concatenate([to_numpy(leaf).ravel() for leaf in gradient])

    def _choose_mode(self, x: np.ndarray, entries: int) -> str:
        direction = np.random.default_rng(0).standard_normal(x.size)
        try:
            alone = self.push(x, direction)
        except ValueError as error:  # "[Primitive::jvp] Not implemented for SVD."
            if "jvp" not in str(error):
                raise
            return "reverse"
        if x.size == 1 or entries * x.size > BATCH_ENTRIES:
            return "forward"
        try:
            together = np.tensordot(direction, self._forward(x, np.eye(x.size)), 1)
        except (ValueError, RuntimeError):  # No vmap rule.
            return "forward"
        # A few operations of MLX are silently wrong under vmap: one product along a random direction shows it.
        noise = 1e-10 if self.dtype == mx.float64 else 1e-4
        close = np.allclose(together, alone, rtol=noise, atol=noise * np.max(np.abs(alone), initial=0.0))
        return "forward, vmap" if close else "forward"

    def _forward(self, x: np.ndarray, directions: np.ndarray) -> np.ndarray:
        with large(self.dtype):
            leaves = self._leaves(x)

            def product(*tangents):
                return mx.jvp(self._apply, leaves, list(tangents))[1][0]

            if len(directions) == 1:
                return to_numpy(product(*self._leaves(directions[0])))[None]
            return to_numpy(mx.vmap(product)(*self._leaves(directions)))

    def _reverse(self, x: np.ndarray) -> np.ndarray:
        phi = self(x)
        self.evaluations -= 1  # For its shape only.
        units = np.eye(phi.size).reshape(-1, *phi.shape)
        return np.stack([self.pull(x, unit) for unit in units], axis=1).reshape(x.size, *phi.shape)

    def _leaves(self, x: np.ndarray) -> list[mx.array]:
        parts = zip(np.split(x, self.ends, axis=-1), self.shapes, strict=True)
        return [to_mlx(part.reshape(x.shape[:-1] + shape), self.dtype) for part, shape in parts]

    def _fill(self, leaves) -> Any:
        left = iter(leaves)
        return tree_map(lambda _: next(left), self.template)

    def _apply(self, *leaves: mx.array) -> mx.array:
        if self.module is None:
            return self.function(self._fill(leaves), *self.inputs)
        stored = self.module.trainable_parameters()
        try:
            self.module.update(self._fill(leaves))
            return self.module(*self.inputs)
        finally:
            self.module.update(stored)


def arrays(tree: Any) -> list[mx.array]:
    """The leaves of a tree, in the order of ``tree_flatten``."""
    return [leaf for _, leaf in tree_flatten(tree)]  # type: ignore[misc]


def entries(name: str, mask: np.ndarray) -> tuple[str, ...]:
    """``name[i, j]`` for each entry that ``mask`` marks; ``name`` alone for a number."""
    return tuple(f"{name}[{', '.join(map(str, index))}]" if index else name for index in np.argwhere(mask).tolist())


def to_numpy(array: mx.array) -> np.ndarray:
    """An array as float64 on the host."""
    if array.dtype == mx.bfloat16:  # NumPy has none.
        array = array.astype(mx.float32)
    return np.array(array).astype(np.float64)


def to_mlx(array: np.ndarray, dtype: mx.Dtype) -> mx.array:
    """A host array in the dtype, float32 or float64; float64 never meets the default device."""
    with large(dtype):
        return mx.array(array.astype(np.float64 if dtype == mx.float64 else np.float32), dtype=dtype)
