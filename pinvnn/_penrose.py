"""Penrose's four conditions: how good a pseudo-inverse is."""

import mlx.core as mx

from ._factor.lapack import thin_svd
from ._mlx import checks, dtypes
from ._mlx.complex import embed
from ._mlx.numbers import refuse_inexact_integers
from ._mlx.place import astype, on_cpu
from ._types import ArrayLike


def penrose_residuals(a: ArrayLike, p: ArrayLike) -> mx.array:
    """How far ``p`` is from the pseudo-inverse of ``a``: relative residuals of Penrose's four conditions.

    In the Frobenius norm: ``|APA - A| / |A|``, ``|PAP - P| / |P|``, ``|AP - (AP)^H| / |AP|`` and
    ``|PA - (PA)^H| / |PA|``, computed in float64 and, for m > n, without an m x m matrix. A residual is 0 where both
    its numerator and its denominator are.

    Args:
        a: ``(..., m, n)``.
        p: ``(..., n, m)``. The batch dimensions broadcast.

    Returns:
        ``(..., 4)``, float32 (float64 for float64 input). No gradient.

    Raises:
        ValueError: If the shapes do not match, or there are integers beyond float32.
        TypeError: If an argument is not array-like.

    References:
        R. Penrose, A generalized inverse for matrices, Proc. Cambridge Phil. Soc. 51 (1955), Eqs. 1-4, doi
        10.1017/S0305004100030401.

    Example:
        >>> penrose_residuals(mx.eye(2), mx.eye(2))
        array([0, 0, 0, 0], dtype=float32)
    """
    name = "penrose_residuals"
    a, p = checks.array(name, "a", a, 2), checks.array(name, "p", p, 2)
    if a.shape[-2:] != p.shape[:-3:-1]:
        checks.fail(name, "p must have the shape of the transpose of a", f"{a.shape} and {p.shape}", "Transpose p.")
    batch = checks.batch_shape(name, ("a", a.shape[:-2]), ("p", p.shape[:-2]))
    work = dtypes.working(a, p)
    for label, x in (("a", a), ("p", p)):
        refuse_inexact_integers(name, label, x, work)
    if a.size == 0 or p.size == 0 or 0 in batch:
        return mx.zeros((*batch, 4), dtypes.real(work))
    with on_cpu():
        a, p = embed(astype(a, work)), embed(astype(p, work))
        a, p = (mx.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, p))
        ap_side = _asymmetry(a, p.mT)
        pa_side = _asymmetry(a.mT, p)
        long = a.shape[-2] > a.shape[-1]
        apa = a @ (p @ a) if long else (a @ p) @ a
        pap = (p @ a) @ p if long else p @ (a @ p)
        parts = [_ratio(_norm(apa - a), _norm(a)), _ratio(_norm(pap - p), _norm(p)), ap_side, pa_side]
        return mx.stop_gradient(mx.stack(parts, axis=-1).astype(dtypes.real(work)))


def _asymmetry(x: mx.array, y: mx.array) -> mx.array:
    """``|S - S^T| / |S|`` of S = x y^T, x and y (..., m, n): by an orthonormal basis of both if m is the long side."""
    m, n = x.shape[-2:]
    if m <= 2 * n:
        s = x @ y.mT
    else:
        finite = mx.all(mx.logical_and(mx.isfinite(x), mx.isfinite(y)), axis=(-2, -1), keepdims=True)
        both = mx.concatenate([i / mx.max(mx.abs(i), axis=(-2, -1), keepdims=True) for i in (x, y)], axis=-1)
        both = mx.where(mx.isfinite(both), both, 0.0)  # a ratio: the scales cancel, and 0 / 0 is 0
        _, values, v = thin_svd(both)
        small = values[..., :, None] * v.mT  # both = U small
        s = small[..., :n] @ small[..., n:].mT
        s = mx.where(finite, s, mx.array(float("nan"), mx.float64))
    return _ratio(_norm(s - s.mT), _norm(s))


def _norm(x: mx.array) -> mx.array:
    return mx.sqrt(mx.sum(x * x, axis=(-2, -1)))


def _ratio(x: mx.array, y: mx.array) -> mx.array:
    return mx.where(mx.logical_and(x == 0, y == 0), mx.zeros_like(x), x / y)
