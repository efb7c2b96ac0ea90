"""Orthonormal bases of range and null space: eager functions without a gradient."""

import mlx.core as mx

from ._factor.lapack import thin_svd
from ._factor.right_factor import RightFactor, rank_of, right_factor
from ._mlx import checks, dtypes
from ._mlx.blocks import times
from ._mlx.complex import embed, h, unembed
from ._mlx.numbers import refuse_inexact_integers
from ._mlx.place import CPU, astype, on_cpu
from ._types import ArrayLike, Tolerance


def orth(a: ArrayLike, *, rtol: Tolerance = None) -> mx.array:
    """Orthonormal basis of the range of a matrix.

    Eager: the number of columns depends on the values, so that it cannot stand in a compiled function. No gradient.

    Args:
        a: ``(m, n)``.
        rtol: Relative cutoff, as in :func:`pinvnn.pinv`.

    Returns:
        ``(m, rank)``.

    Raises:
        ValueError: If ``a`` is not one matrix or holds NaN, Inf or integers beyond float32, or ``rtol`` is negative.
        TypeError: If an argument is not array-like.

    Example:
        >>> orth(mx.ones((4, 2))).shape
        (4, 1)
    """
    out, a, rtol = _finite_matrix("orth", a, rtol)
    if a.size == 0:
        return mx.zeros((a.shape[0], 0), out)
    with on_cpu():
        if a.shape[0] < a.shape[1]:
            return unembed(_right_vectors(h(a), rtol, kept=True)[0], a.dtype).astype(out)
        v, f = _right_vectors(a, rtol, kept=True)
        if v.size == 0:
            return mx.zeros((a.shape[0], 0), out)
        gram = (f.v * f.s**2) @ f.v.mT
        u = times(a, _stacked(v @ _inverse_root(v.mT @ gram @ v) * f.r, a.dtype))
        return (u if a.dtype == mx.complex64 else thin_svd(u.astype(mx.float64))[0]).astype(out)


def null_space(a: ArrayLike, *, rtol: Tolerance = None) -> mx.array:
    """Orthonormal basis of the null space of a matrix.

    Eager: the number of columns depends on the values, so that it cannot stand in a compiled function. No gradient.

    Args:
        a: ``(m, n)``.
        rtol: Relative cutoff, as in :func:`pinvnn.pinv`.

    Returns:
        ``(n, n - rank)``.

    Raises:
        ValueError: If ``a`` is not one matrix or holds NaN, Inf or integers beyond float32, or ``rtol`` is negative.
        TypeError: If an argument is not array-like.

    Example:
        >>> null_space(mx.ones((2, 3))).shape
        (3, 2)
    """
    out, a, rtol = _finite_matrix("null_space", a, rtol)
    with on_cpu():
        if a.size == 0:
            return mx.eye(a.shape[1], dtype=mx.float32).astype(out)
        return unembed(_right_vectors(a, rtol, kept=False)[0], a.dtype).astype(out)


def _stacked(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """The first block column of an embedded matrix."""
    return x[:, : x.shape[1] // 2] if dtype == mx.complex64 else x


def _finite_matrix(name: str, a: ArrayLike, rtol: Tolerance) -> tuple[mx.Dtype, mx.array, mx.array | float | None]:
    """The dtype to return, the matrix in its working dtype, and the cutoff, all checked."""
    a = checks.array(name, "a", a, 2)
    if a.ndim != 2:
        checks.fail(name, "a must be one matrix", f"shape {a.shape}", "Call it for each matrix of the batch.")
    refuse_inexact_integers(name, "a", a)
    out, rtol = dtypes.result(a), checks.tolerance(name, "rtol", rtol, ())
    a = astype(a, dtypes.working(a))
    if a.size and not bool(mx.all(mx.isfinite(a, stream=CPU), stream=CPU)):
        checks.fail(name, "a must be finite", "NaN or Inf", "Mask or drop those entries.")
    return out, a, rtol


def _right_vectors(a: mx.array, rtol: mx.array | float | None, kept: bool) -> tuple[mx.array, RightFactor]:
    """Orthonormal right singular vectors of ``a`` (m, n) in float64, embedded if complex, and their factor."""
    f, _ = right_factor(a, None, rtol)
    r = int(rank_of(a, f))
    if a.dtype != mx.complex64:
        return (f.v[:, :r] if kept else f.v[:, r:]), f
    # The real embedding of a complex matrix has each singular vector twice, in any mixture: not so its projector.
    kept_vectors = f.v * f.kept
    projector = kept_vectors @ kept_vectors.mT
    vectors = mx.linalg.eigh(unembed(projector, a.dtype), stream=CPU)[1]
    n = vectors.shape[-1]
    c = embed(vectors[:, n - r :] if kept else vectors[:, : n - r])
    return (projector @ c if kept else c - projector @ c), f


def _inverse_root(gram: mx.array) -> mx.array:
    """G^-1/2 of a positive definite ``gram``."""
    values, v = mx.linalg.eigh((gram + gram.mT) / 2, stream=CPU)
    return (v / mx.sqrt(values)) @ v.mT
