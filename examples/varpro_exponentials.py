"""Global analysis of decaying spectra: three rates shared by 40 traces, with standard errors, in a handful of steps.

A sample is excited at time 0, and its spectrum is recorded while three species decay. Every trace is a sum of the same
three exponentials; their 120 amplitudes are linear and never searched. Beside it the full problem of 123 parameters.
Writes varpro_exponentials.png.

    python examples/varpro_exponentials.py        (quick with PINVNN_EXAMPLE_SIZE=small)
"""

import math
import time
from typing import Literal

import matplotlib.pyplot as plt
import mlx.core as mx
import numpy as np
from _common import SMALL, picture
from scipy.optimize import least_squares

from pinvnn.varpro import exp, varpro

RATES = np.array([0.15, 0.8, 4.0])
NOISE = 0.04

rng = np.random.default_rng(0)
times = np.geomspace(0.02, 30, 40 if SMALL else 120)
wavelengths = np.linspace(400, 700, 12 if SMALL else 40)
centres, widths, heights = [470, 540, 620], [35, 50, 40], [0.8, 1.0, -0.6]
bands = zip(centres, widths, heights, strict=True)
spectra = np.stack([height * np.exp(-(((wavelengths - c) / width) ** 2)) for c, width, height in bands])
clean = np.exp(-np.outer(times, RATES)) @ spectra
data = clean + NOISE * rng.standard_normal(clean.shape)


def float64(array):
    """An array in float64, which lives on the CPU."""
    with mx.stream(mx.cpu):
        return mx.array(array, dtype=mx.float64)


def decays(log_rates, t):
    """The basis (m, 3). `exp` is pinvnn's: MLX's own is right to 1e-6 only in float64."""
    return exp(-exp(log_rates) * t[:, None])


# The fit. Rates are positive, so their logarithms are searched.
t, y = float64(times), float64(data)
start = float64(np.log([0.05, 0.5, 10.0]))
paths = {}
methods: list[tuple[Literal["full", "kaufman"], str]]
methods = [("full", "VarPro, Golub-Pereyra"), ("kaufman", "VarPro, Kaufman")]
for jacobian, name in methods:
    path = paths[name] = []
    began = time.perf_counter()
    seen = lambda step, path=path: path.append(step.objective)  # noqa: E731
    fit = varpro(decays, start, y, inputs=(t,), jacobian=jacobian, callback=seen)
    print(f"{name}: {fit.steps} steps, {1e3 * (time.perf_counter() - began):.0f} ms, {fit.reason}")
rates = np.exp(np.array(fit.alpha))
errors = rates * np.array(fit.standard_errors.alpha)
order = np.argsort(rates)
for true, rate, error in zip(RATES, rates[order], errors[order], strict=True):
    print(f"rate {rate:.4f} +- {error:.4f} (true: {true})")
print(f"noise {fit.residual_std.item():.5f} (true: {NOISE}), {fit.evaluations}")

# The full problem from the same start, its amplitudes given the best values they can have there.
full_path = []


def phi(log_rates):
    return np.exp(-np.outer(times, np.exp(log_rates)))


def full_residual(b):
    difference = (phi(b[:3]) @ b[3:].reshape(3, -1) - data).ravel()
    full_path.append(difference @ difference)
    return difference


def full_jacobian(b):
    k, basis, amplitudes = data.shape[1], phi(b[:3]), b[3:].reshape(3, -1)
    slopes = -np.exp(b[:3]) * times[:, None] * basis
    nonlinear = (slopes[:, None, :] * amplitudes.T[None]).reshape(-1, 3)
    return np.hstack([nonlinear, np.einsum("mn,kl->mknl", basis, np.eye(k)).reshape(-1, 3 * k)])


first = np.array(start)
best = np.linalg.lstsq(phi(first), data, rcond=None)[0]
began = time.perf_counter()
everything = np.concatenate([first, best.ravel()])
options: dict = {"jac": full_jacobian, "x_scale": "jac", "xtol": 1e-10, "ftol": 1e-15, "gtol": 1e-10}
full = least_squares(full_residual, everything, **options)
print(f"all {full.x.size} parameters (SciPy): {full.nfev} evaluations, {1e3 * (time.perf_counter() - began):.0f} ms")
paths[f"all {full.x.size} parameters (SciPy)"] = np.minimum.accumulate(full_path[1:])

# The picture.
figure, ((traces, das), (rest, convergence)) = plt.subplots(2, 2, figsize=(11, 7.5), constrained_layout=True)
fine = np.geomspace(times[0], times[-1], 200)
mean, error = (np.array(part) for part in fit.predict(inputs=(float64(fine),)))
for i, wavelength in enumerate([470, 540, 620]):
    j = int(np.argmin(abs(wavelengths - wavelength)))
    traces.plot(times, data[:, j], ".", color=f"C{i}", markersize=4, alpha=0.5)
    traces.plot(fine, mean[:, j], color=f"C{i}", label=f"{wavelengths[j]:.0f} nm")
    band = 1.96 * error[:, j]
    traces.fill_between(fine, mean[:, j] - band, mean[:, j] + band, color=f"C{i}", alpha=0.3)
traces.set(xscale="log", xlabel="time", ylabel="signal", title="Data, fit and 95 % confidence band")
traces.legend()

amplitudes, spread = np.array(fit.linear), np.array(fit.standard_errors.linear)
for i, row in enumerate(order):
    das.plot(wavelengths, spectra[i], color=f"C{i}", linewidth=1)
    label = f"rate {rates[row]:.3f} ± {errors[row]:.3f}"
    das.errorbar(wavelengths, amplitudes[row], 1.96 * spread[row], fmt=".", color=f"C{i}", markersize=4, label=label)
das.set(xlabel="wavelength (nm)", ylabel="amplitude", title="Spectra of the three species; lines: truth")
das.legend()

shown = rest.pcolormesh(times, wavelengths, np.array(fit.residuals).T / NOISE, cmap="RdBu_r", vmin=-4, vmax=4)
rest.set(xscale="log", xlabel="time", ylabel="wavelength (nm)", title="Residuals, in units of the noise")
figure.colorbar(shown, ax=rest)

lowest = min(min(path) for path in paths.values())
for (name, path), style in zip(paths.items(), ["o-", "s--", ".-"], strict=True):
    convergence.plot(range(1, len(path) + 1), np.array(path) / lowest - 1 + 1e-15, style, markersize=4, label=name)
convergence.set(yscale="log", xlabel="steps tried", ylabel="excess of the sum of squares", title="Convergence")
convergence.set_ylim(1e-15, None)
convergence.legend()

figure.savefig(picture("varpro_exponentials.png"), dpi=120)
print(f"wrote {picture('varpro_exponentials.png')}")
assert math.isclose(float(np.array(fit.rss)), 2 * full.cost, rel_tol=1e-6), "both find the same minimum"
