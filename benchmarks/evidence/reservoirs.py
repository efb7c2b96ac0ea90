"""Echo-state networks that predict the Mackey-Glass series, several at once: float64 in NumPy and SciPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.linalg import lapack

from .example import example

HORIZON = 84
mackey_glass = example("reservoir").mackey_glass


class Scales(NamedTuple):
    """What a search may choose, apart from the random weights."""

    recurrent: float = 1.0
    feedback: float = 1.0
    bias: float = 0.2
    leak: float = 0.44
    decay: float = 0.396  # of the state in a step; Jaeger: 0.9 times leak
    l2: float = 1e-12


class Reservoirs:
    """R reservoirs of ``units``: their states are one long vector, their weights one sparse matrix of R blocks."""

    def __init__(self, units: int, seeds):
        self.units, self.count = units, len(seeds)
        blocks, feedback, bias = [], [], []
        for seed in seeds:
            rng = np.random.default_rng(seed)
            p = [1 - 5 / units, 2.5 / units, 2.5 / units]
            blocks.append(sparse.csr_matrix(rng.choice([0, 0.4, -0.4], p=p, size=(units, units))))
            f, b = rng.uniform(-1, 1, (2, units))
            feedback.append(f)
            bias.append(b)
        self.weights = sparse.block_diag(blocks, format="csr")
        self.feedback, self.bias = np.concatenate(feedback)[:, None], np.concatenate(bias)[:, None]

    def step(self, x, u, s: Scales):
        """States ``(R units, runs)`` after inputs ``u``, which broadcast against them."""
        return (1 - s.decay) * x + s.leak * np.tanh(
            s.recurrent * (self.weights @ x) + s.feedback * self.feedback * u + s.bias * self.bias)

    def driven(self, series, s: Scales, keep: int = 0):
        """States ``(steps - keep, R, units)`` after each value of ``series`` (steps,) from ``keep`` on."""
        x = np.zeros((self.count * self.units, 1))
        states = np.empty((len(series) - keep, self.count * self.units))
        for i, u in enumerate(series):
            x = self.step(x, u, s)
            if i >= keep:
                states[i - keep] = x[:, 0]
        return states.reshape(-1, self.count, self.units)

    def last(self, series, s: Scales):
        """The last state ``(R units, runs)`` after ``series`` (runs, steps)."""
        x = np.zeros((self.count * self.units, len(series)))
        for u in series.T:
            x = self.step(x, u, s)
        return x

    def free(self, x, readouts, s: Scales):
        """Outputs ``(HORIZON, R, runs)`` of free runs from states ``x`` (R units, runs), each fed back."""
        weights, bias = readouts
        outputs = []
        for _ in range(HORIZON):
            y = np.einsum("ru,rut->rt", weights, x.reshape(self.count, self.units, -1)) + bias[:, None]
            outputs.append(y)
            x = self.step(x, np.repeat(y, self.units, axis=0), s)
        return np.array(outputs)


def readouts(states, targets, l2: float):
    """Ridge of ``targets`` (steps,) on ``states`` (steps, R, units), by QR of the centred rows over sqrt(l2) I."""
    weights, bias = [], []
    for a in states.transpose(1, 0, 2):
        mean, target = a.mean(axis=0), targets.mean()
        rows = np.vstack([a - mean, np.sqrt(l2) * np.eye(a.shape[1])])
        wanted = np.append(targets - target, np.zeros(a.shape[1]))
        w = lapack.dgels(rows, wanted)[1][: a.shape[1]]
        weights.append(w)
        bias.append(target - mean @ w)
    return np.array(weights), np.array(bias)


def misfit(r: Reservoirs, series, s: Scales, washout: int, fitted: int, starts) -> np.ndarray:
    """Normalized root mean square error ``(R,)`` after 84 free steps from ``starts``, of fits to the steps before."""
    with np.errstate(all="ignore"):
        states = r.driven(series, s)
        fit = readouts(states[washout:fitted], series[washout + 1 : fitted + 1], s.l2)
        x = states[starts].reshape(len(starts), -1).T
        y = r.free(x, fit, s)[-1]
        return np.sqrt(np.mean((y - series[starts + HORIZON]) ** 2, axis=1) / np.var(series))


def nrmse(r: Reservoirs, series, tests, s: Scales, washout: int) -> np.ndarray:
    """The same ``(R,)`` on new series ``tests`` (runs, steps), after a fit to all of ``series`` but its washout."""
    with np.errstate(all="ignore"):
        fit = readouts(r.driven(series[:-1], s, washout), series[washout + 1 :], s.l2)
        warm = tests.shape[1] - HORIZON
        y = r.free(r.last(tests[:, :warm], s), fit, s)[-1]
        return np.sqrt(np.mean((y - tests[:, -1]) ** 2, axis=1) / np.var(tests))
