"""Readouts for a grid of penalties from one eigendecomposition."""

from collections.abc import Sequence

import mlx.core as mx

from .._factor import right_factor_of_gram
from .._mlx import dtypes, on_cpu
from .._rules import gcv_score, squares_and_degrees
from ..streaming import ReadoutStatistics


def solve_grid(stats: ReadoutStatistics, l2: Sequence[float]) -> tuple[mx.array, mx.array, mx.array]:
    r"""The readouts for every penalty of a grid, from one factorization of the statistics.

    With the centred :math:`S_{xx} = V \Lambda V^T` and :math:`r = V^T S_{xy}`, the weights are
    :math:`V (\Lambda + l_2)^{-1} r`. The scores are those of :func:`pinvnn.streaming.gcv_moments`.

    Args:
        stats (ReadoutStatistics): Statistics of n inputs and k targets, with a bias.
        l2 (list(float)): G penalties.

    Returns:
        tuple(array, array, array): Weights ``(G, k, n)``, biases ``(G, k)`` and generalized cross validation scores
        ``(G,)``, in float32, the last NaN where the fit leaves no degrees of freedom.
    """
    m = stats.moments
    with on_cpu():
        n = m.xx.shape[0]
        f = right_factor_of_gram(m.xx, mx.float64, m.xx.shape, (n * dtypes.eps(mx.float64)) ** 0.5)
        v, values = f.v, ((f.s / f.r[0]) ** 2)[:, None]
        rotated = v.T @ m.xy
        weights, biases, scores = [], [], []
        for penalty in l2:
            if penalty == 0:  # needs a decision on the rank, which the statistics make
                weight, bias = stats.solve(0.0)
                assert bias is not None
                score = stats.gcv(0.0)
            else:
                shrunk = values + penalty
                weight = (v @ (rotated / shrunk)).T
                bias = m.y_mean - weight @ m.x_mean
                score = gcv_score(m.count, *squares_and_degrees(m.count, m.yy, rotated, f, penalty, True))
            weights.append(weight.astype(mx.float32))
            biases.append(bias.astype(mx.float32))
            scores.append(score.astype(mx.float32))
        return mx.stack(weights), mx.stack(biases), mx.stack(scores)


def score_spread(stats: ReadoutStatistics, weights: mx.array) -> mx.array:
    """Standard deviation over the rows of the outputs of readouts, the root mean square of all outputs.

    Args:
        stats (ReadoutStatistics): Statistics of the rows.
        weights (array): Weights ``(G, k, n)``.

    Returns:
        array: ``(G,)`` in float32.
    """
    m = stats.moments
    with on_cpu():
        w = weights.astype(mx.float64)
        return mx.sqrt(mx.mean(mx.sum((w @ m.xx) * w, axis=-1), axis=-1) / m.count).astype(mx.float32)
