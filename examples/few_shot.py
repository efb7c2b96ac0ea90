"""Few-shot classification of digits that training never saw, by readouts that are fitted in the forward pass.

    python examples/few_shot.py

Backbones are trained on the digits 0 to 5, whose turned and mirrored images are classes of their own (48 classes), and
tested on 6 to 9: from K examples of each, tell the rest apart. Five ways:

- ridge: episodes through RidgeClassifier.adapt, end to end (R2-D2, Bertinetto et al. 2019);
- logistic: the same by LogisticReadout.adapt (LRD2 of the same paper, but with the exact fit and its exact gradient in
  place of a few steps of Newton's method);
- prototypes: episodes by the distance to the class means (Snell et al. 2017), end to end;
- linear head: the backbone trained by cross-entropy on the 48 classes; in an episode, a new linear layer on its
  features, trained by 100 steps of Adam;
- pixels: no training, RidgeClassifier on the 64 pixels.
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

from pinvnn.nn import LogisticReadout, RidgeClassifier

SEEN, WAYS, SHOTS, QUERIES, FEATURES = 48, 4, (1, 5), 10, 256


def classes():
    """(images, labels) of training, the digits 0 to 5 in eight positions, and of the test, 6 to 9 as they are."""
    (x, y), _ = digits(test=0)
    x, y = np.array(x), np.array(y)
    images, labels, base = [], [], x[y < 6]
    for i in range(8):
        turned = np.rot90(base, i % 4, axes=(1, 2))
        images.append(turned[:, :, ::-1] if i >= 4 else turned)
        labels.append(y[y < 6] + 6 * i)
    seen = mx.array(np.concatenate(images)), np.concatenate(labels)
    return seen, (mx.array(x[y >= 6]), y[y >= 6])


def backbone():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Conv2d(16, FEATURES // 16, 3, padding=1), nn.ReLU(), lambda x: x.flatten(1),
    )  # fmt: skip


class Episodes:
    """Draws episodes from rows of some digits: indices ``(episodes, ways * rows)`` and labels ``(ways * rows,)``."""

    def __init__(self, labels, seed):
        self.rows = [np.flatnonzero(labels == c) for c in np.unique(labels)]
        self.rng = np.random.default_rng(seed)

    def draw(self, count, shots):
        picked = []
        for _ in range(count):
            classes = self.rng.choice(len(self.rows), WAYS, replace=False)
            picked.append([self.rng.choice(self.rows[c], shots + QUERIES, replace=False) for c in classes])
        picked = np.array(picked)  # (episodes, ways, shots + queries)
        support, query = picked[..., :shots].reshape(count, -1), picked[..., shots:].reshape(count, -1)
        return support, np.repeat(np.arange(WAYS), shots), query, np.repeat(np.arange(WAYS), QUERIES)


class Ridge(nn.Module):
    def __init__(self, features=FEATURES):
        super().__init__()
        self.backbone, self.head = backbone(), RidgeClassifier(features, WAYS, l2=1.0, learn_l2=True)
        self.head.scale = mx.array(5.0)  # to start with; it is trained

    def logits(self, support, labels, query):
        return self.head.adapt(support, mx.broadcast_to(labels, support.shape[:2]), query)


class Logistic(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = backbone(), LogisticReadout(FEATURES, WAYS, l2=1.0, learn_l2=True)

    def logits(self, support, labels, query):
        return self.head.adapt(support, mx.broadcast_to(labels, support.shape[:2]), query)


class Prototypes(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.scale = backbone(), mx.array(0.1)

    def logits(self, support, labels, query):
        means = mx.mean(support.reshape(len(support), WAYS, -1, FEATURES), axis=2)
        return -self.scale * mx.sum((query[:, :, None] - means[:, None]) ** 2, axis=-1)


class LinearHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = backbone(), nn.Linear(FEATURES, SEEN)

    def logits(self, support, labels, query):
        weights = {"w": mx.zeros((len(support), FEATURES, WAYS)), "b": mx.zeros((len(support), 1, WAYS))}
        wanted, optimizer = mx.broadcast_to(labels, support.shape[:2]), optim.Adam(learning_rate=0.03)

        def loss(weights):
            return nn.losses.cross_entropy(support @ weights["w"] + weights["b"], wanted, reduction="sum")

        for _ in range(100):  # All episodes at once: each has a layer of its own.
            weights = optimizer.apply_gradients(mx.grad(loss)(weights), weights)
            mx.eval(weights)
        return query @ weights["w"] + weights["b"]


def episode_loss(model, x, episode):
    support, labels, query, wanted = (mx.array(v) for v in episode)
    rows = mx.concatenate([support, query], axis=1)
    h = model.backbone(x[rows.flatten()]).reshape(*rows.shape, -1)
    logits = model.logits(h[:, : support.shape[1]], labels, h[:, support.shape[1] :])
    return nn.losses.cross_entropy(logits, mx.broadcast_to(wanted, logits.shape[:2]), reduction="mean")


def batch_loss(model, x, y):
    return nn.losses.cross_entropy(model.head(model.backbone(x)), y, reduction="mean")


def accuracies(model, h, episode):
    """Of each episode, from the features ``h`` of all rows."""
    support, labels, query, wanted = (mx.array(v) for v in episode)
    found = mx.argmax(model.logits(h[support], labels, h[query]), axis=-1)
    return np.array(mx.mean(found == wanted, axis=1))


def train(kind, seed, seen, new, tests, args, bar):
    """Accuracies in the test episodes, ``(tests of the curve, shots, episodes)``, and the seconds of training."""
    mx.random.seed(seed)
    x, labels = seen
    model, optimizer = kind(), optim.Adam(learning_rate=1e-3)
    episodes, curve, seconds = Episodes(labels, seed), [], 0.0
    rows_of_step = args.episodes * WAYS * (np.mean(SHOTS) + QUERIES)
    for i in range(args.steps + 1):
        if i % max(1, args.steps // 5) == 0:
            h = model.backbone(new)
            curve.append([accuracies(model, h, test) for test in tests])
        if i == args.steps:
            return np.array(curve), seconds
        began = time.perf_counter()
        if kind is LinearHead:  # As many images per step as the episodes show.
            rows = episodes.rng.choice(len(labels), int(rows_of_step), replace=False)
            grads = nn.value_and_grad(model, batch_loss)(model, x[mx.array(rows)], mx.array(labels[rows]))[1]
        else:
            episode = episodes.draw(args.episodes, SHOTS[i % len(SHOTS)])
            grads = nn.value_and_grad(model, episode_loss)(model, x, episode)[1]
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
        seconds += time.perf_counter() - began
        bar.update()


KINDS = {"ridge": Ridge, "logistic": Logistic, "prototypes": Prototypes, "linear head": LinearHead}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4 if SMALL else 200)
    parser.add_argument("--seeds", type=int, default=1 if SMALL else 2)
    parser.add_argument("--episodes", type=int, default=4, help="episodes of a training step")
    parser.add_argument("--tests", type=int, default=10 if SMALL else 200, help="test episodes")
    args = parser.parse_args()
    seen, (new, new_labels) = classes()
    drawn = Episodes(new_labels, seed=1234)
    tests = [drawn.draw(args.tests, shots) for shots in SHOTS]

    results = {}
    with tqdm(total=args.steps * args.seeds * len(KINDS), unit="step", mininterval=1) as bar:
        for name, kind in KINDS.items():
            bar.set_description(name)
            results[name] = [train(kind, seed, seen, new, tests, args, bar) for seed in range(args.seeds)]
    pixels = Ridge(64)
    floor = [accuracies(pixels, new.reshape(-1, 64), test) for test in tests]

    print(f"\n{WAYS}-way accuracy on the digits 6 to 9 ({args.tests} episodes, {args.seeds} seeds)")
    print(f"{'':<14}{'seconds':>14}" + "".join(f"{f'{shots}-shot':>18}" for shots in SHOTS))
    for name, runs in results.items():
        finals = [spread([curve[-1, k].mean() for curve, _ in runs]) for k in range(len(SHOTS))]
        print(f"{name:<14}{spread([s for _, s in runs]):>14}" + "".join(f"{final:>18}" for final in finals))
    print(f"{'pixels':<14}{'-':>14}" + "".join(f"{v.mean():>18.4g}" for v in floor))
    noise = max(v.std() / np.sqrt(args.tests) for v in floor)
    print(f"mean and standard deviation over seeds; the drawing of episodes adds about {noise:.1g}")

    figure, axes = plt.subplots(1, len(SHOTS), figsize=(9, 4), sharey=True, layout="constrained")
    for k, axis in enumerate(axes):
        for name, runs in results.items():
            curves = np.array([curve[:, k].mean(-1) for curve, _ in runs])
            steps = np.arange(curves.shape[1]) * max(1, args.steps // 5)
            (line,) = axis.plot(steps, curves.mean(0), marker="o", label=name)
            axis.fill_between(steps, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
        axis.axhline(floor[k].mean(), color="gray", linestyle="--", label="pixels, no training")
        axis.set(title=f"{WAYS}-way {SHOTS[k]}-shot", xlabel="training step")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on digits not seen in training")
    axes[-1].legend(title=f"mean and range of {args.seeds} seeds")
    path = picture("few_shot.png")
    figure.savefig(path, dpi=150)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
