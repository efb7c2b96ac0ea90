"""Unmixing of spectra: non-negative amounts of parts whose shapes a small network learns through the solve.

Each spectrum is a mixture of three lines with positive amounts, and noise. A network makes the shapes of the three
parts; the amounts follow in closed form, and the loss is what they leave. Three ways of solving for the amounts:
``pinvnn.nnls``, least squares without bounds, and least squares clamped at 0, which is not the minimizer.
"""

import matplotlib.pyplot as plt
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from _common import SMALL, picture

import pinvnn

STEPS, CHANNELS, SPECTRA, PARTS = (40, 40, 30, 3) if SMALL else (1500, 80, 120, 3)


def data(seed=0):
    """Parts (channels, 3) of area 1, and spectra (channels, spectra), some amounts of which are 0."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, CHANNELS)[:, None]
    parts = np.exp(-0.5 * ((t - np.array([0.3, 0.45, 0.62])) / np.array([0.07, 0.1, 0.06])) ** 2)
    parts /= parts.sum(axis=0)
    amounts = rng.exponential(size=(PARTS, SPECTRA)) * (rng.random((PARTS, SPECTRA)) < 0.6)
    spectra = parts @ amounts
    return parts, spectra + 0.02 * spectra.std() * rng.standard_normal(spectra.shape)


class Parts(nn.Module):
    """Three positive curves of area 1 from a small network on the channel's position."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(16, 32), nn.Linear(32, PARTS)
        t = mx.linspace(0, 1, CHANNELS)[:, None]
        self._waves = mx.cos(np.pi * mx.arange(16)[None] * t)

    def __call__(self):
        return mx.softmax(self.out(mx.tanh(self.hidden(self._waves))), axis=0)


SOLVERS = {
    "nnls": pinvnn.nnls,
    "no bounds": lambda a, b: pinvnn.ridge(a, b, 1e-6),
    "clamped": lambda a, b: mx.maximum(pinvnn.ridge(a, b, 1e-6), 0),
}


def learn(solve, spectra):
    """Shapes learned through ``solve``, and the share of the spectra's squares that non-negative amounts leave."""
    mx.random.seed(1)
    parts, optimizer = Parts(), optim.Adam(learning_rate=3e-3)
    scale = mx.mean(mx.square(spectra))

    def loss(model):
        shapes = model() * CHANNELS
        return mx.mean(mx.square(spectra - shapes @ solve(shapes, spectra))) / scale

    step = nn.value_and_grad(parts, loss)
    for _ in range(STEPS):
        _, slope = step(parts)
        optimizer.update(parts, slope)
        mx.eval(parts.parameters(), optimizer.state)
    shapes = parts()
    rest = spectra - shapes @ pinvnn.nnls(shapes, spectra)
    return np.array(shapes), (mx.mean(mx.square(rest)) / scale).item()


def error(found, parts):
    """Mean distance of each part from the learned shape that is closest, relative to its own length."""
    distance = np.linalg.norm(found[:, :, None] - parts[:, None, :], axis=0).min(axis=0)
    return (distance / np.linalg.norm(parts, axis=0)).mean()


def main():
    parts, spectra = data()
    y = mx.array(spectra * CHANNELS, mx.float32)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3), sharey=True)
    for ax, (name, solve) in zip(axes, SOLVERS.items(), strict=True):
        found, left = learn(solve, y)
        print(f"{name:10s} shapes differ by {error(found, parts):.3f}, non-negative amounts leave {left:.5f}")
        ax.plot(parts, color="0.7", linewidth=4)
        ax.plot(found, color="tab:blue")
        ax.set_title(f"{name}: error {error(found, parts):.2f}")
        ax.set_xlabel("channel")
    axes[0].set_ylabel("part (grey: true)")
    figure.tight_layout()
    figure.savefig(picture("unmixing.png"), dpi=100)


if __name__ == "__main__":
    main()
