r"""The marginal likelihood of Bayesian ridge regression.

Rows y_i ~ N(W x_i + c, sigma^2), each w_i times, with the prior W_tj ~ N(0, sigma^2 / l_tj) and a flat one on c. For a
target, with A the centred rows, K = A^T D A, M = sum(w), M' = M less 1 for the intercept, and F the least ridge
objective,

    log p(y | sigma^2) = -1/2 log|I + L^-1/2 K L^-1/2| - 1/2 log M - M'/2 log(2 pi sigma^2) - F / (2 sigma^2)
    log p(y)           = the same with  log Gamma(M'/2) - M'/2 log(pi F)  for the last two terms,

the second by integration over sigma^2 with its scale-invariant prior 1 / sigma^2. (The term in M belongs to the
intercept.) The derivation: docs/math.md.
"""

import math
from numbers import Real

import mlx.core as mx

from .._factor import inverse_of_ridge
from .._mlx import checks, in_float64, on_cpu
from .._rules import logdet
from .._types import ArrayLike
from ._leave_one_out import per_target
from ._problem import ReadoutProblem
from ._solution import smallest_objectives


def check_variance(name: str, variance: ArrayLike | None, k: int) -> mx.array | None:
    """A noise variance, None or a number or ``(..., 1 or k)``, in float64."""
    if variance is None:
        return None
    if isinstance(variance, Real):
        if not 0 < float(variance) < math.inf:
            checks.fail(name, "noise_variance must be positive and finite", variance, "Leave it out to integrate it.")
        return mx.array(float(variance), mx.float64)
    variance = checks.real_array(name, "noise_variance", variance, mx.float64)
    if variance.ndim and variance.shape[-1] not in (1, k):
        rule = f"noise_variance must be a number or have the shape (..., {k})"
        checks.fail(name, rule, f"shape {variance.shape}", "Pass one for each target.")
    return variance


def log_evidence(p: ReadoutProblem, noise_variance: mx.array | None) -> mx.array:
    """``(...)`` in float64, summed over the targets; the noise variance (..., k) or () is integrated out if None."""
    least, occam = smallest_objectives(p), _log_determinant(p)
    with on_cpu():
        rows = p.total_weight[..., None]
        parts = -occam / 2
        if p.means is not None:
            parts, rows = parts - mx.log(rows) / 2, rows - 1
        if noise_variance is not None:
            parts = parts - rows / 2 * mx.log(2 * math.pi * noise_variance) - least / (2 * noise_variance)
        else:
            parts = parts + log_gamma(rows / 2) - rows / 2 * mx.log(math.pi * least)
            parts = mx.where(rows > 0, parts, mx.array(float("nan"), mx.float64))
        shape = mx.broadcast_shapes(parts.shape, least.shape)
        return mx.sum(mx.broadcast_to(parts, shape), axis=-1)


def _log_determinant(p: ReadoutProblem) -> mx.array:
    """log|I + L^-1/2 K L^-1/2| of each target, ``(..., 1 or k)``, from the smaller of the n x n and the m x m form.

    inf where a feature has no penalty: the prior is then spread so thin that it expects no data at all.
    """
    q = per_target(p)
    a, w, l2 = q.a, q.w, q.l2
    assert l2 is not None
    if a.size == 0:
        with on_cpu():
            return mx.zeros((*p.a.shape[:-2], 1), mx.float64)
    with on_cpu():
        flat = mx.sum(mx.where(l2 == 0, -mx.log(l2), mx.zeros_like(l2)), axis=(-2, -1))
        l2 = mx.where(l2 == 0, mx.ones_like(l2), l2)
        if l2.shape[-2] > 1:  # in units of the features in which each has a penalty of 1
            a, l2 = in_float64(a) / mx.sqrt(l2).mT, mx.ones((1, 1), mx.float64)
        entries = a.dtype
        if w is None and a.shape[-2] < a.shape[-1]:
            a = in_float64(a).mT
    inverse, _ = inverse_of_ridge(a, w, l2, "feature", entries)
    value = logdet(a, w, l2, inverse)
    with on_cpu():
        value = value - a.shape[-1] * mx.log(l2[..., 0, 0]) + flat
        return value[..., None] if q is p else value


def log_gamma(x: mx.array) -> mx.array:
    """Logarithm of Gamma(x) of float64 ``x`` > 0 to rounding, made of functions that MLX differentiates at every order.

    Stirling's series at x + 10, and the recurrence Gamma(x + 1) = x Gamma(x) back from there.
    """
    with on_cpu():
        z = x + 10.0
        inverse = 1 / z
        square, tail = inverse * inverse, mx.zeros_like(x)
        for coefficient in (1 / 156, -691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
            tail = tail * square + coefficient
        down = mx.zeros_like(x)
        for i in range(10):
            down = down + mx.log(x + i)
        return (z - 0.5) * mx.log(z) - z + math.log(2 * math.pi) / 2 + tail * inverse - down
