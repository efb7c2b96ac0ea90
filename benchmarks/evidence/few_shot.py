"""Few-shot episodes on digits that training never saw: heads that are solved in each episode, beside prototypes.

Training classes are scikit-learn's digits in eight positions, turned and mirrored. The search trains on three of the
digits 4 to 9 and judges on the other three as they are, and the other way round; it tries the settings of
examples/few_shot.py and four draws. With the best setting, and with that of the example, each rival is trained on 4 to
9 from five seeds, and tested on 0 to 3 as they are, four classes an episode, on the same episodes for all. All have
the same backbone, steps and images a step.

- ridge, logistic, prototypes: episodes end to end (R2-D2, Bertinetto et al. 2019; Snell et al. 2017). The search
  chooses Adam's rate, the ways of the training episodes, whether features are brought to one length, the penalty from
  which training starts (of the sum or, as R2-D2 has it, of the mean over the rows) and the scale of the logits;
- linear: cross-entropy on all classes, in an episode a new linear layer by 100 steps of Adam;
- linear, then ridge: the same training, in an episode RidgeClassifier, with the penalty that the search chose.
"""

from __future__ import annotations

import time
from functools import cache

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from sklearn.datasets import load_digits

from pinvnn.nn import LogisticReadout, RidgeClassifier

from .search import Choice, Log, draws
from .table import Row, Table

WAYS, SHOTS, QUERIES, FEATURES, EPISODES = 4, (1, 5), 10, 64, 4
BUDGET, SEARCH_STEPS, STEPS, SEEDS, TESTS = 4, 60, 120, 5, 200
SPACE = {"rate": Log(5e-4, 1e-2), "ways": Choice((4, 8)), "one_length": Choice((False, True)), "l2": Log(0.1, 300.0),
         "by_row": Choice((False, True)), "scale": Log(1.0, 20.0)}
UNTUNED = {"rate": 1e-3, "ways": 4, "one_length": False, "l2": 1.0, "by_row": False, "scale": 5.0}
HALVES, NEW = ((4, 5, 6), (7, 8, 9)), (0, 1, 2, 3)
RIVALS = ("prototypes", "linear", "linear, then ridge", "logistic", "ridge")


@cache
def positions(digits: tuple[int, ...]):
    """Images and labels of ``digits`` in eight positions, each a class of its own."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).reshape(-1, 8, 8, 1).astype(np.float32)
    images, labels = [], []
    for i in range(8):
        for c in digits:
            turned = np.rot90(x[y == c], i % 4, axes=(1, 2))
            images.append(turned[:, :, ::-1] if i >= 4 else turned)
            labels.append(np.full(len(turned), 8 * c + i))
    return mx.array(np.concatenate(images)), np.concatenate(labels)


def upright(digits):
    x, labels = positions(digits)
    kept = np.flatnonzero(labels % 8 == 0)
    return x[mx.array(kept)], labels[kept]


class Episodes:
    """Draws episodes: indices ``(episodes, ways * rows)`` of support and query, and their labels."""

    def __init__(self, labels, seed):
        self.rows = [np.flatnonzero(labels == c) for c in np.unique(labels)]
        self.rng = np.random.default_rng(seed)

    def draw(self, count, ways, shots):
        picked = np.array([
            [self.rng.choice(self.rows[c], shots + QUERIES, replace=False)
             for c in self.rng.choice(len(self.rows), ways, replace=False)]
            for _ in range(count)
        ])  # (episodes, ways, shots + queries)
        support, query = picked[..., :shots].reshape(count, -1), picked[..., shots:].reshape(count, -1)
        return (mx.array(support), mx.array(np.repeat(np.arange(ways), shots)), mx.array(query),
                mx.array(np.repeat(np.arange(ways), QUERIES)))


class Model(nn.Module):
    """The backbone, and how logits of a query follow from a support set."""

    def __init__(self, rival, settings, classes):
        super().__init__()
        self.rival, self.settings = rival, settings
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2),
            nn.Conv2d(16, FEATURES // 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2), lambda x: x.flatten(1),
        )  # fmt: skip
        if rival.startswith("linear"):
            self.linear = nn.Linear(FEATURES, classes)
        else:
            self.log_scale, self.log_l2 = (mx.array(float(np.log(settings[name]))) for name in ("scale", "l2"))

    def features(self, x):
        h = self.backbone(x)
        if not self.settings["one_length"]:
            return h
        return h * FEATURES**0.5 * mx.rsqrt(mx.sum(h * h, axis=-1, keepdims=True) + 1e-6)

    def logits(self, support, labels, query, ways):
        """``(episodes, queries, ways)`` from features."""
        wanted = mx.broadcast_to(labels, support.shape[:2])
        if self.rival == "prototypes":
            means = mx.mean(support.reshape(len(support), ways, -1, FEATURES), axis=2)
            distance = mx.mean((query[:, :, None] - means[:, None]) ** 2, axis=-1)
            return -mx.exp(self.log_scale) * distance
        if self.rival == "linear":
            return _by_adam(support, wanted, query, ways)
        solver = LogisticReadout if self.rival == "logistic" else RidgeClassifier
        weights = mx.full(wanted.shape, 1 / wanted.shape[1]) if self.settings["by_row"] else None
        if self.rival == "linear, then ridge":
            return solver(FEATURES, ways, self.settings["l2"]).adapt(support, wanted, query, weights)
        head = solver(FEATURES, ways, 1.0, learn_l2=True)
        head.log_l2 = self.log_l2
        found = head.adapt(support, wanted, query, weights)
        return mx.exp(self.log_scale) * found


def _by_adam(support, wanted, query, ways, steps=100):
    """A linear layer for each episode, all at once."""
    weights = {"w": mx.zeros((len(support), FEATURES, ways)), "b": mx.zeros((len(support), 1, ways))}
    optimizer = optim.Adam(learning_rate=0.03)

    def loss(weights):
        return nn.losses.cross_entropy(support @ weights["w"] + weights["b"], wanted, reduction="sum")

    for _ in range(steps):
        weights = optimizer.apply_gradients(mx.grad(loss)(weights), weights)
        mx.eval(weights)
    return query @ weights["w"] + weights["b"]


def episode_loss(model, x, episode, ways):
    support, labels, query, wanted = episode
    h = model.features(x[mx.concatenate([support, query], axis=1).flatten()]).reshape(len(support), -1, FEATURES)
    logits = model.logits(h[:, : support.shape[1]], labels, h[:, support.shape[1] :], ways)
    return nn.losses.cross_entropy(logits, mx.broadcast_to(wanted, logits.shape[:2]), reduction="mean")


def batch_loss(model, x, labels):
    return nn.losses.cross_entropy(model.linear(model.features(x)), labels, reduction="mean")


def train(rival, settings, seen, steps, seed):
    mx.random.seed(seed)
    x, labels = seen
    names, numbers = np.unique(labels, return_inverse=True)
    model, episodes = Model(rival, settings, len(names)), Episodes(labels, seed)
    optimizer = optim.Adam(learning_rate=optim.cosine_decay(settings["rate"], steps))
    ways, images = settings["ways"], EPISODES * 4 * (3 + QUERIES)
    gradient = nn.value_and_grad(model, batch_loss if rival.startswith("linear") else episode_loss)
    for i in range(steps):
        if rival.startswith("linear"):
            rows = episodes.rng.choice(len(labels), images, replace=False)
            grads = gradient(model, x[mx.array(rows)], mx.array(numbers[rows]))[1]
        else:  # As many images a step, whatever the ways.
            shots = SHOTS[i % len(SHOTS)]
            grads = gradient(model, x, episodes.draw(max(1, EPISODES * 4 // ways), ways, shots), ways)[1]
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
    return model


def judge(model, x, episode):
    """Accuracy and cross-entropy over the episodes."""
    h = model.features(x)
    support, labels, query, wanted = episode
    logits = model.logits(h[support], labels, h[query], int(labels.max().item()) + 1)
    wanted = mx.broadcast_to(wanted, logits.shape[:2])
    right = mx.mean(mx.argmax(logits, axis=-1) == wanted)
    return right.item(), nn.losses.cross_entropy(logits, wanted, reduction="mean").item()


def search(rival, tried, steps, tests, trained, say):
    """The setting of the best accuracy on digits that were held out of training, one half at a time."""
    found = np.zeros(len(tried))
    for part, held_out in (HALVES, HALVES[::-1]):
        part, (x, labels) = positions(part), upright(held_out)
        valid = [Episodes(labels, 4321).draw(tests, len(held_out), shots) for shots in SHOTS]
        for i, settings in enumerate(tried):
            model = trained(rival, settings, part, steps, held_out[0])
            found[i] += np.mean([judge(model, x, v)[0] for v in valid]) / 2
    best = tried[int(found.argmax())]
    say(f"{rival}: {found.round(3)}, {best}")
    return best


def run(small: bool, say, only=None) -> list[Table]:
    full = BUDGET, SEARCH_STEPS, STEPS, SEEDS, TESTS
    budget, search_steps, steps, seeds, tests = (1, 2, 2, 2, 4) if small else full
    seen, new = positions(sum(HALVES, ())), upright(NEW)
    names = [f"{s}-shot, {how}" for how in ("searched", "not searched") for s in SHOTS]
    right, loss = ([Row(name, {}) for name in names] for _ in range(2))
    seconds, notes, known = {}, {}, {}

    def trained(rival, settings, data, steps, seed):
        """The two linear rivals differ after training only: what both need is trained once."""
        if not rival.startswith("linear"):
            return train(rival, settings, data, steps, seed)
        key = settings["rate"], settings["one_length"], steps, seed
        if key not in known:
            known[key] = train(rival, settings, data, steps, seed)
        model = Model(rival, settings, len(np.unique(data[1])))
        model.update(known[key].parameters())
        return model

    for rival in only or RIVALS:
        start = time.process_time()
        best = search(rival, [UNTUNED, *draws(SPACE, budget)], search_steps, tests // 2, trained, say)
        for k, settings in enumerate((best, UNTUNED)):
            for seed in range(seeds):
                model = trained(rival, settings, seen, steps, seed)
                for i, shots in enumerate(SHOTS):
                    episode = Episodes(new[1], 1000 + seed).draw(tests, WAYS, shots)
                    for rows, value in zip((right, loss), judge(model, new[0], episode), strict=True):
                        rows[len(SHOTS) * k + i].scores.setdefault(rival, []).append(value)
        seconds[rival] = time.process_time() - start
        notes[rival] = ", ".join(f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}" for k, v in best.items())
        say(f"{rival}: {[round(np.mean(row.scores[rival]), 3) for row in right]}, {seconds[rival]:.0f} s")
    return [Table("Few-shot digits", "accuracy", "higher", "ridge", right, seconds, notes),
            Table("Few-shot digits", "cross-entropy", "lower", "ridge", loss)]
