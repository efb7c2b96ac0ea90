"""Linear concept erasure (LEACE) from moments."""

import mlx.core as mx
import numpy as np

from .._mlx import dtypes, on_cpu
from ._moments import Moments


def eraser_of_moments(m: Moments, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    r"""Weight ``(n, n)`` and bias ``(n,)`` of the affine map that erases the targets from the inputs and moves x least.

    With the covariances :math:`\Sigma_{xx}, \Sigma_{xy}` the map is :math:`x - M (x - m_x)`,

    .. math::
        M = \Sigma_{xx}^{1/2} P \Sigma_{xx}^{-1/2}, \qquad P \text{ the projector on the range of }
        \Sigma_{xx}^{-1/2} \Sigma_{xy}.

    M is the same for every root R of :math:`\Sigma_{xx} = R R^T` in place of the symmetric one. Here R is that of the
    features scaled to variance 1, so that neither M nor a rank depends on the units of features and targets.
    """
    n = m.xx.shape[0]
    xx, xy, mean = (np.array(part) for part in (m.xx, m.xy, m.x_mean))
    removed = np.zeros((n, n))
    of_x = np.sqrt(np.where(xx.diagonal() > 0, xx.diagonal(), 1))
    of_y = np.sqrt(np.maximum(np.array(m.yy), 0))
    if xy.size:
        values, v = np.linalg.eigh(xx / of_x / of_x[:, None])
        kept = values > n * dtypes.eps(mx.float64) * values[-1]
        root, v = np.sqrt(values[kept]), v[:, kept]
        # Correlations of the whitened inputs with the targets.
        u, s, _ = np.linalg.svd(v.T @ (xy / of_x[:, None] / np.where(of_y > 0, of_y, 1)) / root[:, None])
        rank = int(np.sum(s > 1e-8))
        u = u[:, :rank]
        removed = ((of_x[:, None] * v * root) @ u) @ (u.T @ (v / of_x[:, None] / root).T)
    with on_cpu():
        weight, bias = np.eye(n) - removed, removed @ mean
        return mx.array(weight, mx.float64).astype(dtype), mx.array(bias, mx.float64).astype(dtype)
