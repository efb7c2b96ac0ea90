"""The pseudo-inverse, and what is read off one factorization of a matrix."""

import mlx.core as mx

from . import _checks, _dtypes, _rank
from ._blocks import h
from ._factor import Factor, factor
from ._full_rank import full_rank, inverse_by_lu
from ._place import CPU, astype, large, on_cpu
from ._rules import attach_pinv, attach_pinv_by_vectors
from ._square_rules import attach_inverse
from ._types import Diagnosis
from ._values import known_pinv_value, left_vectors, pinv_value


def pinv(a, *, rtol=None, atol=None, hermitian=False, method="auto", stream=None):
    r"""Moore-Penrose pseudo-inverse, differentiable at every order.

    Singular values ``s <= max(atol, rtol * s_max)`` are dropped. The derivative is that of the truncated pseudo-inverse
    itself, also where non-zero values are dropped; at a constant rank it is Golub and Pereyra's,

    .. math::
        dP = -P\,dA\,P + P P^H dA^H (I - A P) + (I - P A) dA^H P^H P.

    Its only pole is a closing gap between the last kept and the first dropped value (see :func:`diagnose`). At the zero
    matrix, where no value is kept, value and gradient are zero.

    Args:
        a: ``(..., m, n)``, float32, float64 (computed on the CPU) or complex64. float16 and bfloat16 are computed in
            float32 and come back as they went in; integers and booleans become float32. Any dimension may be 0.
        rtol: Relative cutoff, a number or an array over the batch. Default ``min(m, n) * eps`` of the dtype, or 0 if
            ``atol`` is given. No gradient.
        atol: Absolute cutoff, likewise. Default 0. No gradient.
        hermitian: Treat ``a`` as Hermitian: both triangles are read and the Hermitian part of the gradient returned.
        method: ``"auto"``, or a route by name: ``"gram"`` (float32, complex64), ``"svd"`` (real; in float64), or
            ``"cholesky"`` for full rank, which is NaN where it cannot prove that no singular value is to be dropped.
            "auto" evaluates its arguments to see whether that will do, except inside ``mx.compile`` and ``mx.vmap`` and
            with a GPU as default device: there ``"cholesky"`` has to be asked for, and saves most of the time.
        stream: Where the large products of the gradient run. Nobody needs to pass it.

    Returns:
        ``(..., n, m)``; NaN for a matrix that holds NaN or Inf, and for that matrix only.

    Raises:
        ValueError: for a shape, tolerance or method that does not fit.
        TypeError: for what is no array.

    References:
        G. H. Golub and V. Pereyra, The differentiation of pseudo-inverses and nonlinear least squares problems whose
        variables separate, SIAM J. Numer. Anal. 10 (1973), Eq. 4.12, doi 10.1137/0710036.

    Example:
        >>> import mlx.core as mx
        >>> import pinvnn
        >>> pinvnn.pinv(mx.array([[1.0], [2.0]]))
        array([[0.2, 0.4]], dtype=float32)
        >>> mx.grad(lambda a: pinvnn.pinv(a).sum())(mx.array([[2.0]]))
        array([[-0.25]], dtype=float32)
    """
    a = _matrix("pinv", a, hermitian)
    out = _dtypes.result(a)
    work = _dtypes.working(a)
    method = _checks.method("pinv", method, work)
    rtol, atol = _tolerances("pinv", a, rtol, atol)
    with large(work, stream):
        a = _working(a, work, hermitian)
        if a.size == 0:
            return mx.zeros((*a.shape[:-2], a.shape[-1], a.shape[-2]), out)
        if a.shape[-2] < a.shape[-1]:
            return h(_tall_pinv(h(a), rtol, atol, method)).astype(out)
        return _tall_pinv(a, rtol, atol, method).astype(out)


def _tall_pinv(a, rtol, atol, method):
    if known := full_rank(a, rtol, atol, method=method):
        if method == "auto" and (inverse := inverse_by_lu(a)) is not None:
            return attach_inverse(a, inverse)
        return attach_pinv(a, *known.factor, known_pinv_value(a, known))
    f, left = factor(a, None, rtol, atol, method)
    if a.dtype == mx.complex64 or a.shape[-2] >= 4 * a.shape[-1]:
        return attach_pinv(a, *f, astype(pinv_value(a, f, left), a.dtype))
    # Near the square the left vectors are worth their memory: the gradient needs no other product of size n^3.
    left = mx.stop_gradient(left_vectors(a, f) if left is None else astype(left, a.dtype), stream=CPU)
    return attach_pinv_by_vectors(a, *f, left, pinv_value(a, f, left))


def matrix_rank(a, *, rtol=None, atol=None, hermitian=False):
    """Number of singular values above ``max(atol, rtol * s_max)``.

    Args:
        a: ``(..., m, n)``.
        rtol: As in :func:`pinv`.
        atol: As in :func:`pinv`.
        hermitian: As in :func:`pinv`.

    Returns:
        ``(...)`` int32; 0 for a matrix with NaN or Inf. No gradient.

    Raises:
        ValueError: for a shape or tolerance that does not fit.
        TypeError: for what is no array.

    Example:
        >>> int(matrix_rank(mx.ones((3, 2))))
        1
    """
    a, f = _small_factor("matrix_rank", a, rtol, atol, hermitian)
    return mx.zeros(a.shape[:-2], mx.int32) if f is None else rank(a, f)


def diagnose(a, *, rtol=None, atol=None):
    """Rank, condition and gap of a matrix, in lazy arrays that survive ``mx.compile``.

    Args:
        a: ``(..., m, n)``.
        rtol: As in :func:`pinv`.
        atol: As in :func:`pinv`.

    Returns:
        A :class:`Diagnosis` of arrays ``(...)``. Its ``gap`` is what the gradient of :func:`pinv` divides by.

    Raises:
        ValueError: for a shape or tolerance that does not fit.
        TypeError: for what is no array.

    Example:
        >>> diagnose(mx.array([[2.0, 0.0], [0.0, 1.0]])).cond
        array(2, dtype=float32)
    """
    a, f = _small_factor("diagnose", a, rtol, atol, False)
    batch = a.shape[:-2]
    if f is None:
        zeros, ones = mx.zeros(batch, mx.int32), mx.ones(batch)
        return Diagnosis(zeros, ones, ones, mx.zeros(batch), mx.ones(batch, mx.bool_))
    with on_cpu():
        kept = f.kept > 0
        dtype = _dtypes.real(_dtypes.working(a))
        last = mx.min(mx.where(kept, f.s, mx.array(float("inf"), f.s.dtype)), axis=-1)
        s_max = f.s[..., 0]
        cond = mx.where(mx.any(kept, axis=-1), s_max / last, mx.full(s_max.shape, float("inf"), s_max.dtype))
        values = (cond, _rank.gap(f.s, kept), s_max / f.r[..., 0, 0])
        cond, gap, s_max = (x.astype(dtype) for x in values)
        return Diagnosis(rank(a, f), cond, gap, s_max, mx.isfinite(f.s[..., 0]))


def rank(a, f: Factor):
    """The rank that a factor of ``a`` decided, int32."""
    with on_cpu():
        count = mx.sum(f.kept, axis=-1)
        return (count / 2 if a.dtype == mx.complex64 else count).astype(mx.int32)


def _small_factor(name, a, rtol, atol, hermitian):
    """Working ``a`` and the :class:`Factor` of its taller orientation, None if it is empty."""
    a = _matrix(name, a, hermitian)
    work = _dtypes.working(a)
    rtol, atol = _tolerances(name, a, rtol, atol)
    with large(work):
        a = _working(a, work, hermitian)
        if a.size == 0:
            return a, None
        return a, factor(a if a.shape[-2] >= a.shape[-1] else h(a), None, rtol, atol)[0]


def _matrix(name, a, hermitian=False):
    a = _checks.array(name, "a", a, 2)
    if hermitian and a.shape[-1] != a.shape[-2]:
        _checks.fail(name, "a Hermitian matrix must be square", f"shape {a.shape}", "Leave hermitian=False.")
    return a


def _tolerances(name, a, rtol, atol):
    batch = a.shape[:-2]
    return _checks.tolerance(name, "rtol", rtol, batch), _checks.tolerance(name, "atol", atol, batch)


def _working(a, dtype, hermitian):
    a = astype(a, dtype)
    return (a + h(a)) * 0.5 if hermitian else a
