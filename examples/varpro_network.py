"""A network with a linear output, trained three ways: Gauss-Newton on the projected loss, and Adam with and without it.

The network learns how a driven, damped oscillator answers: the in-phase and the out-of-phase amplitude as functions of
frequency and damping, with its sharp resonance. All three train the same network from the same start on all rows at
once; Adam's learning rate is the best of a few. Writes varpro_network.png.

    python examples/varpro_network.py        (quick with PINVNN_EXAMPLE_SIZE=small)
"""

import time

import matplotlib.pyplot as plt
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from _common import SMALL, picture

from pinvnn.nn import LeastSquaresReadout
from pinvnn.varpro import SeparableGaussNewton

STEPS = {"VarPro": 60, "Adam, projected": 600, "Adam": 3000}
RATES = {"Adam, projected": [0.01, 0.03], "Adam": [0.003, 0.01, 0.03]}
if SMALL:
    STEPS, RATES = {"VarPro": 15, "Adam, projected": 40, "Adam": 150}, {"Adam, projected": [0.03], "Adam": [0.01]}
L2 = 1e-4


def oscillator(rows, seed):
    """Frequency ratio and damping, scaled to [-1, 1], and the complex amplitude 1 / (1 - r^2 + 2 i d r)."""
    rng = np.random.default_rng(seed)
    r, d = rng.uniform(0, 2, rows), rng.uniform(0.05, 0.5, rows)
    amplitude = 1 / (1 - r**2 + 2j * d * r)
    x, y = np.stack([r - 1, (d - 0.275) / 0.225], axis=1), np.stack([amplitude.real, amplitude.imag], axis=1)
    return mx.array(x.astype(np.float32)), mx.array(y.astype(np.float32))


def network():
    mx.random.seed(0)
    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())


def train(step, features, readout, steps, before_a_look=lambda: None):
    """Seconds, training error and test error after each of the steps. Looking is not timed."""
    path, seconds = [], 0.0
    for _ in range(steps):
        began = time.perf_counter()
        step()
        seconds += time.perf_counter() - began
        before_a_look()
        errors = [mx.mean((readout(features(a)) - b) ** 2).item() for a, b in [(x, y), (x_test, y_test)]]
        path.append((seconds, *errors))
    return np.array(path)


def varpro(steps):
    features, readout = network(), LeastSquaresReadout(32, 2)
    optimizer = SeparableGaussNewton(features, readout, L2)
    return train(lambda: optimizer.step(x, y), features, readout, steps)


def adam(steps, rate):
    features = network()
    readout = nn.Linear(32, 2)
    model = nn.Sequential(features, readout)
    step = descend(model, lambda model: mx.mean((model(x) - y) ** 2), steps, rate)
    return train(step, features, readout, steps)


def projected_adam(steps, rate):
    features, readout = network(), LeastSquaresReadout(32, 2, l2=L2)
    step = descend(features, lambda features: readout.projected_loss(features(x), y), steps, rate)
    return train(step, features, readout, steps, lambda: readout.fit(features(x), y))


def descend(model, loss, steps, rate):
    optimizer = optim.Adam(optim.cosine_decay(rate, steps))
    gradient = nn.value_and_grad(model, loss)

    def step():
        optimizer.update(model, gradient(model)[1])
        mx.eval(model.parameters(), optimizer.state)

    return step


x, y = oscillator(1000, seed=0)
x_test, y_test = oscillator(1000, seed=1)
paths = {"VarPro": varpro(STEPS["VarPro"])}
for name, method in [("Adam, projected", projected_adam), ("Adam", adam)]:
    runs = {rate: method(STEPS[name], rate) for rate in RATES[name]}
    best = min(runs, key=lambda rate: runs[rate][-1, 1])
    paths[f"{name}, rate {best}"] = runs[best]

for name, path in paths.items():
    seconds, training, test = path[-1]
    print(f"{name}: {len(path)} steps, {seconds:.1f} s, mean squared error {training:.2e}, on new points {test:.2e}")
ours = paths["VarPro"]
for name, path in list(paths.items())[1:]:
    below = np.flatnonzero(ours[:, 1] <= path[-1, 1])
    if below.size:
        steps, (seconds, training, test) = below[0] + 1, ours[below[0]]
        print(f"VarPro is there after {steps} steps ({len(path) / steps:.0f} times fewer) and {seconds:.1f} s, "
              f"at {training:.1e} and {test:.1e}: {name}")
    else:
        print(f"VarPro does not get there in {len(ours)} steps: {name}")

figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, constrained_layout=True)
for color, (name, path) in enumerate(paths.items()):
    for axis, abscissa in zip(axes, [np.arange(1, len(path) + 1), path[:, 0]], strict=True):
        axis.plot(abscissa, path[:, 1], color=f"C{color}", label=name)
        axis.plot(abscissa, path[:, 2], color=f"C{color}", linestyle=":")
for axis, label in zip(axes, ["steps", "seconds"], strict=True):
    axis.set(xscale="log", yscale="log", xlabel=label)
    axis.grid(alpha=0.3)
axes[0].set_ylabel("mean squared error (dotted: new points)")
axes[0].legend()
figure.suptitle("A driven oscillator learned by a network with 1,218 parameters, 66 of them linear")
figure.savefig(picture("varpro_network.png"), dpi=120)
print(f"wrote {picture('varpro_network.png')}")
