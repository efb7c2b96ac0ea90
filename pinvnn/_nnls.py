"""Least squares with non-negative or bounded solutions."""

import math
from numbers import Real

import mlx.core as mx

from ._factor.bounded_values import bounded_solution
from ._factor.ridge_inverse import penalty_matrix
from ._mlx import checks
from ._mlx.linear_problem import linear_problem
from ._mlx.place import astype, on_cpu
from ._rules.bounded import attach_bounded
from ._types import ArrayLike, Bounds, Penalty


def nnls(a: ArrayLike, b: ArrayLike, *, l2: Penalty = 0.0, weights: ArrayLike | None = None) -> mx.array:
    r"""Non-negative least squares of any batch and several targets, differentiable at every order.

    .. math::
        x = \arg\min_{x \ge 0} \sum_i w_i\,|b_i - a_i x|^2 + \sum_j l_j x_j^2

    :func:`lsq_linear` with the bounds ``(0, None)``; what is said there holds here.

    Args:
        a: ``(..., m, n)``: float32, float64, float16 or bfloat16 (integers become float32).
        b: ``(m,)`` or ``(..., m, k)``: only a 1-D ``b`` is a vector. Batch dimensions of ``a`` and ``b`` broadcast.
        l2: Non-negative penalty that broadcasts against the solution, as in :func:`ridge`.
        weights: ``(..., m)``, non-negative; weight 2 equals the row given twice.

    Returns:
        ``(..., n, k)``, or ``(n,)`` for a vector ``b``.

    Raises:
        ValueError: If shapes do not match, ``l2`` is a negative number, or integers are beyond float32.
        TypeError: If an argument is complex or not array-like.

    References:
        C. L. Lawson and R. J. Hanson, Solving Least Squares Problems, 1974, chapter 23.

    Example:
        >>> import mlx.core as mx
        >>> import pinvnn
        >>> a = mx.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
        >>> pinvnn.nnls(a, mx.array([5.0, 3.0, 1.0]))  # the slope would be -2
        array([3, 0], dtype=float32)
    """
    return _solve("nnls", a, b, (0.0, None), l2, weights)


def lsq_linear(
    a: ArrayLike, b: ArrayLike, bounds: Bounds, *, l2: Penalty = 0.0, weights: ArrayLike | None = None
) -> mx.array:
    r"""Least squares with bounds on the solution, of any batch and several targets, differentiable at every order.

    .. math::
        x = \arg\min_{lower \le x \le upper} \sum_i w_i\,|b_i - a_i x|^2 + \sum_j l_j x_j^2

    The derivative is that of the variables strictly within their bounds; the others stay where they are, or move with
    their bound. A variable on its bound stays there also where the minimizer without that bound would be the same (its
    multiplier is 0): there the solution has a kink, and this is the derivative on the side on which it stays.

    Values are computed in float64, by block principal pivoting for all problems of the batch at once on the Gram
    matrix; a float64 solution is refined, and its conditions looked at again, with the rows, if columns are far from
    orthogonal. A problem that this does not solve (``a`` is rank deficient, say, or columns nearly cancel in the
    solution) is solved by an active-set method on the rows. Inside ``mx.compile`` and ``mx.vmap`` no value can be
    looked at: 24 rounds of pivoting are made, and a problem is NaN that then does not meet the conditions of Karush,
    Kuhn and Tucker, or whose solution, with columns of length 1, is 2,000 times (float32: 65,000 times) as large as the
    right-hand side.

    Args:
        a: ``(..., m, n)``: float32, float64, float16 or bfloat16 (integers become float32).
        b: ``(m,)`` or ``(..., m, k)``: only a 1-D ``b`` is a vector. Batch dimensions of ``a`` and ``b`` broadcast.
        bounds: ``(lower, upper)``, each a number, None for no bound, or an array that broadcasts against the solution:
            ``(k,)`` per target, ``(n, 1)`` per variable, ``(n, k)`` (for a vector ``b``: ``(n,)``). Infinite bounds are
            none; equal bounds hold a variable. Arrays are differentiable.
        l2: Non-negative penalty that broadcasts against the solution, as in :func:`ridge`.
        weights: ``(..., m)``, non-negative; weight 2 equals the row given twice. A row of weight 0 takes no part,
            whatever it holds, NaN included.

    Returns:
        ``(..., n, k)``, or ``(n,)`` for a vector ``b``. Where several solutions are best (``a`` without full column
        rank and no penalty), one of them. Outside of ``mx.compile`` and ``mx.vmap``, with fewer rows than columns and a
        variable that may be both positive and negative, it is that of :func:`lstsq` if the bounds allow it; otherwise
        its free variables are the shortest beside the held ones, and so they stay for the derivative, which in ``l2``
        is NaN. Elsewhere it is not always the shortest, and the derivative is NaN unless the columns of the free
        variables are independent. Without rows, the value within the bounds that is nearest to 0. A problem is NaN
        if its matrix or its target has NaN or Inf, a weight or penalty is negative, or a lower bound in an array
        exceeds the upper.

    Raises:
        ValueError: If shapes do not match, numbers as bounds leave no room, ``l2`` is a negative number, or
            integers are beyond float32.
        TypeError: If an argument is complex or not array-like, or ``bounds`` is no pair.

    References:
        L. F. Portugal, J. J. Judice and L. N. Vicente, Math. Comp. 63 (1994), 625-643, doi
        10.1090/S0025-5718-1994-1250776-4; P. B. Stark and R. L. Parker, Comput. Stat. 10 (1995), 129-141. The
        derivative: docs/math.md, section 18.

    Example:
        >>> import mlx.core as mx
        >>> import pinvnn
        >>> a = mx.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
        >>> pinvnn.lsq_linear(a, mx.array([1.0, 3.0, 5.0]), (None, 1.5))
        array([1.5, 1.5], dtype=float32)
    """
    return _solve("lsq_linear", a, b, bounds, l2, weights)


def _solve(name, a, b, bounds, l2, weights) -> mx.array:
    a, b = checks.array(name, "a", a, 2), checks.array(name, "b", b, 1)
    for label, x in (("a", a), ("b", b)):
        checks.real_array(name, label, x, x.dtype)
    a, b, weights, vector, out, batches = linear_problem(name, a, b, weights)
    n, k = a.shape[-1], b.shape[-1]
    l2 = penalty_matrix(checks.penalty(name, l2, n, k, vector), vector)
    lower, upper, plain = check_bounds(name, bounds, n, k, vector)
    whole = checks.batch_shape(
        name, *batches, *((label, x.shape[:-2]) for label, x in (("l2", l2), ("lower", lower), ("upper", upper)))
    )
    if a.size == 0 or b.size == 0 or 0 in whole:
        with on_cpu():
            zero = mx.zeros((*whole, n, k), mx.float64)
            x = mx.minimum(mx.maximum(zero, lower), upper).astype(a.dtype)
    else:
        x, state, shortest = bounded_solution(a, b, weights, l2, lower, upper)
        x = attach_bounded(a, b, weights, l2, lower, upper, x, state, shortest, plain)
    x = astype(x, out)
    return x.squeeze(-1) if vector else x


def check_bounds(name: str, bounds: Bounds, n: int, k: int, vector: bool) -> tuple[mx.array, mx.array, bool]:
    """Both as float64 ``(..., 1 or n, 1 or k)``, and whether they are numbers among 0 and infinity."""
    try:
        lower, upper = bounds
    except (TypeError, ValueError):
        checks.fail(name, "bounds must be a pair (lower, upper)", f"{bounds!r:.40}", "Pass (0, None).", TypeError)
    ends = [-math.inf if lower is None else lower, math.inf if upper is None else upper]
    plain = all(isinstance(x, Real) and float(x) in (0.0, math.inf, -math.inf) for x in ends)
    lower, upper = (_bound(name, label, x, n, k, vector) for label, x in zip(("lower", "upper"), ends, strict=True))
    if isinstance(lower, float) and isinstance(upper, float):
        if not lower <= upper:
            checks.fail(name, "lower must not exceed upper", f"{lower} and {upper}", "Exchange the bounds.")
        if lower == math.inf or upper == -math.inf:
            checks.fail(name, "some finite number must be within the bounds", f"{lower} and {upper}", "Use None.")
    return penalty_matrix(lower, vector), penalty_matrix(upper, vector), plain


def _bound(name, label, x, n, k, vector) -> mx.array | float:
    if isinstance(x, Real):
        return float(x)
    x, core = checks.array(name, label, x), (n,) if vector else (n, k)
    if x.dtype == mx.complex64:
        checks.fail(name, f"{label} must be real", "complex64", "Pass its real part.", TypeError)
    if not checks.broadcasts_to(x.shape[-len(core) :], core):
        fitting = "Pass a number, (n, 1) per variable or (k,) per target."
        checks.fail(name, f"{label} must broadcast against the solution {core}", f"shape {x.shape}", fitting)
    return x
