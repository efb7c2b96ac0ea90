"""How many arrays, and how much, cross between CPU and GPU in a training step. The table stands in docs/gpu.md."""

import mlx.core as mx
import pytest

from pinvnn import lstsq, pinv, ridge
from pinvnn.nn import LeastSquaresReadout, RidgeClassifier
from tests.support.cases import gaussian
from tests.support.crossings import crossings

N, K = 16, 2


def readout():
    return LeastSquaresReadout(N, K, l2=0.1)


def labels(b):
    return mx.zeros(b.shape[0], mx.int32)


# name: (a loss of (a, b), most arrays that may cross, most of their bytes in units of a's)
STEPS = {
    "pinv": (lambda a, b: mx.sum(pinv(a, method="cholesky") ** 2), 13, 3.03),
    "lstsq": (lambda a, b: mx.sum(lstsq(a, b, method="cholesky").solution), 9, 1.38),
    "ridge": (lambda a, b: mx.sum(ridge(a, b, 0.1)), 11, 1.38),
    "adapt": (lambda a, b: mx.sum(readout().adapt(a, b, a) ** 2), 16, 1.39),
    "projected_loss": (lambda a, b: readout().projected_loss(a, b), 6, 1.26),
    "loo_loss": (lambda a, b: readout().loo_loss(a, b), 25, 5.9),
    "RidgeClassifier.adapt": (lambda a, b: mx.sum(RidgeClassifier(N, K).adapt(a, labels(b), a) ** 2), 16, 1.39),
}


def count(name, rows):
    a, b = gaussian((rows, N), mx.float32), gaussian((rows, K), mx.float32, 1)
    mx.eval(a, b)
    arrays, size = crossings(mx.grad(STEPS[name][0], argnums=(0, 1)), a, b)
    return arrays, size / a.nbytes


@pytest.mark.parametrize("name", STEPS)
def test_no_more_crosses_than_did(name):
    arrays, share = count(name, 3000)
    assert arrays <= STEPS[name][1]
    assert share <= STEPS[name][2]


@pytest.mark.parametrize("name", STEPS)
def test_none_crosses_in_a_loop_over_blocks(name):
    assert count(name, 2100)[0] == count(name, 5000)[0]
