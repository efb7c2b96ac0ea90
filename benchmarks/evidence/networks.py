"""A small network on tables, many at once: one for each setting and split, as a batch.

Features are the columns themselves and, beside them, a hidden layer of tanh units. On them stands a head:

- ``"linear"``: an ``nn.Linear`` in all but name, weights trained with the rest by the mean square or cross-entropy;
- ``"loo"``: solved for, everything below trained by the exact leave-one-out error (of labels: its cross-entropy);
- ``"projected"``: solved for, trained by the training error at the best weights, with a penalty that stays;
- ``"evidence"``: solved for, trained by the log marginal likelihood.

A penalty of 1 on features multiplied by s is one of 1 / s^2 on the features: s is a number of each network, and learned
by "loo" and "evidence". Rows that do not belong to a split have weight 0.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from pinvnn.nn import LeastSquaresReadout, RidgeClassifier

from .search import Choice, Log

WIDTH = 16
SPACE = {"rate": Log(1e-3, 5e-2), "decay": Log(1e-3, 1.0), "gain": Log(0.3, 3.0), "width": Choice((4, 8, WIDTH)),
         "l2": Log(0.3, 100.0)}
SOLVED = ("loo", "projected", "evidence")


class Networks:
    """A batch of P networks on rows ``x`` (P, m, n) with targets ``y`` (P, m, k) or labels (P, m)."""

    def __init__(self, head: str, settings: list[dict], x, y, weights, classes: int | None, seed: int):
        self.head, self.classes, self.settings = head, classes, settings
        self.x, self.w = mx.array(x, mx.float32), mx.array(weights, mx.float32)
        self.y = mx.array(y, mx.int32 if classes else mx.float32)
        p, _, n = self.x.shape
        self.k = classes or self.y.shape[-1]
        rng = np.random.default_rng(seed)
        gain = self._each("gain")
        first = rng.normal(size=(p, n, WIDTH)) / np.sqrt(n) * gain
        self.mask = mx.array(np.arange(WIDTH) < self._each("width"), mx.float32)
        scale = 1 / np.sqrt(self._each("l2"))
        self.parameters = {"first": mx.array(first, mx.float32),
                           "shift": mx.array(rng.normal(size=(p, 1, WIDTH)) * gain, mx.float32)}
        if head == "linear":
            last = rng.normal(size=(p, n + WIDTH, self.k)) / np.sqrt(n + WIDTH)
            self.parameters |= {"last": mx.array(last, mx.float32), "intercept": mx.zeros((p, 1, self.k))}
        else:
            self.scale = mx.array(np.log(scale), mx.float32)
            if head in ("loo", "evidence"):
                self.parameters["scale"] = self.scale
            if classes and head == "loo":
                self.parameters["logit_scale"] = mx.zeros((p, 1, 1))
            layer = RidgeClassifier if classes and head == "loo" else LeastSquaresReadout
            self.readout = layer(n + WIDTH, self.k, 1.0)
        self.rate, self.decay = mx.array(self._each("rate"), mx.float32), mx.array(self._each("decay"), mx.float32)
        self.moments = {name: (mx.zeros_like(v), mx.zeros_like(v)) for name, v in self.parameters.items()}
        self.steps = 0
        self._gradient = mx.grad(lambda parameters: mx.sum(self._loss(parameters)))

    def _each(self, name):
        return np.array([s[name] for s in self.settings], float)[:, None, None]

    def features(self, parameters, x):
        hidden = self.mask * mx.tanh(x @ parameters["first"] + parameters["shift"])
        found = mx.concatenate([x, hidden], axis=-1)
        return found if self.head == "linear" else found * mx.exp(parameters.get("scale", self.scale))

    def _targets(self):
        return 2 * mx.eye(self.k)[self.y] - 1 if self.classes else self.y

    def _loss(self, parameters):
        h = self.features(parameters, self.x)
        if self.head == "linear":
            found, total = h @ parameters["last"] + parameters["intercept"], mx.sum(self.w, axis=-1)
            if self.classes:
                right = mx.take_along_axis(found, self.y[..., None], axis=-1)[..., 0]
                return mx.sum(self.w * (mx.logsumexp(found, axis=-1) - right), axis=-1) / total
            return mx.sum(self.w * mx.mean((found - self.y) ** 2, axis=-1), axis=-1) / total
        if self.head == "loo":
            if self.classes:
                self.readout.scale = mx.exp(parameters["logit_scale"])
            return mx.log(self.readout.loo_loss(h, self.y, self.w))
        if self.head == "projected":
            return mx.log(self.readout.projected_loss(h, self._targets(), self.w))
        return -self.readout.log_evidence(h, self._targets(), self.w) / mx.sum(self.w, axis=-1)

    def step(self):
        """Adam with decoupled decay of the two layers of weights; each network has its own rate and decay."""
        self.steps += 1
        for name, g in self._gradient(self.parameters).items():
            m, v = self.moments[name]
            g = mx.where(mx.isfinite(g), g, 0)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            self.moments[name] = m, v
            move = m / (1 - 0.9**self.steps) / (mx.sqrt(v / (1 - 0.999**self.steps)) + 1e-8)
            if name in ("first", "last"):
                move = move + self.decay * self.parameters[name]
            self.parameters[name] = self.parameters[name] - self.rate * move
        mx.eval(self.parameters, self.moments)

    def predict(self) -> np.ndarray:
        """Targets, or probabilities of the classes, of all rows ``(P, m, k)``, from the rows of the split."""
        h = self.features(self.parameters, self.x)
        if self.head == "linear":
            found = h @ self.parameters["last"] + self.parameters["intercept"]
            return np.array(mx.softmax(found, axis=-1) if self.classes else found)
        if not self.classes:
            return np.array(self.readout.adapt(h, self.y, h, self.w))
        # The calibrated probabilities that a user of RidgeClassifier gets.
        found = []
        for rows, labels, weights in zip(h, self.y, self.w, strict=True):
            head = RidgeClassifier(rows.shape[-1], self.classes, 1.0).fit(rows, labels, weights)
            found.append(mx.softmax(head(rows), axis=-1))
        return np.array(mx.stack(found))


def standardized(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """``x`` (m, n) less its mean over the rows ``train``, over their standard deviation."""
    deviation = x[train].std(axis=0)
    return (x - x[train].mean(axis=0)) / np.where(deviation > 0, deviation, 1)
