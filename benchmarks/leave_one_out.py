"""What leave-one-out costs beside the loss of the best fit: ``python -m benchmarks.leave_one_out [--pairs N]``.

Milliseconds of a forward and backward pass through ``projected_loss`` and ``loo_loss``, measured in turns, and their
ratios, pair by pair; medians and quartiles of each: the gradient with respect to float32 features (4096, 128) of 8
targets, without and with that of the penalty, and a compiled training step of the backbone of ``examples/digits.py``.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from importlib import import_module
from time import perf_counter

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from pinvnn.nn import LeastSquaresReadout

from .pool import ROOT

METHODS = ("projected_loss", "loo_loss")


class Model(nn.Module):
    def __init__(self, features, readout):
        super().__init__()
        self.features, self.readout = features, readout


def of_features(method, learn_l2):
    rng = np.random.default_rng(0)
    x, y = (mx.array(rng.normal(size=(4096, n)).astype(np.float32)) for n in (128, 8))
    model = Model(x, LeastSquaresReadout(128, 8, l2=1.0, learn_l2=learn_l2))
    gradient = nn.value_and_grad(model, lambda: getattr(model.readout, method)(model.features, y))
    return lambda: mx.eval(gradient())


def training_step(method):
    sys.path.insert(0, str(ROOT / "examples"))
    example = import_module("digits")
    mx.random.seed(0)
    (x, labels), _ = example.digits(test=360)
    x, y = x[: example.BATCH], mx.eye(example.CLASSES)[labels[: example.BATCH]]
    readout = LeastSquaresReadout(example.FEATURES, example.CLASSES, l2=1.0, learn_l2=True)
    model, optimizer = Model(example.backbone(), readout), optim.Adam(1e-5)  # so slow that all steps are alike
    gradient = nn.value_and_grad(model, lambda: getattr(model.readout, method)(model.features(x), y))
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step():
        loss, slopes = gradient()
        optimizer.update(model, slopes)
        return loss

    return lambda: mx.eval(step(), state)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100)
    pairs = parser.parse_args().pairs
    cases = {"x": partial(of_features, learn_l2=False), "x and l2": partial(of_features, learn_l2=True)}
    for name, case in {**cases, "compiled step": training_step}.items():
        calls, times = [case(method) for method in METHODS], np.zeros((pairs + 3, 2))
        for i in range(len(times)):
            for j in (0, 1) if i % 2 else (1, 0):
                start = perf_counter()
                calls[j]()
                times[i, j] = 1e3 * (perf_counter() - start)
        times = times[3:]  # the first calls compile
        columns = {m: times[:, j] for j, m in enumerate(METHODS)} | {"ratio": times[:, 1] / times[:, 0]}
        shown = [(label, *np.percentile(values, [50, 25, 75])) for label, values in columns.items()]
        print(f"{name:14}", *("{} {:.2f} ({:.2f} .. {:.2f})".format(*part) for part in shown), sep="  ")


if __name__ == "__main__":
    main()
