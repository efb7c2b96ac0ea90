"""The same quantities from all rows at once, in NumPy's float64."""

import mlx.core as mx
import numpy as np


def rows(m, n, k, seed=0, mean=0.0, spread=1.0, dtype=mx.float32):
    """Random rows that a readout explains in part: x (m, n) about ``mean``, y (m, k), weights (m,)."""
    rng = np.random.default_rng(seed)
    x = mean + spread * rng.normal(size=(m, n))
    y = (x - mean) / spread @ rng.normal(size=(n, k)) + 0.1 * rng.normal(size=(m, k)) + mean
    w = rng.integers(0, 4, size=m)
    with mx.stream(mx.cpu):
        return mx.array(x, dtype), mx.array(y, dtype), mx.array(w, dtype)


def to_numpy(*arrays):
    """Float64 copies."""
    out = [None if a is None else np.array(a).astype(np.float64) for a in arrays]
    return out[0] if len(out) == 1 else out


def ridge(x, y, l2=0.0, w=None, bias=True):
    """Weight (k, n) and bias (k,) or None: minimum norm where l2 is 0, one dense solve per target."""
    x, y, w = to_numpy(x, y, w)
    w = np.ones(len(x)) if w is None else w
    x_mean, y_mean = ((w @ x, w @ y) if bias else (0 * x[0], 0 * y[0]))
    x_mean, y_mean = x_mean / w.sum(), y_mean / w.sum()
    root = np.sqrt(w)[:, None]
    x, y = root * (x - x_mean), root * (y - y_mean)
    l2 = np.broadcast_to(np.asarray(l2, np.float64), (x.shape[1], y.shape[1]))
    columns = []
    for penalty, target in zip(l2.T, y.T, strict=True):
        rows_, targets = np.vstack([x, np.diag(np.sqrt(penalty))]), np.append(target, np.zeros(x.shape[1]))
        columns.append(np.linalg.lstsq(rows_, targets, rcond=1e-7)[0])
    weight = np.stack(columns)
    return weight, y_mean - weight @ x_mean if bias else None


def gcv(x, y, l2=0.0, w=None, bias=True):
    """Golub, Heath and Wahba's score with the hat matrix of the dense problem, mean over the targets."""
    x, y, w = to_numpy(x, y, w)
    w = np.ones(len(x)) if w is None else w
    root, count = np.sqrt(w)[:, None], w.sum()
    design = np.hstack([x, np.ones((len(x), 1))]) if bias else x
    l2 = np.broadcast_to(np.asarray(l2, np.float64), (x.shape[1], y.shape[1]))
    scores = []
    for penalty, target in zip(l2.T, y.T, strict=True):
        prior = np.diag(np.append(penalty, [0.0] * bias))
        hat = root * design @ np.linalg.pinv(design.T @ (w[:, None] * design) + prior) @ (root * design).T
        rest = root[:, 0] * target - hat @ (root[:, 0] * target)
        scores.append(rest @ rest / count / (1 - np.trace(hat) / count) ** 2)
    return np.mean(scores)


def assert_close(got, expected, tolerance):
    """The largest difference is below ``tolerance`` times the largest expected entry."""
    got, expected = np.array(got, np.float64), np.array(expected, np.float64)
    assert got.shape == expected.shape
    scale = np.max(np.abs(expected), initial=0.0) or 1.0
    difference = np.max(np.abs(got - expected), initial=0.0)
    assert difference <= tolerance * scale, f"differs by {difference:.3g}, of {scale:.3g}"  # NaN fails too
