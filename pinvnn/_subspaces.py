"""Orthonormal bases and the check of a pseudo-inverse: eager functions without a gradient."""

import mlx.core as mx

from . import _checks, _dtypes
from ._blocks import embed, h, times, unembed
from ._factor import factor, thin_svd
from ._pinv import rank
from ._place import CPU, astype, on_cpu


def orth(a, *, rtol=None):
    """Orthonormal basis of the range of a matrix. Its number of columns is data: not for compiled graphs.

    Args:
        a: ``(m, n)``.
        rtol: Relative cutoff, as in :func:`pinvnn.pinv`.

    Returns:
        ``(m, rank)``.

    Raises:
        ValueError: for a shape or tolerance that does not fit, or for NaN or Inf in ``a``.
        TypeError: for what is no array.

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
        gram = (f.v * f.s**2) @ mx.swapaxes(f.v, -1, -2)
        u = times(a, _stacked(v @ _inverse_root(mx.swapaxes(v, -1, -2) @ gram @ v) * f.r, a.dtype))
        return (u if a.dtype == mx.complex64 else thin_svd(u.astype(mx.float64))[0]).astype(out)


def null_space(a, *, rtol=None):
    """Orthonormal basis of the null space of a matrix. Its number of columns is data: not for compiled graphs.

    Args:
        a: ``(m, n)``.
        rtol: Relative cutoff, as in :func:`pinvnn.pinv`.

    Returns:
        ``(n, n - rank)``.

    Raises:
        ValueError: for a shape or tolerance that does not fit, or for NaN or Inf in ``a``.
        TypeError: for what is no array.

    Example:
        >>> null_space(mx.ones((2, 3))).shape
        (3, 2)
    """
    out, a, rtol = _finite_matrix("null_space", a, rtol)
    with on_cpu():
        if a.size == 0:
            return mx.eye(a.shape[1], dtype=mx.float32).astype(out)
        return unembed(_right_vectors(a, rtol, kept=False)[0], a.dtype).astype(out)


def penrose_residuals(a, p):
    """How far ``p`` is from the pseudo-inverse of ``a``: relative residuals of Penrose's four conditions.

    In the Frobenius norm, ``|APA - A| / |A|``, ``|PAP - P| / |P|``, ``|AP - (AP)^H| / |AP|`` and
    ``|PA - (PA)^H| / |PA|``, computed in float64 without an m x m matrix where m is the long side; 0 where numerator
    and denominator are 0.

    Args:
        a: ``(..., m, n)``.
        p: ``(..., n, m)``. The batch dimensions broadcast.

    Returns:
        ``(..., 4)``, float32 (float64 for float64 input). No gradient.

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: for what is no array.

    References:
        R. Penrose, A generalized inverse for matrices, Proc. Cambridge Phil. Soc. 51 (1955), Eqs. 1-4, doi
        10.1017/S0305004100030401.

    Example:
        >>> penrose_residuals(mx.eye(2), mx.eye(2))
        array([0, 0, 0, 0], dtype=float32)
    """
    name = "penrose_residuals"
    a, p = _checks.array(name, "a", a, 2), _checks.array(name, "p", p, 2)
    if a.shape[-2:] != p.shape[:-3:-1]:
        _checks.fail(name, "p must have the shape of the transpose of a", f"{a.shape} and {p.shape}", "Transpose p.")
    batch = _checks.batch_shape(name, ("a", a.shape[:-2]), ("p", p.shape[:-2]))
    work = _dtypes.working(a, p)
    if a.size == 0 or p.size == 0 or 0 in batch:
        return mx.zeros((*batch, 4), _dtypes.real(work))
    with on_cpu():
        a, p = embed(astype(a, work)), embed(astype(p, work))
        a, p = (mx.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, p))
        ap_side = _asymmetry(a, mx.swapaxes(p, -1, -2))
        pa_side = _asymmetry(mx.swapaxes(a, -1, -2), p)
        long = a.shape[-2] > a.shape[-1]
        apa = a @ (p @ a) if long else (a @ p) @ a
        pap = (p @ a) @ p if long else p @ (a @ p)
        parts = [_ratio(_norm(apa - a), _norm(a)), _ratio(_norm(pap - p), _norm(p)), ap_side, pa_side]
        return mx.stop_gradient(mx.stack(parts, axis=-1).astype(_dtypes.real(work)))


def _asymmetry(x, y):
    """``|S - S^T| / |S|`` of S = x y^T, x and y (..., m, n): by an orthonormal basis of both if m is the long side."""
    m, n = x.shape[-2:]
    if m <= 2 * n:
        s = x @ mx.swapaxes(y, -1, -2)
    else:
        finite = mx.all(mx.isfinite(x) & mx.isfinite(y), axis=(-2, -1), keepdims=True)
        both = mx.concatenate([i / mx.max(mx.abs(i), axis=(-2, -1), keepdims=True) for i in (x, y)], axis=-1)
        both = mx.where(mx.isfinite(both), both, 0.0)  # a ratio: the scales cancel, and 0 / 0 is 0
        _, values, v = thin_svd(both)
        small = values[..., :, None] * mx.swapaxes(v, -1, -2)  # both = U small
        s = small[..., :n] @ mx.swapaxes(small[..., n:], -1, -2)
        s = mx.where(finite, s, mx.array(float("nan"), mx.float64))
    return _ratio(_norm(s - mx.swapaxes(s, -1, -2)), _norm(s))


def _norm(x):
    return mx.sqrt(mx.sum(x * x, axis=(-2, -1)))


def _ratio(x, y):
    return mx.where((x == 0) & (y == 0), mx.zeros_like(x), x / y)


def _stacked(x, dtype):
    """The first block column of an embedded matrix."""
    return x[:, : x.shape[1] // 2] if dtype == mx.complex64 else x


def _finite_matrix(name, a, rtol):
    """The dtype to return, the matrix in its working dtype, and the cutoff, all checked."""
    a = _checks.array(name, "a", a, 2)
    if a.ndim != 2:
        _checks.fail(name, "a must be one matrix", f"shape {a.shape}", "Call it for each matrix of the batch.")
    out, rtol = _dtypes.result(a), _checks.tolerance(name, "rtol", rtol, ())
    a = astype(a, _dtypes.working(a))
    if a.size and not bool(mx.all(mx.isfinite(a, stream=CPU), stream=CPU)):
        _checks.fail(name, "a must be finite", "NaN or Inf", "Mask or drop those entries.")
    return out, a, rtol


def _right_vectors(a, rtol, kept):
    """Orthonormal right singular vectors of ``a`` (m, n) in float64, embedded if complex, and their factor."""
    f, _ = factor(a, None, rtol)
    r = int(rank(a, f))
    if a.dtype != mx.complex64:
        return (f.v[:, :r] if kept else f.v[:, r:]), f
    # The embedding has every vector twice, in any mixture. Its projector has no such freedom.
    half = f.v * f.kept
    projector = half @ mx.swapaxes(half, -1, -2)
    vectors = mx.linalg.eigh(unembed(projector, a.dtype), stream=CPU)[1]
    n = vectors.shape[-1]
    c = embed(vectors[:, n - r :] if kept else vectors[:, : n - r])
    return (projector @ c if kept else c - projector @ c), f


def _inverse_root(gram):
    """G^-1/2 of a positive definite ``gram``."""
    values, v = mx.linalg.eigh((gram + mx.swapaxes(gram, -1, -2)) / 2, stream=CPU)
    return (v / mx.sqrt(values)) @ mx.swapaxes(v, -1, -2)
