"""Least squares of minimum norm."""

import mlx.core as mx

from ._factor.right_factor import right_factor_of_gram
from ._methods import check_method, factor_problem
from ._mlx import checks, dtypes
from ._mlx.complex import real_and_imaginary, stack, unstack
from ._mlx.linear_problem import linear_problem
from ._mlx.place import astype, large, on_cpu
from ._rules.residuals import sums_of_squares
from ._rules.spectral import inverse
from ._types import ArrayLike, LstsqResult, Method, Stream, Tolerance


def lstsq(
    a: ArrayLike,
    b: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    rtol: Tolerance = None,
    atol: Tolerance = None,
    method: Method = "auto",
    stream: Stream = None,
) -> LstsqResult:
    r"""Weighted least squares of minimum norm, differentiable at every order.

    .. math::
        x = (D^{1/2} A)^+ D^{1/2} b, \qquad D = \mathrm{diag}(w)

    minimizes :math:`\sum_i w_i |b_i - a_i x|^2` and, among all minimizers, :math:`\|x\|`. Singular values of the
    weighted matrix ``s <= max(atol, rtol * s_max)`` are dropped, and the derivative is that of the truncated problem.

    Args:
        a: ``(..., m, n)``, of a dtype that :func:`pinv` takes.
        b: ``(m,)`` or ``(..., m, k)``: only a 1-D ``b`` is a vector. Batch dimensions of ``a`` and ``b`` broadcast.
        weights: ``(..., m)``, non-negative; weight 2 equals the row given twice. A row of weight 0 takes no part,
            whatever it holds, NaN included; the gradient at weight 0 of a finite row is exact. A negative weight gives
            NaN. A weighted problem with m < n costs O(n^3).
        rtol: Relative cutoff: a number or an array that broadcasts to the batch shape. Default ``min(m, n) * eps`` of
            the dtype, or 0 if ``atol`` is given. No gradient.
        atol: Absolute cutoff, of the same shapes. Default 0. No gradient.
        method: ``"auto"`` or a route by name. ``"gram"``: eigenvalues of the Gram matrix, for float32 and complex64.
            ``"svd"``: a singular value decomposition in float64, for real matrices. ``"cholesky"``: the fastest, for
            full rank; NaN if full rank cannot be verified. ``"slices"``: as "gram" for float32, with the Gram matrix
            summed on the default device by error-free slices, for large matrices on a GPU. Not with weights. "auto"
            tries Cholesky first where it can evaluate the arguments. It cannot inside ``mx.compile`` and ``mx.vmap``;
            pass ``"cholesky"`` there if full rank is known, which saves most of the time.
        stream: Where the large products of the gradient run. Default: the default device. Factorizations always run
            on the CPU, the only device that has them.

    Returns:
        :class:`LstsqResult` ``(solution, residuals, rank, singular_values)``. ``solution`` is ``(..., n, k)``, or
        ``(n,)`` for a vector ``b``. All but the rank are differentiable in ``a``, ``b`` and ``weights``; singular
        values that are numerically zero have gradient 0. Residuals and singular values of half input are float32.

    Raises:
        ValueError: If shapes do not match, a tolerance is negative or of a wrong shape, the method does not
            apply, or integers are beyond float32 (where values can be evaluated).
        TypeError: If an argument is not array-like.

    References:
        G. H. Golub and V. Pereyra, SIAM J. Numer. Anal. 10 (1973), Eq. 4.12, doi 10.1137/0710036.

    Example:
        >>> import mlx.core as mx
        >>> import pinvnn
        >>> a = mx.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
        >>> x = pinvnn.lstsq(a, mx.array([1.0, 3.0, 5.0])).solution
        >>> [round(float(i), 4) for i in x]
        [1.0, 2.0]
    """
    name = "lstsq"
    a, b, weights, vector, out, batches = linear_problem(name, a, b, weights, stream)
    work = a.dtype
    check_method(name, method, a, work, weights is not None)
    of_a = checks.batch_shape(name, *(batch for batch in batches if batch[0] != "b"))
    whole = checks.batch_shape(name, *batches)
    rtol, atol = checks.tolerance(name, "rtol", rtol, of_a), checks.tolerance(name, "atol", atol, of_a)
    with large(work, stream):
        a = mx.broadcast_to(a, (*of_a, *a.shape[-2:]))
        if a.size == 0 or 0 in whole:
            x, ranks, s = _empty(a, (*whole, a.shape[-1], b.shape[-1]))
            w = None if weights is None else astype(weights, mx.float64)
            with on_cpu():
                rest = real_and_imaginary(mx.broadcast_to(b, (*whole, *b.shape[-2:])))
            residuals = sums_of_squares(rest, w, work)
        else:
            some = b if b.shape[-1] else None
            f = factor_problem(a, weights, rtol, atol, method, some)
            ranks, s = f.rank, f.singular_values
            if some is None:
                x, residuals = mx.zeros((*whole, a.shape[-1], 0), work), mx.zeros((*whole, 0), s.dtype)
            else:
                x = stack(f.solve(b))
                residuals, x = f.residuals(b, x), unstack(x, work)
        residuals = astype(residuals, dtypes.real(work))
        x = x.astype(out)
        if vector:
            x, residuals = x.squeeze(-1), residuals.squeeze(-1)
        return LstsqResult(x, residuals, ranks, s)


def _empty(a: mx.array, shape) -> tuple[mx.array, mx.array, mx.array]:
    """Solution, rank and singular values where there is nothing to solve: all zero."""
    real = dtypes.real(a.dtype)
    least = min(a.shape[-2:])
    return mx.zeros(shape, a.dtype), mx.zeros(a.shape[:-2], mx.int32), mx.zeros((*a.shape[:-2], least), real)


def normal_lstsq(gram_matrix: mx.array, rhs: mx.array, rtol: mx.array | float | None = None) -> mx.array:
    """``gram_matrix^+ rhs`` truncated, differentiable: least squares from a Gram matrix that was accumulated elsewhere.

    Args:
        gram_matrix: A^H A ``(..., n, n)``, real, float64 or float32.
        rhs: A^H b ``(..., n, k)``.
        rtol: Relative cutoff on the singular values of A (the roots of the eigenvalues). Default
            ``sqrt(n * eps)`` of the dtype of ``gram_matrix``: what a Gram matrix can resolve.

    Returns:
        ``(..., n, k)`` in the dtype of ``rhs``.
    """
    n = gram_matrix.shape[-1]
    with on_cpu():
        if n == 0:
            return mx.zeros(rhs.shape, rhs.dtype)
        k = gram_matrix.astype(mx.float64)
        rtol = (n * dtypes.eps(gram_matrix.dtype)) ** 0.5 if rtol is None else rtol
        f = right_factor_of_gram(k, gram_matrix.dtype, (n, n), rtol, None)
        return (inverse(k * f.r * f.r, rhs.astype(mx.float64), f) * f.r * f.r).astype(rhs.dtype)
