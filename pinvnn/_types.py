"""Types of the public functions: what they take, as aliases that an editor shows, and what they return."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, Union

import mlx.core as mx

if TYPE_CHECKING:
    import numpy as np  # not at run time: NumPy takes longer to import than all of MLX

#: Anything that ``mx.array`` takes: an array, a NumPy array, a number, nested lists of numbers.
ArrayLike: TypeAlias = Union[mx.array, "np.ndarray[Any, Any]", Sequence[Any], bool, int, float, complex]
#: A cutoff for singular values: a non-negative number, an array over the batch, or None for the default.
Tolerance: TypeAlias = ArrayLike | None
#: A penalty that broadcasts against the solution (n, k): a number, (k,) per target, (n, 1) per feature, (n, k).
Penalty: TypeAlias = ArrayLike
#: (lower, upper): each a number, None for no bound, or an array that broadcasts against the solution.
Bounds: TypeAlias = tuple[ArrayLike | None, ArrayLike | None]
#: Where the large products run: None for the default device.
Stream: TypeAlias = mx.Stream | mx.Device | None
#: Routes of :func:`pinvnn.pinv` and :func:`pinvnn.lstsq`.
Method: TypeAlias = Literal["auto", "gram", "svd", "cholesky", "slices"]
#: Routes of :func:`pinvnn.ridge`.
RidgeMethod: TypeAlias = Literal["auto", "primal", "dual", "cholesky"]
#: Routes of readouts.
ReadoutMethod: TypeAlias = Literal["auto", "cholesky"]


class LstsqResult(NamedTuple):
    """What :func:`pinvnn.lstsq` returns. All fields are lazy: MLX computes only those that are evaluated.

    Attributes:
        solution: The minimum-norm least-squares solution, ``(..., n, k)``, or ``(n,)`` for a vector ``b``.
        residuals: Weighted sums of squared residuals per target, ``(..., k)``, or ``()`` for a vector ``b``.
        rank: Number of singular values kept, ``(...)`` int32; 0 for a matrix with NaN or Inf.
        singular_values: Singular values of the (weighted) matrix in descending order, ``(..., min(m, n))``.
    """

    solution: mx.array
    residuals: mx.array
    rank: mx.array
    singular_values: mx.array


class Diagnosis(NamedTuple):
    """What :func:`pinvnn.diagnose` returns: lazy arrays of the batch shape ``(...)``.

    Attributes:
        rank: Number of singular values kept, int32.
        cond: Ratio of the largest to the smallest kept singular value.
        gap: ``(s_r - s_{r+1}) / s_r`` between the last kept and the first dropped singular value; 1 where nothing is
            dropped or what is dropped is zero. The gradient of the truncated pseudo-inverse divides by it.
        s_max: The largest singular value.
        finite: Whether the matrix holds neither NaN nor Inf.
    """

    rank: mx.array
    cond: mx.array
    gap: mx.array
    s_max: mx.array
    finite: mx.array


class CausalState(NamedTuple):
    """What :func:`pinvnn.causal_ridge_step` keeps of the positions so far: float64, whatever their dtype.

    Attributes:
        kk: Sum of k k^T, each with the weight that it has left, ``(..., n, n)``.
        kv: Sum of k v^T, likewise, ``(..., n, p)``.
    """

    kk: mx.array
    kv: mx.array
