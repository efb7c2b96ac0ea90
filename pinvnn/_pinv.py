"""The pseudo-inverse."""

import mlx.core as mx

from ._factor.full_rank import full_rank, inverse_by_lu
from ._factor.right_factor import factor
from ._factor.values import known_pinv_value, left_vectors, pinv_value
from ._mlx import checks, dtypes
from ._mlx.complex import h
from ._mlx.place import CPU, astype, large
from ._rules.pinv import attach_pinv, attach_pinv_by_vectors
from ._rules.square import attach_inverse


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
    a = checks.matrix("pinv", a, hermitian)
    out = dtypes.result(a)
    work = dtypes.working(a)
    method = checks.method("pinv", method, work)
    rtol, atol = checks.tolerances("pinv", a, rtol, atol)
    with large(work, stream):
        a = checks.in_working_dtype(a, work, hermitian)
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
