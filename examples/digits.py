"""Train a small convolutional backbone end to end through a closed-form readout, beside the same one with nn.Linear.

    python examples/digits.py

Data: the 1,797 handwritten digits that scikit-learn ships. At every step the readout is fitted on one half of the batch
and judged on the other, and the gradient of that goes through the fit into the backbone. The rival is the same backbone
under an nn.Linear, trained by the same Adam with cross-entropy on the same batches.
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

from pinvnn.nn import LeastSquaresReadout

FEATURES, CLASSES, BATCH = 64, 10, 200


def backbone():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2),
        lambda x: x.flatten(1), nn.Linear(128, FEATURES), nn.ReLU(),
    )  # fmt: skip


class Model(nn.Module):
    """A backbone and its head: nn.Linear or a LeastSquaresReadout, which share the interface of a layer."""

    def __init__(self, head):
        super().__init__()
        self.backbone, self.head = backbone(), head

    def __call__(self, x):
        return self.head(self.backbone(x))


def readout_loss(model, x, y):
    h, target, half = model.backbone(x), mx.eye(CLASSES)[y], len(x) // 2
    predicted = model.head.adapt(h[:half], target[:half], h[half:])
    return mx.mean((predicted - target[half:]) ** 2)


def linear_loss(model, x, y):
    return nn.losses.cross_entropy(model(x), y, reduction="mean")


HEADS = {
    "closed-form readout": (lambda: LeastSquaresReadout(FEATURES, CLASSES, l2=1.0, learn_l2=True), readout_loss),
    "nn.Linear": (lambda: nn.Linear(FEATURES, CLASSES), linear_loss),
}


def train(name, seed, steps, every, rate, bar):
    """Test accuracies at every ``every`` steps, and the seconds that the training steps took."""
    mx.random.seed(seed)
    head, loss = HEADS[name]
    model, optimizer = Model(head()), optim.Adam(learning_rate=rate)
    mx.eval(model.parameters())
    (x, y), (x_test, y_test) = digits(test=360)
    gradient = nn.value_and_grad(model, loss)
    rng, curve, seconds = np.random.default_rng(seed), [], 0.0
    for i in range(steps + 1):
        if i % every == 0:
            if name != "nn.Linear":  # What the training of the backbone aims at: the fit to all training rows.
                model.head.fit(model.backbone(x), mx.eye(CLASSES)[y])
            accuracy = mx.mean(mx.argmax(model(x_test), axis=-1) == y_test).item()
            curve.append(accuracy)
            bar.set_postfix_str(refresh=False, s=f"{name}, seed {seed}: test accuracy {accuracy:.3f}")
        if i < steps:
            rows = mx.array(rng.choice(len(x), BATCH, replace=False))
            start = time.perf_counter()
            optimizer.update(model, gradient(model, x[rows], y[rows])[1])
            mx.eval(model.parameters(), optimizer.state)
            seconds += time.perf_counter() - start
            bar.update()
    return curve, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4 if SMALL else 80)
    parser.add_argument("--seeds", type=int, default=1 if SMALL else 3)
    parser.add_argument("--rate", type=float, default=3e-3, help="Adam's; the default suits both best")
    args = parser.parse_args()
    every = max(1, args.steps // 12)
    began, results = time.perf_counter(), {}
    with tqdm(total=args.steps * args.seeds * len(HEADS), unit="step", mininterval=1) as bar:
        for name in HEADS:
            results[name] = [train(name, seed, args.steps, every, args.rate, bar) for seed in range(args.seeds)]

    print(f"\n{'head':<22}{'steps':>6}{'seconds':>16}{'test accuracy':>22}    (360 digits, {args.seeds} seeds)")
    for name, runs in results.items():
        final, seconds = [curve[-1] for curve, _ in runs], [s for _, s in runs]
        print(f"{name:<22}{args.steps:>6}{spread(seconds):>16}{spread(final):>22}")
    print(f"total {time.perf_counter() - began:.0f} s; the readout is fitted to all training rows before each test")

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    steps = np.arange(len(results["nn.Linear"][0][0])) * every
    for name, runs in results.items():
        curves = np.array([curve for curve, _ in runs])
        (line,) = axes.plot(steps, curves.mean(0), label=name, linewidth=2)
        axes.fill_between(steps, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="training step", ylabel="test accuracy", title="Handwritten digits: the same backbone, two heads")
    axes.legend(title=f"mean and range of {args.seeds} seeds")
    axes.grid(alpha=0.3)
    path = picture("digits.png")
    figure.savefig(path, dpi=150)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
