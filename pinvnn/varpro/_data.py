"""The arguments of varpro: checked, and as float64 on the host."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ._basis import Basis, arrays, to_numpy

NAME = "[pinvnn.varpro]"


def working_dtype(basis: Any, alpha: Any, y: Any) -> mx.Dtype:
    """float64 if y or any of alpha is, otherwise float32; after a check of their types."""
    if not isinstance(y, mx.array):
        raise TypeError(f"{NAME} y must be an mx.array, but got {type(y).__name__}. Use mx.array(y, dtype=mx.float64).")
    if alpha is None:
        if not isinstance(basis, nn.Module):
            got = type(basis).__name__
            raise TypeError(f"{NAME} basis must be an nn.Module where alpha is None, but got {got}. Give alpha.")
        alpha = basis.trainable_parameters()
    leaves = arrays(alpha)
    for leaf in leaves:
        if not isinstance(leaf, mx.array):
            raise TypeError(
                f"{NAME} alpha must be an array or a tree of arrays, but got a {type(leaf).__name__}. "
                "Use mx.array([...], dtype=mx.float64)."
            )
    if sum(leaf.size for leaf in leaves) == 0:
        raise ValueError(f"{NAME} alpha must hold a parameter, but got none. Use pinvnn.lstsq for a linear model.")
    dtypes = {array.dtype for array in [y, *leaves]}
    if mx.complex64 in dtypes:
        raise TypeError(f"{NAME} alpha and y must be real, but got complex64. Stack real and imaginary parts as rows.")
    return mx.float64 if mx.float64 in dtypes else mx.float32


def right_hand_sides(y: mx.array) -> np.ndarray:
    """The data as (m, k)."""
    if y.ndim not in (1, 2) or y.size == 0:
        raise ValueError(f"{NAME} y must have shape (m,) or (m, k) and hold data, but got {y.shape}.")
    return finite("y", to_numpy(y)).reshape(len(y), -1)


def row_weights(weights: Any, m: int) -> np.ndarray | None:
    """The weights (m,), or None."""
    if weights is None:
        return None
    values = finite("weights", np.asarray(to_numpy(weights) if isinstance(weights, mx.array) else weights, float))
    if values.shape != (m,):
        raise ValueError(f"{NAME} weights must have shape ({m},), one for each row of y, but got {values.shape}.")
    if (values < 0).any():
        raise ValueError(f"{NAME} weights must not be negative, but got {values.min()}.")
    return values


def penalty_roots(l2: Any, solution: tuple[int, ...]) -> np.ndarray | None:
    """Square roots of l2 as (n, k), or None if it is zero; ``solution`` is the shape of the linear parameters."""
    values = finite("l2", np.asarray(to_numpy(l2) if isinstance(l2, mx.array) else l2, float))
    if (values < 0).any():
        raise ValueError(f"{NAME} l2 must not be negative, but got {values.min()}.")
    if not values.any():
        return None
    try:
        return np.sqrt(np.broadcast_to(values, solution)).reshape(solution[0], -1)
    except ValueError:
        raise ValueError(
            f"{NAME} l2 must broadcast against the linear parameters, {solution}, but got shape {values.shape}."
        ) from None


def box(bounds: Any, basis: Basis) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds as flat vectors."""
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise ValueError(f"{NAME} bounds must be a pair (lower, upper), but got {bounds!r}.")
    lower, upper = (
        one_side(side, basis, empty) for side, empty in zip(bounds, (-np.inf, np.inf), strict=True)
    )
    if (lower > upper).any():
        raise ValueError(f"{NAME} lower bounds must not exceed upper ones, but got {lower} and {upper}.")
    start = basis.start
    outside = (start < lower) | (start > upper)
    if outside.any():
        j = int(np.argmax(outside))
        raise ValueError(
            f"{NAME} alpha must lie within its bounds, but got {start[j]} outside [{lower[j]}, {upper[j]}] "
            f"at position {j}. Start inside them."
        )
    return lower, upper


def one_side(side: Any, basis: Basis, empty: float) -> np.ndarray:
    """One bound as a flat vector: None, a number, an array, or a tree in which leaves may be missing."""
    if side is None:
        return np.full(basis.start.size, empty)
    given = dict(tree_flatten(side)) if not isinstance(side, (int, float)) else {}
    names = [name for name, _ in tree_flatten(basis.template)]
    unknown = set(given) - set(names)
    if unknown:
        raise ValueError(f"{NAME} bounds must have the structure of alpha, {names}, but got {sorted(given)}.")
    parts = []
    for name, shape in zip(names, basis.shapes, strict=True):
        value = given.get(name, empty) if given else side
        value = to_numpy(value) if isinstance(value, mx.array) else np.asarray(value, float)
        try:
            parts.append(np.broadcast_to(value, shape).ravel())
        except ValueError:
            raise ValueError(f"{NAME} bounds must broadcast against alpha, {shape}, but got {value.shape}.") from None
    vector = np.concatenate(parts)
    if np.isnan(vector).any():
        raise ValueError(f"{NAME} bounds must not be NaN, but got {vector}.")
    return vector


def finite(name: str, values: np.ndarray) -> np.ndarray:
    """The values, if all of them are finite."""
    bad = int(np.size(values) - np.isfinite(values).sum())
    if bad:
        raise ValueError(f"{NAME} {name} must be finite, but got {bad} entries that are NaN or Inf. Remove these.")
    return values


def check_basis(phi: mx.array, m: int) -> None:
    """The basis at the starting point fits the data."""
    if not isinstance(phi, mx.array) or phi.dtype == mx.complex64:
        got = phi.dtype if isinstance(phi, mx.array) else type(phi).__name__
        raise TypeError(f"{NAME} basis must return a real mx.array, but got {got}.")
    if phi.ndim != 2 or phi.shape[0] != m:
        raise ValueError(f"{NAME} basis must return shape ({m}, n), a row for each of y, but got {phi.shape}.")
    if phi.shape[1] == 0:
        raise ValueError(f"{NAME} basis must have at least one column, but got {phi.shape}.")
