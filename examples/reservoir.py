"""An echo-state network whose input and recurrent scales are trained through its closed-form readout.

    python examples/reservoir.py

Task: the Mackey-Glass series with tau = 17, predicted 84 steps ahead by a network that runs freely on its own output.
H. Jaeger (The "echo state" approach to analysing and training recurrent neural networks, GMD report 148, 2001)
published a normalized root mean square error of 0.00028 at 84 steps, for 400 units and 3,000 training steps, with
scales set by hand. Here the same network is measured with his scales, and with scales trained by gradient: drive the
reservoir, fit the readout, let it run freely from points of the training series, and differentiate the error of that
through the fit of the readout and through time. Trained on one reservoir, the scales are tested on others, too.
"""

import argparse
import time

import matplotlib.pyplot as plt
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from _common import SMALL, picture
from tqdm import tqdm

from pinvnn.nn import LeastSquaresReadout

HORIZON, WASHOUT, UNITS, TRAINING, TRIALS = 84, 1000, 400, 3000, 50
PUBLISHED = 0.00028
JAEGER = {"recurrent": 1.0, "feedback": 1.0, "bias": 0.2, "leak": 0.44, "l2": 1e-12}


def mackey_glass(steps, seed, tau=17, substeps=10):
    """The series as Jaeger has it: Euler steps of 1 / 10, one in ten kept, tanh(d - 1)."""
    start, delay = np.random.default_rng(seed).uniform(1.1, 1.3, tau * substeps), tau * substeps
    d = np.concatenate([start, np.zeros((1000 + steps) * substeps)])
    for i in range(delay, len(d)):
        late, last = d[i - delay], d[i - 1]
        d[i] = last + (0.2 * late / (1 + late**10) - 0.1 * last) / substeps
    return np.tanh(d[delay + 1000 * substeps :: substeps] - 1)


class Reservoir(nn.Module):
    """Random weights, sparse and fixed; trainable logarithms of their scales; a readout with its penalty."""

    def __init__(self, units, seed, scales):
        super().__init__()
        rng = np.random.default_rng(seed)
        weights = rng.choice([0, 0.4, -0.4], p=[1 - 5 / units, 2.5 / units, 2.5 / units], size=(units, units))
        width = int((weights != 0).sum(1).max())
        order = np.argsort(weights == 0, axis=1, kind="stable")[:, :width]  # the columns that are not zero come first
        self._columns = mx.array(order)
        self._weights = mx.array(np.take_along_axis(weights, order, 1), mx.float64)
        self._feedback, self._bias = mx.array(rng.uniform(-1, 1, (2, units)), mx.float64)
        self.scales = {name: mx.array(np.log(scale), mx.float64) for name, scale in scales.items() if name != "l2"}
        self.readout = LeastSquaresReadout(units, 1, l2=scales["l2"], learn_l2=True)

    def constants(self):
        return {name: mx.power(np.e, value) for name, value in self.scales.items()}

    def step(self, x, u, c):
        """States ``(..., units)`` after the input ``u`` (...)."""
        pull = c["recurrent"] * mx.sum(x[..., self._columns] * self._weights, axis=-1)
        drive = c["feedback"] * u[..., None] * self._feedback + c["bias"] * self._bias
        return (1 - 0.9 * c["leak"]) * x + c["leak"] * mx.tanh(pull + drive)

    def driven(self, series):
        """States after each value of ``series`` (..., steps), along the first axis."""
        x, states, c = mx.zeros((*series.shape[:-1], self._bias.shape[0]), mx.float64), [], self.constants()
        for i in range(series.shape[-1]):
            x = self.step(x, series[..., i], c)
            states.append(x)
            if i % 500 == 499 and not self.training:
                mx.eval(x)
        return mx.stack(states)

    def free(self, x, weight, bias, steps=HORIZON):
        """Outputs of ``steps`` steps from the states ``x`` (..., units), each fed back, along the first axis."""
        outputs, c = [], self.constants()
        for _ in range(steps):
            outputs.append((x @ weight.T + bias)[..., 0])
            x = self.step(x, outputs[-1], c)
        return mx.stack(outputs)


def free_error(model, series, washout, fitted, starts):
    """Logarithm of the mean square error of free runs from ``starts``, for a readout fitted to the states before."""
    states = model.driven(series[:-HORIZON])
    weight, bias = model.readout.solve(states[washout:fitted], series[washout + 1 : fitted + 1, None])
    wanted = mx.stack([series[starts + h] for h in range(1, HORIZON + 1)])
    return mx.log(mx.mean((model.free(states[starts], weight, bias) - wanted) ** 2))


def train(model, series, steps, sizes, bar):
    """Adam on the scales and the penalty; returns their path, and the best of it by the training series."""
    optimizer = optim.Adam(learning_rate=0.1, betas=[0.8, 0.95])
    gradient = nn.value_and_grad(model, lambda model: free_error(model, series, *sizes))
    path = []
    for _ in range(steps):
        loss, grads = gradient(model)
        now = {name: value.item() for name, value in model.constants().items()} | {"l2": model.readout.l2.item()}
        path.append((loss.item(), now))
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
        bar.set_postfix_str(f"free-run error {np.exp(loss.item() / 2):.2e}")
        bar.update()
    return path, min(path, key=lambda entry: entry[0] if np.isfinite(entry[0]) else np.inf)[1]


def nrmse(model, series, tests, washout):
    """Normalized root mean square error at each step of free runs, after a fit to the training series."""
    model.eval()
    states = model.driven(series[:-1])
    model.readout.fit(states[washout:], series[washout + 1 :, None])
    warm = tests.shape[1] - HORIZON
    outputs = model.free(model.driven(tests[:, :warm])[-1], model.readout.weight, model.readout.bias)
    error = np.array(outputs).T - np.array(tests[:, warm:])
    return np.sqrt(np.mean(error**2, axis=0) / np.var(np.array(tests)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2 if SMALL else 14, help="gradient steps on the scales")
    parser.add_argument("--reservoirs", type=int, default=1 if SMALL else 3)
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)  # where float64 is
    units, training, washout = (100, 1000, 200) if SMALL else (UNITS, TRAINING, WASHOUT)
    trials = 5 if SMALL else TRIALS
    began = time.perf_counter()
    series = mx.array(mackey_glass(training, 0), mx.float64)
    tests = mx.array(np.stack([mackey_glass(washout + HORIZON, 1 + i) for i in range(trials)]), mx.float64)

    # The scales are trained on the first part of the training series: 200 steps to settle, then the fit, then the runs.
    length = 800 if SMALL else training // 2
    sizes = (length // 8, length * 3 // 4, mx.arange(length * 3 // 4, length - HORIZON, 12))
    with tqdm(total=args.steps + 2 * args.reservoirs, unit="step") as bar:
        model = Reservoir(units, 0, JAEGER)
        path, trained = train(model, series[:length], args.steps, sizes, bar)
        curves = {}
        for name, scales in (("Jaeger's scales", JAEGER), ("trained scales", trained)):
            curves[name] = []
            for seed in range(args.reservoirs):
                bar.set_postfix_str(f"{name}, reservoir {seed}")
                curves[name].append(nrmse(Reservoir(units, seed, scales), series, tests, washout))
                bar.update()

    print(f"\nMackey-Glass, tau = 17: {units} units, {training} training steps, {trials} free runs of {HORIZON} steps")
    print(f"{'':<18}" + "".join(f"{name:>12}" for name in JAEGER) + f"   NRMSE at {HORIZON} steps, each reservoir")
    for name, scales in (("Jaeger's scales", JAEGER), ("trained scales", trained)):
        errors = [f"{curve[-1]:.2g}" for curve in curves[name]]
        print(f"{name:<18}" + "".join(f"{scales[key]:>12.3g}" for key in JAEGER) + f"   {', '.join(errors)}")
    found = [curve[-1] for curve in curves["trained scales"]]
    verdict = "reached" if np.median(found) <= PUBLISHED else "not reached"
    print(f"published: {PUBLISHED} (Jaeger 2001); median with trained scales {np.median(found):.2g}: {verdict}")
    print(f"total {time.perf_counter() - began:.0f} s; reservoir 0 is the one that the scales were trained on")

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.semilogy([np.exp(loss / 2) for loss, _ in path], "o-")
    left.set(xlabel="gradient step", ylabel="error of free runs", title="Scales, on the training series")
    for (name, runs), color in zip(curves.items(), ("tab:gray", "tab:blue"), strict=True):
        for i, curve in enumerate(runs):
            right.semilogy(range(1, HORIZON + 1), curve, color=color, alpha=0.8, label=None if i else name)
    right.plot(HORIZON, PUBLISHED, "k*", markersize=10, label=f"published, {PUBLISHED}")
    right.set(xlabel="steps ahead", ylabel="NRMSE", title=f"Free runs on new series, {args.reservoirs} reservoirs")
    right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    file = picture("reservoir.png")
    figure.savefig(file, dpi=150)
    print(f"picture: {file}")


if __name__ == "__main__":
    main()
