"""How many arrays, and how much, cross between CPU and GPU in a training step. The table stands in docs/gpu.md."""

import mlx.core as mx
import pytest

from pinvnn import causal_ridge, causal_ridge_step, factorize, lsq_linear, lstsq, nnls, pinv, ridge
from pinvnn.heads._score import Tally
from pinvnn.nn import LeastSquaresReadout, LogisticReadout, MesaLayer, RidgeClassifier
from pinvnn.streaming import moments, solve_moments
from tests.support.cases import gaussian
from tests.support.crossings import crossings

pytestmark = pytest.mark.usefixtures("own_gpu")

N, K = 16, 2


def readout():
    return LeastSquaresReadout(N, K, l2=0.1)


def labels(b):
    return mx.zeros(b.shape[0], mx.int32)


def classes(a):
    return mx.arange(a.shape[0]) % 3


def logistic():
    return LogisticReadout(N, 3)


def mesa():
    mx.random.seed(0)
    return MesaLayer(N, 2)


def scored(a, b):
    weights = mx.ones((3, K, N))
    tally = Tally([weights], [weights[..., 0]], classification=False)
    with mx.stream(mx.cpu):
        return mx.sum(tally._layer(tally._predict(0, a), b)).astype(mx.float32)


# name: (a loss of (a, b); of its compiled gradient the most arrays that may cross, and their bytes in units of a's)
STEPS = {
    "pinv": (lambda a, b: mx.sum(pinv(a, method="cholesky") ** 2), 9, 3.03),
    "lstsq": (lambda a, b: mx.sum(lstsq(a, b, method="cholesky").solution), 4, 1.13),
    "lstsq, residuals": (lambda a, b: mx.sum(lstsq(a, b, method="cholesky").residuals), 4, 1.38),
    "ridge": (lambda a, b: mx.sum(ridge(a, b, 0.1)), 4, 1.13),
    "factorize": (lambda a, b: mx.sum(factorize(a, l2=0.1).solve(b)), 4, 1.13),
    "factorize, leverages": (lambda a, b: mx.sum(factorize(a, l2=0.1).leverages() ** 2), 6, 2.01),
    "factorize, logdet": (lambda a, b: mx.sum(factorize(a, l2=0.1).logdet()), 3, 1.01),
    "lsq_linear": (lambda a, b: mx.sum(lsq_linear(a, b, (0, None))), 6, 2.26),
    "nnls": (lambda a, b: mx.sum(nnls(a, b)), 6, 2.26),
    "adapt": (lambda a, b: mx.sum(readout().adapt(a, b, a) ** 2), 6, 1.13),
    "projected_loss": (lambda a, b: readout().projected_loss(a, b), 5, 1.26),
    "loo_loss": (lambda a, b: readout().loo_loss(a, b), 15, 2.57),
    "gcv": (lambda a, b: readout().gcv(a, b), 9, 1.26),
    "uncertainty": (lambda a, b: mx.sum(readout().uncertainty(a, b).leverage), 15, 2.57),
    "log_evidence": (lambda a, b: mx.sum(readout().log_evidence(a, b)), 7, 1.26),
    "RidgeClassifier.adapt": (lambda a, b: mx.sum(RidgeClassifier(N, K).adapt(a, labels(b), a) ** 2), 6, 1.13),
    "LogisticReadout.adapt": (lambda a, b: mx.sum(logistic().adapt(a, classes(a), a)), 6, 1.05),
    # Beside the rows the float64 gradient of [rows | 1], of which autodiff takes the part of the rows: counted whole.
    "LogisticReadout.projected_loss": (lambda a, b: logistic().projected_loss(a, classes(a)), 3, 3.18),
    # Refits are on the CPU like the step, and a graph of all their steps takes a minute to build.
    "LogisticReadout.loo_loss": (lambda a, b: logistic().loo_loss(a, classes(a), refits=0), 5, 1.1),
    "moments, solve_moments": (lambda a, b: mx.sum(solve_moments(moments(a, b), 0.1)[0]), 11, 1.13),
    "MesaLayer": (lambda a, b: mx.sum(mesa()(a[None, :64]) ** 2), 11, 0.11),
    "scores of heads": (scored, 6, 1.13),
    # Of a few positions: the blocks of a long sequence are the same for all.
    "causal_ridge": (lambda a, b: mx.sum(causal_ridge(a[:9], a[:9], b[:9], 1.0)), 6, 0.01),
    "causal_ridge_step": (lambda a, b: mx.sum(causal_ridge_step(a[:1], a[:1], b[:1], 1.0)[0]), 6, 0.01),
}


def count(name, rows, compiled):
    a, b = gaussian((rows, N), mx.float32), gaussian((rows, K), mx.float32, 1)
    mx.eval(a, b)
    arrays, size = crossings(mx.grad(STEPS[name][0], argnums=(0, 1)), a, b, compiled=compiled)
    return arrays, size / a.nbytes


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", STEPS)
def test_no_more_crosses_than_did(name, compiled):
    arrays, share = count(name, 3000, compiled)
    assert arrays <= STEPS[name][1]
    assert share <= STEPS[name][2]


@pytest.mark.parametrize("name", STEPS)
def test_none_crosses_in_a_loop_over_blocks(name):
    assert count(name, 2100, compiled=True)[0] == count(name, 5000, compiled=True)[0]
