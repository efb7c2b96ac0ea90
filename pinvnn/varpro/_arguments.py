"""The arguments of varpro: checked, and as float64 on the host."""

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from .._mlx import fail, refuse_inexact_integers
from ._basis import Basis, arrays, to_numpy

NAME = "varpro"


def working_dtype(basis: Any, alpha: Any, y: Any) -> mx.Dtype:
    """float64 if y or any of alpha is, otherwise float32; after a check of their types."""
    if not isinstance(y, mx.array):
        fail(NAME, "y must be an mx.array", type(y).__name__, "Use mx.array(y, dtype=mx.float64).", TypeError)
    if alpha is None:
        if not isinstance(basis, nn.Module):
            got = type(basis).__name__
            fail(NAME, "basis must be an nn.Module where alpha is None", got, "Give alpha.", TypeError)
        alpha = basis.trainable_parameters()
    leaves = arrays(alpha)
    for leaf in leaves:
        if not isinstance(leaf, mx.array):
            rule, remedy = "alpha must be an array or a tree of arrays", "Use mx.array([...], dtype=mx.float64)."
            fail(NAME, rule, f"a {type(leaf).__name__}", remedy, TypeError)
    if sum(leaf.size for leaf in leaves) == 0:
        fail(NAME, "alpha must hold a parameter", "none", "Use pinvnn.lstsq for a linear model.")
    dtypes = {array.dtype for array in [y, *leaves]}
    if mx.complex64 in dtypes:
        fail(NAME, "alpha and y must be real", "complex64", "Stack real and imaginary parts as rows.", TypeError)
    work = mx.float64 if mx.float64 in dtypes else mx.float32
    refuse_inexact_integers(NAME, "y", y, work)
    return work


def row_weights(weights: Any, y: mx.array) -> np.ndarray | None:
    """The weights (m,), or None."""
    if y.ndim not in (1, 2) or y.size == 0:
        fail(NAME, "y must have shape (m,) or (m, k) and hold data", f"{y.shape}", "Reshape it.")
    if weights is None:
        return None
    values = finite("weights", host("weights", weights))
    if values.shape != (len(y),):
        fail(NAME, f"weights must have shape ({len(y)},), one for each row of y", f"{values.shape}", "Reshape them.")
    if (values < 0).any():
        fail(NAME, "weights must be non-negative", f"{values.min()}", "Leave such rows out.")
    return values


def right_hand_sides(y: mx.array, weights: np.ndarray | None) -> np.ndarray:
    """The data as (m, k), finite in the rows of positive weight."""
    values = to_numpy(y).reshape(len(y), -1)
    finite("y", values if weights is None else values[weights > 0])
    return values


def penalty_roots(l2: Any, solution: tuple[int, ...]) -> np.ndarray | None:
    """Square roots of l2 as (n, k), or None if it is zero; ``solution`` is the shape of the linear parameters."""
    values = finite("l2", host("l2", l2))
    if (values < 0).any():
        fail(NAME, "l2 must be non-negative", f"{values.min()}", "Pass 0 for no penalty.")
    if not values.any():
        return None
    try:
        return np.sqrt(np.broadcast_to(values, solution)).reshape(solution[0], -1)
    except ValueError:
        rule = f"l2 must broadcast against the linear parameters {solution}"
        fail(NAME, rule, f"shape {values.shape}", "Pass a scalar or (n, 1).")


def box(bounds: Any, basis: Basis) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds as flat vectors."""
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        fail(NAME, "bounds must be a pair (lower, upper)", f"{bounds!r:.60}", "None stands for no bound.")
    lower, upper = (basis.round(one_side(*end)) for end in [(bounds[0], basis, -np.inf), (bounds[1], basis, np.inf)])
    for j in np.flatnonzero(~(lower <= upper)):
        fail(NAME, "lower bounds must not exceed upper ones", f"{lower[j]} and {upper[j]}", "Exchange them.")
    for j in np.flatnonzero((basis.start < lower) | (basis.start > upper)):
        got = f"{basis.start[j]} outside [{lower[j]}, {upper[j]}]"
        fail(NAME, "alpha must lie within its bounds", got, "Start inside them.")
    return lower, upper


def starting_points(starts: Any, basis: Basis, lower: np.ndarray, upper: np.ndarray) -> list[np.ndarray]:
    """Alpha and further starts as flat vectors."""
    points = [basis.start]
    if starts is None:
        return points
    if not isinstance(starts, Iterable) or isinstance(starts, dict):
        got, remedy = type(starts).__name__, "Use [tree, tree]."
        fail(NAME, "starts must be a sequence of trees like alpha", got, remedy, TypeError)
    for start in starts:
        if isinstance(start, (int, float, np.ndarray)):
            start = mx.array(start)
        leaves = arrays(start)
        if [getattr(leaf, "shape", None) for leaf in leaves] != basis.shapes:
            got = f"shapes {[getattr(leaf, 'shape', type(leaf).__name__) for leaf in leaves]} for {basis.shapes}"
            fail(NAME, "starts must be trees of arrays like alpha", got, "Stack starts along a new first axis.")
        x = finite("starts", basis.round(basis.flat(start)))
        for j in np.flatnonzero((x < lower) | (x > upper)):
            got = f"{x[j]} outside [{lower[j]}, {upper[j]}]"
            fail(NAME, "starts must lie within the bounds", got, "Start inside them.")
        points.append(x)
    return points


def linear_box(bounds: Any, solution: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """Lower and upper bounds of the linear parameters, (n, k), or None; ``solution`` is their shape."""
    if bounds is None:
        return None
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        fail(NAME, "linear_bounds must be a pair (lower, upper)", f"{bounds!r:.60}", "None stands for no bound.")
    ends = []
    for side, empty in zip(bounds, (-np.inf, np.inf), strict=True):
        values = host("linear_bounds", empty if side is None else side)
        try:
            ends.append(np.broadcast_to(values, solution).reshape(solution[0], -1))
        except ValueError:
            rule = f"linear_bounds must broadcast against the linear parameters {solution}"
            fail(NAME, rule, f"shape {values.shape}", "Pass numbers, (n,) for one right-hand side, or (n, 1).")
    lower, upper = ends
    for low, up in zip(lower.ravel(), upper.ravel(), strict=True):
        if not low <= up or low == np.inf or up == -np.inf:
            got = f"{low} and {up}"
            fail(NAME, "lower linear_bounds must be finite or -inf and not exceed upper ones", got, "Exchange them.")
    return None if np.isneginf(lower).all() and np.isposinf(upper).all() else (lower, upper)


def one_side(side: Any, basis: Basis, empty: float) -> np.ndarray:
    """One bound as a flat vector: None, a number, an array, or a tree in which leaves may be missing."""
    if side is None or isinstance(side, (int, float)):
        return np.full(basis.start.size, empty if side is None else float(side))
    given = dict(tree_flatten(side))
    names = [name for name, _ in tree_flatten(basis.template)]
    if not set(given) <= set(names):
        fail(NAME, f"bounds must have the leaves of alpha, {names}", f"{list(given)}", "Leave out what has no bound.")
    parts = []
    for name, shape in zip(names, basis.shapes, strict=True):
        value = host("bounds", given.get(name, empty))
        try:
            parts.append(np.broadcast_to(value, shape).ravel())
        except ValueError:
            fail(NAME, f"bounds must broadcast against alpha {shape}", f"shape {value.shape}", "Reshape them.")
    return np.concatenate(parts)


def finite(label: str, values: np.ndarray) -> np.ndarray:
    """The values, if all of them are finite."""
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        fail(NAME, f"{label} must be finite", f"NaN or Inf in {bad} places", "Leave such rows out.")
    return values


def host(label: str, values: Any) -> np.ndarray:
    """An array, a NumPy array, a number or nested lists of numbers in float64."""
    if isinstance(values, mx.array) and values.dtype != mx.complex64:
        return to_numpy(values)
    try:
        array = np.asarray(values)
        if array.dtype.kind in "biuf":
            return array.astype(float)
        got = f"dtype {array.dtype}"
    except ValueError:  # Lists of different lengths.
        got = "lists of different lengths"
    fail(NAME, f"{label} must be an array of real numbers", got, "Use mx.array or a NumPy array of floats.", TypeError)


def check_basis(phi: mx.array, m: int) -> None:
    """Whether what the basis returned at the start fits the data."""
    if not isinstance(phi, mx.array) or phi.dtype == mx.complex64:
        got = "complex64" if isinstance(phi, mx.array) else type(phi).__name__
        fail(NAME, "basis must return a real mx.array", got, "Stack real and imaginary parts as rows.", TypeError)
    if phi.ndim != 2 or phi.shape[0] != m:
        fail(NAME, f"basis must return shape ({m}, n), a row for each of y", f"{phi.shape}", "Stack columns on axis 1.")
    if phi.shape[1] == 0:
        fail(NAME, "basis must have at least one column", f"{phi.shape}", "Use a model with a linear parameter.")
