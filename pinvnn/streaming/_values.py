"""Values of moments and readouts by NumPy, whose BLAS is fast on every platform, for arrays that can be evaluated.

MLX's wheel for Linux brings the reference BLAS, which is 10 to 50 times slower. Derivatives are attached to the values,
so that calls inside ``mx.grad`` see those of the plain functions.
"""

from functools import reduce

import mlx.core as mx
import numpy as np

from .._mlx import dtypes, on_cpu

# Normal random vectors whose images show how large the inverse of a matrix is. With a probability of 1e-10 the estimate
# from all of them is too small by a factor of SLACK.
PROBES, SLACK = 5, 100.0


def evaluated(*arrays: mx.array | None) -> bool:
    """Evaluate the arrays, or False where there are no values: inside ``mx.compile`` and ``mx.vmap``."""
    try:
        mx.eval(arrays)
    except ValueError:
        return False
    return True


def in_numpy(x: mx.array) -> np.ndarray:
    """``x``, without a copy if NumPy has the dtype."""
    if x.dtype == mx.bfloat16:
        x = x.astype(mx.float32)
    return np.asarray(x)


def moments_value(x: mx.array, y: mx.array, w: mx.array | None, bias: bool, block: int) -> list[np.ndarray]:
    """The fields of :class:`Moments` of rows ``x`` (m, n), ``y`` (m, k) and weights ``w`` (m,), in float64.

    ``block`` rows at a time are converted to float64.
    """
    x_all, y_all = in_numpy(x), in_numpy(y)
    w_all = None if w is None else in_numpy(w)
    blocks = (slice(i, i + block) for i in range(0, len(x_all), block))
    with np.errstate(all="ignore"):  # NaN, Inf and overflow are left in the sums, where the caller looks for them
        parts = (_block(x_all[rows], y_all[rows], None if w_all is None else w_all[rows], bias) for rows in blocks)
        return reduce(_merged, parts)


def _block(x, y, w, bias):
    if w is not None and not w.all():
        x, y, w = x[w != 0], y[w != 0], w[w != 0]
    z = np.empty((x.shape[0], x.shape[1] + y.shape[1]))
    z[:, : x.shape[1]], z[:, x.shape[1] :] = x, y
    n, w = x.shape[1], None if w is None else w.astype(np.float64)
    count = float(len(z)) if w is None else w.sum()
    mean = np.zeros(z.shape[1])
    if bias and count:
        mean = z.mean(axis=0) if w is None else w @ z / count
        z -= mean
    if w is not None:
        z *= np.sqrt(w)[:, None]
    x, y = z[:, :n], z[:, n:]
    # A product of an array with its own transpose costs half of what other products do.
    return [np.array(count), mean[:n], mean[n:], x.T @ x, x.T @ y, np.einsum("ij,ij->j", y, y)]


def _merged(a, b):
    """As :func:`merge_moments`."""
    count = a[0] + b[0]
    share = b[0] / (count or 1.0)
    dx, dy = b[1] - a[1], b[2] - a[2]
    scale = a[0] * share
    xx = a[3] + b[3]
    xx += np.outer(scale * dx, dx)
    xy = a[4] + b[4] + np.outer(scale * dx, dy)
    return [count, a[1] + share * dx, a[2] + share * dy, xx, xy, a[5] + b[5] + scale * dy * dy]


@np.errstate(all="ignore")
def solution_value(gram: mx.array, rhs: mx.array, l2: mx.array, rtol: float) -> mx.array | None:
    """``(gram + diag(l2))^-1 rhs``, or None where that is not certain to be well determined.

    Args:
        gram: ``(n, n)``, float64.
        rhs: ``(n, j)``.
        l2: One penalty for all targets, ``(1 or n, 1)``.
        rtol: Cutoff for the singular values of the rows. A Gram matrix that may have eigenvalues below its square,
            relative to the largest, is left to the routes that decide on the rank.
    """
    n = gram.shape[0]
    if not (rhs.size and evaluated(gram, rhs, l2)):
        return None
    k, penalty = np.array(gram), np.broadcast_to(np.asarray(l2)[:, 0], (n,))
    trace = np.trace(k)
    k[np.diag_indices(n)] += penalty
    diagonal = k.diagonal()
    if not (np.isfinite(k.sum()) and diagonal.min() > 0 and penalty.min() >= 0):
        return None
    unit = 1 / np.sqrt(diagonal)  # to a diagonal of 1, with which the units of the features drop out of the accuracy
    probes = np.random.default_rng(0).normal(size=(n, PROBES))
    k *= unit
    k *= unit[:, None]
    try:
        x = np.linalg.solve(k, np.hstack([unit[:, None] * np.asarray(rhs), unit[:, None] * probes, probes]))
    except np.linalg.LinAlgError:
        return None
    of_gram, of_scaled = unit[:, None] * x[:, -2 * PROBES : -PROBES], x[:, -PROBES:]
    size = SLACK * np.sqrt(np.square(of_scaled).sum(axis=0).max())
    accurate = np.linalg.norm(k) * size * dtypes.eps(mx.float64) < 1e-3
    # The penalty decides on the rank where it is large beside rounding errors; elsewhere the gram matrix does.
    inverse = SLACK * np.sqrt(np.square(of_gram).sum(axis=0).max())
    full = penalty.min() > 4 * n * dtypes.eps(mx.float64) * trace or trace * inverse * rtol * rtol < 1
    if not (accurate and full):
        return None
    with on_cpu():
        return mx.array(unit[:, None] * x[:, : rhs.shape[1]], mx.float64)


@np.errstate(all="ignore")
def spectral_value(gram: mx.array, rhs: mx.array, l2: mx.array | None, rtol: float) -> mx.array | None:
    """As :func:`solution_value`, from eigenvalues, for penalties that are the same for all features.

    ``l2`` is ``(1, 1 or k)``. None stands for the solution of minimum norm, ``gram^+ rhs``, in which singular values of
    the rows up to ``rtol`` of the largest are dropped.
    """
    n = gram.shape[0]
    if not (rhs.size and evaluated(gram, rhs, l2)):
        return None
    k = np.asarray(gram)
    if not 0 < np.trace(k) < np.inf or not np.isfinite(k.sum()):
        return None
    try:
        values, v = np.linalg.eigh(k)
    except np.linalg.LinAlgError:
        return None
    if l2 is None:
        s = np.sqrt(np.maximum(values, 0))
        kept = s > rtol * s[-1]
        scale = np.where(kept, 1 / np.where(kept, values, 1), 0)[:, None]
    else:
        penalty = np.asarray(l2)
        if not penalty.min() > 4 * n * dtypes.eps(mx.float64) * values[-1]:
            return None
        scale = 1 / (np.maximum(values, 0)[:, None] + penalty)
    with on_cpu():
        return mx.array(v @ (scale * (v.T @ np.asarray(rhs))), mx.float64)
