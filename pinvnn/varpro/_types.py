"""Types of what the public functions of varpro take, as aliases that an editor shows."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import mlx.core as mx

from .._types import ArrayLike

#: Parameters: an array, or lists, tuples and dicts of arrays in any nesting.
Tree: TypeAlias = Any
#: A function of a tree of parameters, and of further arguments, that returns a matrix (m, n); or an ``nn.Module``.
BasisFunction: TypeAlias = Callable[..., mx.array]
#: One side of bounds: None for no bound, a number, an array, or a tree in which leaves may be missing.
Bound: TypeAlias = ArrayLike | Tree | None
#: (lower, upper).
Bounds: TypeAlias = tuple[Bound, Bound]
#: Jacobian of the projected residual: Golub and Pereyra's in full, or Kaufman's.
Jacobian: TypeAlias = Literal["full", "kaufman"]
#: How :class:`SeparableGaussNewton` solves for a step.
StepMethod: TypeAlias = Literal["auto", "dense", "cg"]
#: What weights mean for standard errors: row counts, relative or absolute inverse variances.
WeightsAre: TypeAlias = Literal["counts", "precisions", "inverse variances"]
