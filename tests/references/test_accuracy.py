"""Forward error in float64 beside NumPy's, against rational arithmetic, on random, graded and Hilbert matrices.

Single errors scatter by powers of ten (either library is now and then right to the last bit by luck), so a class of
matrices is compared by the median of its errors.
"""

import mlx.core as mx
import numpy as np
import pytest

from pinvnn import lstsq, pinv
from tests.support import exact
from tests.support.cases import array, hilbert, numpy, with_values

SEEDS = range(7)


def gaussian(*shape):
    return lambda seed: np.random.default_rng(seed).standard_normal(shape)


def conditioned(m, n, cond):
    return lambda seed: with_values(m, n, np.geomspace(1, 1 / cond, min(m, n)), seed)


def graded(m, n, rows, columns):
    """Gaussian with rows and columns scaled down geometrically to these factors."""
    scale = np.geomspace(1, rows, m)[:, None] * np.geomspace(1, columns, n)
    return lambda seed: np.random.default_rng(seed).standard_normal((m, n)) * scale


CLASSES = {
    "random tall": gaussian(12, 5),
    "random wide": gaussian(5, 12),
    "random square": gaussian(6, 6),
    "condition 1e8, tall": conditioned(12, 5, 1e8),
    "condition 1e8, wide": conditioned(5, 12, 1e8),
    "condition 1e12": conditioned(6, 6, 1e12),
    "graded columns": graded(12, 5, 1, 1e-10),
    "graded rows": graded(12, 5, 1e-12, 1),
    "graded square": graded(6, 6, 1e-6, 1),
    "graded both": graded(10, 5, 1e-5, 1e-5),
    "Hilbert": lambda seed: hilbert(4 + seed),  # 4 to 10
    "Hilbert, tall": lambda seed: hilbert(6 + seed)[:, : 3 + seed // 2],
}


def relative(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("name", CLASSES)
def test_forward_error(name):
    errors = {"pinv": ([], []), "lstsq": ([], [])}
    for seed in SEEDS:
        x = CLASSES[name](seed)
        b = np.random.default_rng(seed + 100).standard_normal((x.shape[0], 3))
        a, p = array(x, mx.float64), exact.pinv(x)
        pairs = {
            "pinv": (numpy(pinv(a)), np.linalg.pinv(x, rcond=1e-16), p),
            "lstsq": (numpy(lstsq(a, array(b, mx.float64)).solution), np.linalg.lstsq(x, b, rcond=1e-16)[0], p @ b),
        }
        for key, (ours, theirs, want) in pairs.items():
            errors[key][0].append(relative(ours, want))
            errors[key][1].append(relative(theirs, want))
    for key, (ours, theirs) in errors.items():
        assert np.median(ours) <= 10 * np.median(theirs), (key, ours, theirs)
        # No single matrix is lost either: the error is that of a backward stable method, up to a modest factor.
        cond = [np.linalg.cond(CLASSES[name](seed)) for seed in SEEDS]
        assert all(e <= 1e2 * c * 2.0**-52 for e, c in zip(ours, cond, strict=True)), (key, ours, cond)
