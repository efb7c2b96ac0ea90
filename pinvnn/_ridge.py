"""Ridge regression (Tikhonov regularization) with every shape of penalty."""

import mlx.core as mx

from ._factor.ridge_inverse import gram_inverse, in_range, penalty_matrix
from ._factor.ridge_values import RidgeInverse
from ._factor.right_factor import right_factor_of_gram
from ._methods import check_ridge_method, factor_ridge
from ._mlx import checks, dtypes
from ._mlx.complex import unstack
from ._mlx.linear_problem import linear_problem
from ._mlx.place import large, on_cpu
from ._rules.ridge import gram_normal
from ._types import ArrayLike, Penalty, RidgeMethod, Stream


def ridge(
    a: ArrayLike,
    b: ArrayLike,
    l2: Penalty,
    *,
    weights: ArrayLike | None = None,
    method: RidgeMethod = "auto",
    stream: Stream = None,
) -> mx.array:
    r"""Ridge regression, differentiable at every order in all of ``a``, ``b``, ``l2`` and ``weights``.

    .. math::
        W = \arg\min_W \sum_{i,t} w_i\,|b_{it} - a_i W_t|^2 + \sum_{j,t} l_{jt}\,|W_{jt}|^2,

    a sum and not a mean: ``l2`` is scikit-learn's ``alpha``. One factorization serves all targets, unless ``l2``
    differs both by feature and by target.

    Args:
        a: ``(..., m, n)``, of a dtype that :func:`pinvnn.pinv` takes.
        b: ``(m,)`` or ``(..., m, k)``: only a 1-D ``b`` is a vector. Batch dimensions of ``a`` and ``b`` broadcast.
        l2: Non-negative penalty that broadcasts against the solution: a scalar, ``(k,)`` per target, ``(n, 1)`` per
            feature, ``(n, k)`` (for a vector ``b``: a scalar or ``(n,)``). A negative number raises; a negative value
            inside an array gives NaN.
        weights: ``(..., m)``, non-negative; weight 2 equals the row given twice. A row of weight 0 takes no part,
            whatever it holds, NaN included. A negative weight gives NaN.
        method: ``"primal"`` solves an n x n system, ``"dual"`` an m x m one, which needs every l2 > 0 and the same l2
            for all features. ``"auto"`` takes the dual form if m < n and it applies. ``"cholesky"`` takes the smaller
            form, too, and never singular vectors: for float64, ``l2 = 0`` of full rank, or many penalties by target
            inside ``mx.compile`` and ``mx.vmap``, where "auto" takes them since it cannot evaluate the arguments. NaN
            where that is not accurate.
        stream: Where the large products of the gradient run. Default: the default device. Factorizations always run
            on the CPU, the only device that has them.

    Returns:
        ``(..., n, k)``, or ``(n,)`` for a vector ``b``. NaN where the system is singular to working precision: with
        ``l2 = 0`` if ``a`` is rank deficient (use :func:`pinvnn.lstsq` for the minimum norm).

    Raises:
        ValueError: If shapes do not match, ``l2`` is a negative number, the method does not
            apply, or integers are beyond float32 (where values can be evaluated).
        TypeError: If an argument is not array-like.

    References:
        A. E. Hoerl and R. W. Kennard, Ridge regression, Technometrics 12 (1970), Eq. 2.1, doi
        10.1080/00401706.1970.10488634. The derivative: docs/math.md.

    Example:
        >>> import mlx.core as mx
        >>> import pinvnn
        >>> pinvnn.ridge(mx.array([[1.0], [1.0]]), mx.array([2.0, 4.0]), 1.0)
        array([2], dtype=float32)
    """
    name = "ridge"
    a, b, weights, vector, out, batches = linear_problem(name, a, b, weights, stream)
    work, n, k = a.dtype, a.shape[-1], b.shape[-1]
    l2 = checks.penalty(name, l2, n, k, vector)
    unpenalized = isinstance(l2, float) and l2 == 0
    l2 = penalty_matrix(l2, vector)
    check_ridge_method(name, method, l2)
    whole = checks.batch_shape(name, *batches, ("l2", l2.shape[:-2]))
    with large(work, stream):
        if a.size == 0 or b.size == 0 or 0 in whole:
            x = _without_data(l2, (*whole, n, k), work)
        else:
            f = factor_ridge(a, weights, l2, method, unpenalized, b)
            x = unstack(f.solve(b), work)
        x = x.astype(out)
        return x.squeeze(-1) if vector else x


def _without_data(l2: mx.array, shape, dtype: mx.Dtype) -> mx.array:
    """The solution without data: 0 where the penalty is positive, NaN where it is 0 (any value would do)."""
    with on_cpu():
        x = mx.where(l2 > 0, mx.zeros(shape, mx.float64), mx.array(float("nan"), mx.float64))
        return x.astype(dtype)


def normal_ridge(gram: mx.array, rhs: mx.array, l2: Penalty) -> mx.array:
    """``(gram + diag(l2))^-1 rhs``, differentiable: ridge from a Gram matrix that was accumulated elsewhere.

    Args:
        gram: A^T A ``(..., n, n)``, real.
        rhs: A^T b ``(..., n, k)``.
        l2: As in :func:`ridge`.

    Returns:
        ``(..., n, k)`` in the dtype of ``rhs``; NaN where singular.
    """
    n, k = rhs.shape[-2:]
    l2 = checks.penalty("ridge", l2, n, k, False)
    with on_cpu():
        if rhs.size == 0:
            return mx.zeros(rhs.shape, rhs.dtype)
        k, x = gram.astype(mx.float64), rhs.astype(mx.float64)
        l2 = penalty_matrix(l2)
        entries = gram.dtype
        if l2.shape[-2] > 1:
            inverse = gram_inverse(k, l2, entries, n)
        else:
            f = right_factor_of_gram(k, entries, (n, n), (n * dtypes.eps(entries)) ** 0.5)
            inverse = RidgeInverse(in_range(f, l2), "shared")
        return gram_normal(k, l2, x, inverse).astype(rhs.dtype)
