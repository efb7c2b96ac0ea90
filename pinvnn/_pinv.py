"""The pseudo-inverse."""

import mlx.core as mx

from ._methods import check_method, factor_problem
from ._mlx import checks, dtypes
from ._mlx.numbers import refuse_inexact_integers
from ._mlx.place import large
from ._types import ArrayLike, Method, Stream, Tolerance


def pinv(
    a: ArrayLike,
    *,
    rtol: Tolerance = None,
    atol: Tolerance = None,
    hermitian: bool = False,
    method: Method = "auto",
    stream: Stream = None,
) -> mx.array:
    r"""Moore-Penrose pseudo-inverse, differentiable at every order.

    Singular values ``s <= max(atol, rtol * s_max)`` are dropped. The derivative is that of the truncated pseudo-inverse
    itself, also where non-zero values are dropped; at a constant rank it is Golub and Pereyra's,

    .. math::
        dP = -P\,dA\,P + P P^H dA^H (I - A P) + (I - P A) dA^H P^H P.

    The derivative grows as the reciprocal of the gap between the last kept and the first dropped singular value (see
    :func:`diagnose`), and has no other pole. At the zero matrix, which keeps none, value and gradient are zero.

    Args:
        a: ``(..., m, n)``, float32, float64 (computed on the CPU) or complex64. float16 and bfloat16 are computed in
            float32 and returned as they came; integers and booleans become float32. Any dimension may be 0.
        rtol: Relative cutoff: a number or an array that broadcasts to the batch shape. Default ``min(m, n) * eps`` of
            the dtype, or 0 if ``atol`` is given. No gradient.
        atol: Absolute cutoff, of the same shapes. Default 0. No gradient.
        hermitian: Use the Hermitian part ``(a + a^H) / 2`` of a square ``a``; the gradient is Hermitian, too.
        method: ``"auto"`` or a route by name. ``"gram"``: eigenvalues of the Gram matrix, for float32 and complex64.
            ``"svd"``: a singular value decomposition in float64, for real matrices. ``"cholesky"``: the fastest, for
            full rank; NaN if full rank cannot be verified. ``"slices"``: as "gram" for float32, with the Gram matrix
            summed on the default device by error-free slices, for large matrices on a GPU. "auto" tries Cholesky first
            where it can evaluate the arguments. It cannot inside ``mx.compile`` and ``mx.vmap``; pass ``"cholesky"``
            there if full rank is known, which saves most of the time.
        stream: Where the large products of the gradient run. Default: the default device. Factorizations always run
            on the CPU, the only device that has them.

    Returns:
        ``(..., n, m)``. A matrix with NaN or Inf gives NaN; the other matrices of the batch are not affected.

    Raises:
        ValueError: If ``a`` is no matrix, a tolerance is negative or of a wrong shape, the method does not
            apply, or integers are beyond float32 (where values can be evaluated).
        TypeError: If an argument is not array-like.

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
    refuse_inexact_integers("pinv", "a", a, work)
    check_method("pinv", method, a, work)
    rtol, atol = checks.tolerances("pinv", a, rtol, atol)
    with large(work, stream):
        a = checks.in_working_dtype(a, work, hermitian)
        if a.size == 0:
            return mx.zeros((*a.shape[:-2], a.shape[-1], a.shape[-2]), out)
        return factor_problem(a, None, rtol, atol, method).pinv().astype(out)
