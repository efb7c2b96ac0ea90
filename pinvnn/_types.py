"""Result types of the public functions."""

from typing import NamedTuple

import mlx.core as mx


class LstsqResult(NamedTuple):
    """What :func:`pinvnn.lstsq` returns. What is not used is not computed: MLX is lazy.

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
