"""How sure a fit is of its weights and of its predictions."""

from typing import NamedTuple

import mlx.core as mx

from .._mlx import astype, on_cpu
from ._fit import factored, in_float64_of
from ._leave_one_out import merged, per_target, squares_and_freedom
from ._problem import ReadoutProblem


class Uncertainty(NamedTuple):
    r"""What :meth:`LeastSquaresReadout.uncertainty` returns. All fields are lazy: MLX computes only those you evaluate.

    With :math:`R = (X_c^\top D X_c + \mathrm{diag}\,l)^{-1}` and the residual variance :math:`\sigma^2`, the covariance
    of the weights is :math:`\sigma^2 R`: without a penalty that of least squares (``scipy.stats.linregress``,
    statsmodels' ``OLS``), with one that of the posterior under the prior that the penalty stands for, weights of
    variance :math:`\sigma^2 / l` (scikit-learn's ``BayesianRidge``).

    Attributes:
        residual_variance: ``(..., k)``: weighted sum of squared residuals over the degrees of freedom that are left.
        weight_covariance: ``(..., k, n, n)``.
        bias_variance: ``(..., k)``; None without an intercept.
        leverage: ``(..., m, k)``, the derivative of each prediction by its own target; None without rows.
        degrees_of_freedom: ``(..., k)``, effective, with the intercept: the sum of the leverages, and without a penalty
            the rank (plus one).
        x_mean: ``(..., 1, n)``; zeros without an intercept.
        mean_variance: ``(..., k)``, of a prediction at ``x_mean``; zeros without an intercept.
    """

    residual_variance: mx.array
    weight_covariance: mx.array
    bias_variance: mx.array | None
    leverage: mx.array | None
    degrees_of_freedom: mx.array
    x_mean: mx.array
    mean_variance: mx.array

    def predictive_std(self, x: mx.array) -> mx.array:
        """Standard deviation ``(..., q, k)`` of new targets at ``x`` (..., q, n): that of the fit, and the noise."""
        with on_cpu():
            wide = [astype(v, mx.float64) for v in (x, self.x_mean, self.weight_covariance)]
            x, x_mean, covariance = wide
            rows = (x - x_mean)[..., None, :, :]
            of_fit = mx.sum((rows @ covariance) * rows, axis=-1).mT
            rest = astype(self.residual_variance, mx.float64) + astype(self.mean_variance, mx.float64)
            return mx.sqrt(of_fit + rest[..., None, :]).astype(self.residual_variance.dtype)


def uncertainty(p: ReadoutProblem, weights_are: str = "counts") -> Uncertainty:
    """Covariance, leverages and degrees of freedom of a fit, from one factorization of its n x n form."""
    q = per_target(p)
    f = factored(q, lambda: in_float64_of(q))
    k = p.b.shape[-1]
    with on_cpu():
        # Weights that are no counts do not say how many rows there are.
        rows = None if p.w is None or weights_are == "counts" else mx.sum(p.w > 0, axis=-1).astype(mx.float64)
        squares, free = squares_and_freedom(p, f, rows)
        variance = mx.ones_like(squares) if weights_are == "inverse variances" else squares / free
        leverage = (1 - f.residual_and_rest[1])[..., None]
        leverage = mx.broadcast_to(leverage, (*leverage.shape[:-1], k)) if q is p else merged(leverage)
        used = mx.broadcast_to(f.used_degrees[..., None] if q is p else f.used_degrees, variance.shape)
        covariance = variance[..., None, None] * (f.gram_inverse[..., None, :, :] if q is p else f.gram_inverse)
        of_mean, of_bias = mx.zeros_like(variance), None
        x_mean = mx.zeros((1, p.a.shape[-1]), mx.float64)
        if p.means is not None:
            x_mean = astype(p.means()[0], mx.float64)
            of_mean = variance / p.total_weight[..., None]
            rows = x_mean[..., None, :, :]
            of_bias = of_mean + mx.sum((rows @ covariance) * rows, axis=(-2, -1))
            of_bias = of_bias.astype(p.entry_dtype)
        exact = (variance, covariance, leverage, used, x_mean, of_mean)
        variance, covariance, leverage, used, x_mean, of_mean = (part.astype(p.entry_dtype) for part in exact)
    return Uncertainty(variance, covariance, of_bias, leverage, used, x_mean, of_mean)
