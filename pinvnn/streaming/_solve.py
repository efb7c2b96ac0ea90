"""Readouts from moments: the ridge solution and its generalized cross validation score."""

import mlx.core as mx

from .._factor import default_rtol
from .._lstsq import normal_lstsq
from .._mlx import checks, dtypes, on_cpu
from .._ridge import normal_ridge
from .._types import Penalty
from ._moments import Moments


def solve_moments(
    m: Moments, l2: Penalty = 0.0, *, bias: bool = True, dtype: mx.Dtype = mx.float32
) -> tuple[mx.array, mx.array | None]:
    r"""The readout that minimizes :math:`\sum_i w_i |y_i - W x_i - b|^2 + \sum l_2 W^2` over the rows of ``m``.

    Differentiable in the moments and in ``l2``. The intercept is never penalised: it is :math:`b = m_y - W m_x`.

    Args:
        m: Moments of the rows, made with the same ``bias``.
        l2: Penalty, as in :func:`pinvnn.ridge` for a solution ``(n, k)``: a scalar, ``(k,)``, ``(n, 1)`` or ``(n, k)``.
            The number 0 means the solution of minimum norm, with the cutoff of :func:`pinvnn.lstsq`; an array that
            holds 0 gives NaN if the problem is singular.
        bias: Whether there is an intercept.
        dtype: Of the result, and of the rows: the cutoff of the rank depends on their precision.

    Returns:
        ``weight`` ``(k, n)`` and ``bias`` ``(k,)``, or None without an intercept.

    Raises:
        ValueError: If ``l2`` is negative, not finite, or has another shape.
    """
    l2 = _penalty("solve_moments", m, l2)
    with on_cpu():
        weight = _normal_solve(m.xx, m.xy, l2, dtype).T
        return weight.astype(dtype), (m.y_mean - weight @ m.x_mean).astype(dtype) if bias else None


def gcv_moments(m: Moments, l2: Penalty = 0.0, *, bias: bool = True, dtype: mx.Dtype = mx.float32) -> mx.array:
    r"""Generalized cross validation score of :func:`solve_moments`, a scalar; the smaller, the better ``l2``.

    .. math::
        \frac1k \sum_t \frac{\mathrm{RSS}_t / M}{(1 - \mathrm{df}_t / M)^2}, \qquad
        \mathrm{df}_t = \mathrm{tr}\, S_{xx} (S_{xx} + \mathrm{diag}\, l_{2,t})^{-1} + [\text{intercept}]

    with M the sum of the weights and RSS the weighted sum of squared residuals of target t. With ``l2 = 0`` df is the
    rank, plus one for the intercept. Differentiable in the moments and in ``l2``.

    Args:
        m: Moments of the rows, made with the same ``bias``.
        l2: Penalty, as in :func:`solve_moments`.
        bias: Whether there is an intercept.
        dtype: Of the result, and of the rows, as in :func:`solve_moments`.

    Returns:
        The score ``()``; NaN unless df is below M for every target.

    Raises:
        ValueError: As :func:`solve_moments`.

    References:
        G. H. Golub, M. Heath and G. Wahba, Technometrics 21 (1979), Eq. 1.4, doi 10.1080/00401706.1979.10489751.
    """
    l2 = _penalty("gcv_moments", m, l2)
    with on_cpu():
        solution = _normal_solve(m.xx, m.xy, l2, dtype)
        rss = m.yy + mx.sum(solution * (m.xx @ solution - 2 * m.xy), axis=0)
        free = m.count - _degrees_of_freedom(m.xx, l2, dtype) - (1 if bias else 0)
        # 1e-9 is far above the rounding error of a trace, and far below one row among all that can be streamed.
        free = mx.where(free > 1e-9 * m.count, free, mx.array(float("nan"), mx.float64))
        return mx.mean(m.count * rss / (free * free)).astype(dtype)


def _penalty(name, m, l2):
    n, k = m.xy.shape
    l2 = checks.penalty(name, l2, n, k, False)
    if isinstance(l2, mx.array) and l2.ndim > 2:
        checks.fail(name, "l2 must have at most 2 dimensions", f"shape {l2.shape}", "Solve for one penalty at a time.")
    return l2


def _degrees_of_freedom(xx, l2, dtype):
    """The trace of S (S + diag(l2))^-1, ``(1,)``, or ``(k,)`` if the targets have penalties of their own."""
    if not isinstance(l2, mx.array) or l2.ndim == 0 or l2.shape[-1] == 1:
        columns = [l2]
    elif l2.ndim == 1:
        columns = [l2[t : t + 1] for t in range(l2.shape[0])]
    else:
        columns = [l2[:, t : t + 1] for t in range(l2.shape[1])]
    eye = mx.eye(xx.shape[0], dtype=mx.float64)  # mx.diagonal has a scatter for a gradient, and that no derivative
    return mx.stack([mx.sum(eye * _normal_solve(xx, xx, column, dtype)) for column in columns])


def _normal_solve(gram, rhs, l2, dtype):
    """(gram + diag(l2))^-1 rhs, or gram^+ rhs if ``l2`` is the number 0."""
    if isinstance(l2, mx.array) or l2 != 0:
        return normal_ridge(gram, rhs, l2)
    # The cutoff of lstsq for rows of this dtype, but no finer than a float64 Gram matrix can resolve.
    n = gram.shape[0]
    return normal_lstsq(gram, rhs, rtol=max(default_rtol(n, n, dtype), (n * dtypes.eps(mx.float64)) ** 0.5))
