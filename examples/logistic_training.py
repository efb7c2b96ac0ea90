"""Train a network for its logistic regression, by leave-one-out, beside a linear layer trained by cross-entropy.

    python examples/logistic_training.py

Data: 300 of the 1,797 digits that scikit-learn ships to train on, the rest to test. The same small backbone, the same
steps of Adam, all rows in each step. Three ways:

- linear layer: the last layer is an nn.Linear, everything is trained by the cross-entropy of the training rows;
- leave-one-out: the last layer is a LogisticReadout, fitted in each forward pass; the backbone and the penalty are
  trained by its leave-one-out cross-entropy. It is fitted once more to all rows at the end;
- linear layer, refitted: the first backbone with a LogisticReadout on its features, whose penalty is chosen by
  leave-one-out from a grid.

The expected calibration error is the mean difference between the confidence and the accuracy over 15 bins of the
confidence. A small one is no merit by itself: look at the log-loss beside it.
"""

import argparse
import time

import matplotlib.pyplot as plt
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from _common import SMALL, digits, picture, spread
from tqdm import tqdm

from pinvnn.nn import LogisticReadout

ROWS, FEATURES, CLASSES, GRID = 300, 24, 10, [10.0**e for e in range(-3, 4)]


def backbone():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), lambda x: x.flatten(1), nn.Linear(256, FEATURES), nn.Tanh(),
    )  # fmt: skip


class Network(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.backbone, self.head = backbone(), head


def by_linear(model, x, y):
    return nn.losses.cross_entropy(model.head(model.backbone(x)), y, reduction="mean")


def by_leave_one_out(model, x, y):
    return model.head.loo_loss(model.backbone(x), y, refits=0)


def train(model, loss, x, y, steps, bar):
    """Seconds of ``steps`` steps of Adam on all rows."""
    optimizer, gradient, began = optim.Adam(learning_rate=3e-3), nn.value_and_grad(model, loss), time.perf_counter()
    for _ in range(steps):
        value, grads = gradient(model, x, y)
        optimizer.update(model, grads)
        mx.eval(value, model.parameters(), optimizer.state)
        bar.update()
    return time.perf_counter() - began


def judge(logits, y):
    """Accuracy, log-loss, expected calibration error, and the points of the reliability diagram."""
    p, y = np.array(mx.softmax(logits.astype(mx.float32), axis=-1)), np.array(y)
    confidence, right = p.max(1), p.argmax(1) == y
    bins = np.clip(np.ceil(confidence * 15) - 1, 0, 14).astype(int)
    points = [(confidence[bins == b].mean(), right[bins == b].mean(), np.sum(bins == b)) for b in np.unique(bins)]
    error = sum(count * abs(c - r) for c, r, count in points) / len(y)
    return [right.mean(), -np.log(np.maximum(p[np.arange(len(y)), y], 1e-30)).mean(), error], points


def run(seed, steps, bar):
    """Scores on the test rows, points, seconds of each way."""
    (x, y), (test, wanted) = digits(test=1797 - ROWS, seed=seed)
    found = {}

    mx.random.seed(seed)
    plain = Network(nn.Linear(FEATURES, CLASSES))
    seconds = train(plain, by_linear, x, y, steps, bar)
    found["linear layer"] = (*judge(plain.head(plain.backbone(test)), wanted), seconds)

    mx.random.seed(seed)
    ours = Network(LogisticReadout(FEATURES, CLASSES, l2=1.0, learn_l2=True))
    seconds = train(ours, by_leave_one_out, x, y, steps, bar)
    ours.head.fit(ours.backbone(x), y)
    found["leave-one-out"] = (*judge(ours.head(ours.backbone(test)), wanted), seconds)

    began = time.perf_counter()
    features = plain.backbone(x)
    readouts = [LogisticReadout(FEATURES, CLASSES, l2=l2) for l2 in GRID]
    best = min(readouts, key=lambda readout: float(readout.loo_loss(features, y, refits=0))).fit(features, y)
    seconds = found["linear layer"][2] + time.perf_counter() - began
    found["linear layer, refitted"] = (*judge(best(plain.backbone(test)), wanted), seconds)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3 if SMALL else 60)
    parser.add_argument("--seeds", type=int, default=1 if SMALL else 3)
    args = parser.parse_args()
    with tqdm(total=2 * args.steps * args.seeds, unit="step", mininterval=1) as bar:
        runs = [run(seed, args.steps, bar) for seed in range(args.seeds)]

    print(f"\n{ROWS} digits to train on, {1797 - ROWS} to test, {args.steps} steps, {args.seeds} splits")
    print(f"{'':<24}{'accuracy':>17}{'log-loss':>17}{'calibration error':>19}{'seconds':>18}")
    for name in runs[0]:
        scores = [spread([r[name][0][i] for r in runs]) for i in range(3)]
        print(f"{name:<24}{scores[0]:>17}{scores[1]:>17}{scores[2]:>19}{spread([r[name][2] for r in runs]):>18}")
    print("mean and standard deviation over splits")

    figure, axis = plt.subplots(figsize=(5, 5), layout="constrained")
    axis.plot([0, 1], [0, 1], color="gray", linestyle="--")
    for name in runs[0]:
        confidence, right, _ = zip(*runs[0][name][1], strict=True)
        axis.plot(confidence, right, marker="o", label=name)
    axis.set(xlabel="confidence", ylabel="accuracy", title="Reliability on the test rows, first split")
    axis.grid(alpha=0.3)
    axis.legend()
    path = picture("logistic_training.png")
    figure.savefig(path, dpi=150)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
