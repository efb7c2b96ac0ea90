"""Readouts from moments: the ridge solution, its generalized cross validation score, and its standard errors."""

import mlx.core as mx

from .._factor import default_rtol, penalty_matrix, right_factor_of_gram
from .._lstsq import normal_lstsq
from .._mlx import attach_like, checks, dtypes, on_cpu
from .._ridge import normal_ridge
from .._rules import gcv_score, squares_and_degrees, with_value
from .._types import Penalty
from ..nn import Uncertainty
from ._moments import Moments
from ._values import solution_value, spectral_value


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
    return readout("solve_moments", m, l2, bias, dtype)


def readout(name: str, m: Moments, l2: Penalty, bias: bool, dtype: mx.Dtype) -> tuple[mx.array, mx.array | None]:
    """:func:`solve_moments` by the ``name`` that errors show."""
    l2 = _penalty(name, m, l2)
    with on_cpu():
        weight = normal_solve(m.xx, m.xy, l2, dtype).T
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
    return validation_score("gcv_moments", m, l2, bias, dtype)


def validation_score(name: str, m: Moments, l2: Penalty, bias: bool, dtype: mx.Dtype) -> mx.array:
    """:func:`gcv_moments` by the ``name`` that errors show."""
    rss, free, _ = _squares_and_freedom(m, _penalty(name, m, l2), bias, dtype)
    with on_cpu():
        return gcv_score(m.count, rss, free).astype(dtype)


def uncertainty_of_moments(name: str, m: Moments, l2: Penalty, bias: bool, dtype: mx.Dtype) -> Uncertainty:
    """The :class:`pinvnn.nn.Uncertainty` of a readout, but for the leverages, which need the rows."""
    l2 = _penalty(name, m, l2)
    rss, free, inverses = _squares_and_freedom(m, l2, bias, dtype)
    with on_cpu():
        variance = rss / free
        used = mx.broadcast_to(m.count - free, variance.shape)
        covariance = variance[:, None, None] * inverses
        of_mean, of_bias = mx.zeros_like(variance), None
        if bias:
            of_mean = variance / m.count
            of_bias = (of_mean + mx.sum((m.x_mean @ covariance) * m.x_mean, axis=-1)).astype(dtype)
        parts = (variance, covariance, used, m.x_mean[None], of_mean)
        variance, covariance, used, x_mean, of_mean = (part.astype(dtype) for part in parts)
    return Uncertainty(variance, covariance, of_bias, None, used, x_mean, of_mean)


def _squares_and_freedom(m: Moments, l2, bias: bool, dtype: mx.Dtype) -> tuple[mx.array, mx.array, mx.array]:
    """Residual sums of squares ``(k,)``, degrees of freedom left and ``(S + diag(l2))^-1``, ``(1 or k, ...)``.

    The degrees of freedom are NaN unless they are positive.
    """
    with on_cpu():
        solution = normal_solve(m.xx, m.xy, l2, dtype)
        rss = mx.maximum(m.yy + mx.sum(solution * (m.xx @ solution - 2 * m.xy), axis=0), 0)
        eye = mx.eye(m.xx.shape[0], dtype=mx.float64)
        inverses = mx.stack([normal_solve(m.xx, eye, column, dtype) for column in _columns(l2)])
        used = mx.sum(inverses * m.xx, axis=(-2, -1))  # the trace of a product with a symmetric matrix
        free = m.count - used - (1 if bias else 0)
        fine = _from_eigenvalues(m, l2, bias, dtype)
        if fine is not None:  # the same with more digits where little is left of the rows
            rss = with_value(rss, mx.where(mx.isnan(rss), rss, mx.broadcast_to(fine[0], rss.shape)), 1)
            return rss, with_value(free, mx.broadcast_to(fine[1], free.shape), 1), inverses
        # 1e-9 is far above the rounding error of a trace, and far below one row among all that can be streamed.
        return rss, mx.where(free > 1e-9 * m.count, free, mx.array(float("nan"), mx.float64)), inverses


def _from_eigenvalues(m: Moments, l2, bias: bool, dtype: mx.Dtype) -> tuple[mx.array, mx.array] | None:
    """:func:`squares_and_degrees` as constants, or None if the penalty differs by feature."""
    if m.xx.size == 0 or (isinstance(l2, mx.array) and l2.ndim == 2 and l2.shape[0] > 1):
        return None
    n = m.xx.shape[0]
    resolved = (n * dtypes.eps(mx.float64)) ** 0.5  # what a float64 Gram matrix resolves
    if isinstance(l2, mx.array):
        penalty, rtol = l2.astype(mx.float64).reshape(-1), resolved
    else:
        penalty, rtol = l2, max(default_rtol(n, n, dtype), resolved) if l2 == 0 else resolved
    m = Moments(*(mx.stop_gradient(part) for part in m))
    f = right_factor_of_gram(m.xx, mx.float64, m.xx.shape, rtol)
    squares, free = squares_and_degrees(m.count, m.yy, f.v.mT @ m.xy, f, penalty, bias)
    return squares, free


def _penalty(name, m, l2):
    n, k = m.xy.shape
    l2 = checks.penalty(name, l2, n, k, False)
    if isinstance(l2, mx.array) and l2.ndim > 2:
        checks.fail(name, "l2 must have at most 2 dimensions", f"shape {l2.shape}", "Solve for one penalty at a time.")
    return l2


def _columns(l2):
    """One penalty, or those of each target if they differ."""
    if not isinstance(l2, mx.array) or l2.ndim == 0 or l2.shape[-1] == 1:
        return [l2]
    return [l2[..., t : t + 1] for t in range(l2.shape[-1])]


def normal_solve(gram, rhs, l2, dtype):
    """(gram + diag(l2))^-1 rhs, or gram^+ rhs if ``l2`` is the number 0. By NumPy where values can be evaluated."""
    # The cutoff of lstsq for rows of this dtype, but no finer than a float64 Gram matrix can resolve.
    n = gram.shape[0]
    rtol = max(default_rtol(n, n, dtype), (n * dtypes.eps(mx.float64)) ** 0.5)
    penalty = penalty_matrix(l2)

    def plain(gram, rhs, l2):
        return normal_lstsq(gram, rhs, rtol=rtol) if minimum_norm else normal_ridge(gram, rhs, l2)

    minimum_norm = not isinstance(l2, mx.array) and l2 == 0
    value = solution_value(gram, rhs, penalty, rtol) if penalty.shape[-1] == 1 else None
    if value is None and penalty.shape[-2] == 1:
        value = spectral_value(gram, rhs, None if minimum_norm else penalty, rtol)
    if value is None:
        return plain(gram, rhs, penalty)
    return attach_like(plain, 3, (2, 2, 2, 2))(gram, rhs, penalty, value)
