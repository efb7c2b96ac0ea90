"""Rank and condition of a matrix, and the gap between its kept and dropped singular values."""

import mlx.core as mx

from ._factor.rank import gap
from ._factor.right_factor import RightFactor, rank_of, right_factor
from ._mlx import checks, dtypes
from ._mlx.complex import h
from ._mlx.numbers import refuse_inexact_integers
from ._mlx.place import large, on_cpu
from ._types import ArrayLike, Diagnosis, Tolerance


def matrix_rank(
    a: ArrayLike, *, rtol: Tolerance = None, atol: Tolerance = None, hermitian: bool = False
) -> mx.array:
    """Number of singular values above ``max(atol, rtol * s_max)``.

    Args:
        a: ``(..., m, n)``.
        rtol: As in :func:`pinv`.
        atol: As in :func:`pinv`.
        hermitian: As in :func:`pinv`.

    Returns:
        ``(...)`` int32; 0 for a matrix with NaN or Inf. No gradient.

    Raises:
        ValueError: If ``a`` is no matrix or holds integers beyond float32, or a tolerance is negative or of a wrong
            shape.
        TypeError: If an argument is not array-like.

    Example:
        >>> int(matrix_rank(mx.ones((3, 2))))
        1
    """
    a, f = _checked_factor("matrix_rank", a, rtol, atol, hermitian)
    return mx.zeros(a.shape[:-2], mx.int32) if f is None else rank_of(a, f)


def diagnose(a: ArrayLike, *, rtol: Tolerance = None, atol: Tolerance = None) -> Diagnosis:
    """Rank, condition and gap of a matrix, as lazy arrays: it works inside ``mx.compile``.

    Args:
        a: ``(..., m, n)``.
        rtol: As in :func:`pinv`.
        atol: As in :func:`pinv`.

    Returns:
        A :class:`Diagnosis` of arrays ``(...)``. Its ``gap`` is what the gradient of :func:`pinv` divides by.

    Raises:
        ValueError: If ``a`` is no matrix or holds integers beyond float32, or a tolerance is negative or of a wrong
            shape.
        TypeError: If an argument is not array-like.

    Example:
        >>> diagnose(mx.array([[2.0, 0.0], [0.0, 1.0]])).cond
        array(2, dtype=float32)
    """
    a, f = _checked_factor("diagnose", a, rtol, atol, False)
    batch = a.shape[:-2]
    if f is None:
        zeros, ones = mx.zeros(batch, mx.int32), mx.ones(batch)
        return Diagnosis(zeros, ones, ones, mx.zeros(batch), mx.ones(batch, mx.bool_))
    with on_cpu():
        kept = f.kept > 0
        dtype = dtypes.real(dtypes.working(a))
        last = mx.min(mx.where(kept, f.s, mx.array(float("inf"), f.s.dtype)), axis=-1)
        s_max = f.s[..., 0]
        cond = mx.where(mx.any(kept, axis=-1), s_max / last, mx.full(s_max.shape, float("inf"), s_max.dtype))
        values = (cond, gap(f.s, kept), s_max / f.r[..., 0, 0])
        cond, relative_gap, s_max = (x.astype(dtype) for x in values)
        return Diagnosis(rank_of(a, f), cond, relative_gap, s_max, mx.isfinite(f.s[..., 0]))


def _checked_factor(
    name: str, a: ArrayLike, rtol: Tolerance, atol: Tolerance, hermitian: bool
) -> tuple[mx.array, RightFactor | None]:
    """``a`` in its working dtype, and the factor of ``a`` or, if it is wide, of its transpose; None if it is empty."""
    a = checks.matrix(name, a, hermitian)
    work = dtypes.working(a)
    refuse_inexact_integers(name, "a", a, work)
    rtol, atol = checks.tolerances(name, a, rtol, atol)
    with large(work):
        a = checks.in_working_dtype(a, work, hermitian)
        if a.size == 0:
            return a, None
        return a, right_factor(a if a.shape[-2] >= a.shape[-1] else h(a), None, rtol, atol)[0]
