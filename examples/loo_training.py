"""Train a penalty, and a backbone with it, by exact leave-one-out: no validation split, no second fit.

    python examples/loo_training.py

Data: the 442 diabetes patients that scikit-learn ships. First, one penalty is learned on all rows by Newton's method,
which needs the second derivative of the leave-one-out error, and compared with the optimum of scikit-learn's RidgeCV on
a fine grid. Then, on random splits, the error on rows kept for a test: of RidgeCV; of penalties learned by
leave-one-out, one or one per feature; and of a backbone of 64 waves, trained by leave-one-out with its penalty, or by
the training error with a penalty that stays.
"""

import argparse
import time

import matplotlib.pyplot as plt
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from _common import SMALL, picture, spread
from sklearn.datasets import load_diabetes
from sklearn.linear_model import RidgeCV
from tqdm import tqdm

from pinvnn.nn import LeastSquaresReadout

GRID, TEST = np.logspace(-2, 4, 601), 142


class Model(nn.Module):
    """The features, and beside them the outputs of a backbone: waves of random directions and learned lengths.

    The backbone has one trainable number for each feature. Even so its leave-one-out error falls below its test error:
    what is minimized is no estimate any more.
    """

    def __init__(self, features, l2, waves=0):
        super().__init__()
        self.waves = waves
        if waves:
            self.scale = mx.full((features,), 0.3)
            self.directions, self.phases = mx.random.normal((features, waves)), mx.random.uniform(0, 6.28, (waves,))
            self.freeze(keys=["directions", "phases"], recurse=False)
        self.readout = LeastSquaresReadout(features + waves, 1, l2=l2, learn_l2=True)

    def __call__(self, x):
        if not self.waves:
            return x
        return mx.concatenate([x, mx.cos((self.scale * x) @ self.directions + self.phases)], axis=-1)


def train(model, loss, steps, rate, bar, after):
    """Minimize ``loss(model)`` over all trainable parameters by Adam; what ``after`` says before each step."""
    optimizer, history = optim.Adam(learning_rate=optim.cosine_decay(rate, steps)), []
    gradient = nn.value_and_grad(model, loss)
    for _ in range(steps):
        value, grads = gradient(model)
        history.append((value.item(), *after(model)))
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
        bar.update()
    return history


def learned_penalty(x, y, start=300.0, steps=12):
    """Newton's path of (l2, leave-one-out error) on all rows, in log(l2) with steps of at most 1; RidgeCV's curve."""
    readout, rows, targets = LeastSquaresReadout(x.shape[1], 1, l2=start, learn_l2=True), mx.array(x), mx.array(y)

    def error(log_l2):
        readout.log_l2 = log_l2
        return readout.loo_loss(rows, targets)

    at, path = mx.log(mx.array(start)), []
    slope = mx.grad(error)
    for _ in range(steps):
        path.append((mx.exp(at).item(), error(at).item()))
        at = at - mx.clip(slope(at) / mx.abs(mx.grad(slope)(at)), -1, 1)
    path.append((mx.exp(at).item(), error(at).item()))
    rival = RidgeCV(alphas=GRID, store_cv_results=True).fit(x, y)
    return path, rival.alpha_, rival.cv_results_.mean(axis=0)


def test_errors(x, y, seed, steps, bar):
    """Root mean square errors on test rows of each way, and the curves of the backbone's training."""
    order = np.random.default_rng(seed).permutation(len(y))
    rows, test = order[TEST:], order[:TEST]
    rival = RidgeCV(alphas=GRID).fit(x[rows], y[rows])
    errors = {"RidgeCV": np.sqrt(np.mean((rival.predict(x[test]) - y[test]) ** 2))}
    x_test, y_test, n = mx.array(x[test]), mx.array(y[test]), x.shape[1]
    x_train, y_train = mx.array(x[rows]), mx.array(y[rows])

    def judge(model):
        predicted = model.readout.adapt(model(x_train), y_train, model(x_test))
        fit = model.readout.adapt(model(x_train), y_train, model(x_train))
        return [mx.sqrt(mx.mean((a - b) ** 2)).item() for a, b in [(predicted, y_test), (fit, y_train)]]

    def leave_one_out(model):
        return model.readout.loo_loss(model(x_train), y_train)

    def training_error(model):
        return model.readout.projected_loss(model(x_train), y_train)

    curves = []
    for name, l2, waves, loss, rate in [
        ("one l2", 10.0, 0, leave_one_out, 0.1),
        ("l2 per feature", mx.full((n, 1), 10.0), 0, leave_one_out, 0.1),
        ("backbone, training error", 10.0, 64, training_error, 0.02),
        ("backbone, leave-one-out", 10.0, 64, leave_one_out, 0.02),
    ]:
        mx.random.seed(seed)
        model = Model(n, l2, waves)
        if loss is training_error:
            model.readout.freeze()  # it would end without a penalty
        curves = train(model, loss, steps, rate, bar, judge)
        errors[name] = judge(model)[0]
    return errors, [(np.sqrt(loo), *rest) for loo, *rest in curves]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10 if SMALL else 100)
    parser.add_argument("--splits", type=int, default=1 if SMALL else 5)
    args = parser.parse_args()
    x, y = (np.asarray(v, np.float32) for v in load_diabetes(return_X_y=True))
    x = (x - x.mean(0)) / x.std(0)
    began = time.perf_counter()
    with tqdm(total=args.steps * 4 * args.splits, unit="step", mininterval=1) as bar:
        path, best, curve = learned_penalty(x, y)
        splits = [test_errors(x, y, seed, args.steps, bar) for seed in range(args.splits)]

    print(f"\nall {len(y)} rows, leave-one-out mean square error, {len(path) - 1} steps from l2 = {path[0][0]:.0f}")
    print(f"  learned l2 {path[-1][0]:8.4f}   error {path[-1][1]:.4f}")
    print(f"  RidgeCV    {best:8.4f}   error {curve.min():.4f}   (best of {len(GRID)})")
    print(f"root mean square error on {TEST} test rows, {args.splits} splits")
    for name in splits[0][0]:
        print(f"  {name:<25}{spread([errors[name] for errors, _ in splits]):>14}")
    print(f"total {time.perf_counter() - began:.0f} s")

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.semilogx(GRID, curve, color="gray", label="RidgeCV, leave-one-out")
    left.plot(*zip(*path, strict=True), "o-", markersize=4, label="learned l2, Newton's steps")
    left.axvline(best, color="black", linestyle=":", label=f"RidgeCV's best, {best:.3g}", ymax=0.7)
    left.set(xlim=(0.1, 1000), xlabel="l2", ylabel="mean square error", title="One penalty, all rows")
    low, high = curve.min(), path[0][1]
    left.set_ylim(low - 0.1 * (high - low), high + 0.2 * (high - low))
    left.legend()
    curves = np.array([curves for _, curves in splits]).mean(0)
    for values, label in zip(curves.T, ["leave-one-out", "test rows", "training rows"], strict=True):
        right.plot(values, label=label)
    ridge = np.mean([errors["RidgeCV"] for errors, _ in splits])
    right.axhline(ridge, color="gray", linestyle="--", label="RidgeCV, test rows")
    title = f"Backbone and l2 by leave-one-out, mean of {args.splits} splits"
    right.set(xlabel="step", ylabel="root mean square error", title=title)
    low, high = right.get_ylim()
    right.set_ylim(low, high + 0.25 * (high - low))
    right.legend(loc="upper right", ncols=2)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    file = picture("loo_training.png")
    figure.savefig(file, dpi=150)
    print(f"picture: {file}")


if __name__ == "__main__":
    main()
