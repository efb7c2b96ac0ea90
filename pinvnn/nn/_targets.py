"""Targets that are known for some rows only: one problem for each distinct column of the mask."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .._mlx import checks, dtypes, large, on_cpu, visible
from .._types import ArrayLike
from ._problem import ReadoutProblem


class Part(NamedTuple):
    """Targets that are known for the same rows.

    Attributes:
        columns: Which targets; None for all of them, each as a problem of its own along a new batch dimension.
        known: Mask of the rows, ``(..., m)``, or ``(..., k, m)`` where the targets are a batch dimension.
    """

    columns: tuple[int, ...] | None
    known: mx.array


def check_mask(name: str, mask: ArrayLike, y: mx.array, vector: bool) -> mx.array:
    """``mask`` as a boolean array ``(..., m, k)``."""
    mask = checks.array(name, "mask", mask, 1)
    if vector and mask.ndim == 1:
        mask = mask[:, None]
    if mask.dtype != mx.bool_:
        checks.fail(name, "mask must be boolean", f"{mask.dtype}", "Pass True where a target is known.", TypeError)
    if mask.ndim < 2 or mask.shape[-2:] != y.shape[-2:]:
        rule = f"mask must have the shape (..., {y.shape[-2]}, {y.shape[-1]}) of y"
        checks.fail(name, rule, f"{mask.shape}", "Pass one entry for each target of each row.")
    return mask


def parts_of(mask: mx.array) -> list[Part]:
    """The distinct columns of ``mask`` (..., m, k) where it can be evaluated; else all columns as a batch dimension."""
    if not visible(mask):
        with on_cpu():
            return [Part(None, mask.mT)]
    columns = np.moveaxis(np.array(mask), -1, 0).reshape(mask.shape[-1], -1)
    _, first, group = np.unique(columns, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    with on_cpu():
        return [
            Part(tuple(np.flatnonzero(group == i).tolist()), mask[..., int(column)])
            for i, column in enumerate(first)
        ]


def columns_of(x: mx.array, part: Part) -> mx.array:
    """The columns of ``x`` (..., r, k) or (..., r, 1) that belong to a part, for which it is a problem."""
    if part.columns is None:
        return x.mT[..., None] if x.shape[-1] > 1 else x[..., None, :, :]
    if x.shape[-1] == 1 or part.columns == tuple(range(x.shape[-1])):
        return x
    # Not by an index array: the gradient of a gather is a scatter, which has no forward derivative.
    return mx.concatenate([x[..., t : t + 1] for t in part.columns], axis=-1)


def in_order(parts: Sequence[Part], values: Sequence[mx.array]) -> mx.array:
    """``(..., r, k)`` from what was computed for each part."""
    with large(values[0].dtype):
        if parts[0].columns is None:
            return values[0][..., 0].mT
        found = {}
        for part, value in zip(parts, values, strict=True):
            assert part.columns is not None
            found.update({t: value[..., i : i + 1] for i, t in enumerate(part.columns)})
        return mx.concatenate([found[t] for t in sorted(found)], axis=-1)


class Problems(NamedTuple):
    """A problem for each set of targets that are known for the same rows, and how to put their results together."""

    parts: list[Part]
    centred: list[ReadoutProblem]
    centre: Callable[[int, bool, mx.array | None], ReadoutProblem]
    vector: bool

    @property
    def stacked(self) -> bool:
        """Whether each target is a problem of its own, along a batch dimension."""
        return self.parts[0].columns is None

    def in_order(self, values: list[mx.array]) -> mx.array:
        """``(..., r, k)`` from the results ``(..., r, .)`` of the problems."""
        return values[0] if len(values) == 1 and not self.stacked else in_order(self.parts, values)


def masked(
    part: Part, x: mx.array, y: mx.array, weights: mx.array | None, l2: mx.array | None
) -> tuple[mx.array, mx.array, mx.array, mx.array | None]:
    """The rows and the penalty of a part, as :func:`centred` takes them: what is not known has weight 0."""
    dtype = dtypes.working(x, y)
    with large(dtype):
        known = part.known.astype(dtype)
        if part.columns is None:
            x, weights = x[..., None, :, :], None if weights is None else weights[..., None, :]
        w = known if weights is None else known * weights
        targets = columns_of(y, part)
        targets = mx.where(part.known[..., None], targets, mx.zeros_like(targets))
    if l2 is not None:
        with on_cpu():
            l2 = columns_of(l2, part)
    return x, targets, w, l2


def columns_of_bounds(bounds, part: Part):
    """Bounds of the weights for the targets of a part."""
    with on_cpu():
        return tuple(columns_of(bound, part) if isinstance(bound, mx.array) else bound for bound in bounds)
