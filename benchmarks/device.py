"""What a device does: ``python -m benchmarks.device`` (eight minutes at most) writes device.json and device.md.

Names the device, MLX, whether its float32 products are TF32 and whether sums of products of digits are exact; measures
the errors of values and gradients against float64, times of compiled gradients on the device, on our own CPU route and
in PyTorch on the same GPU, and peak memory. ``--emulated`` runs all of it on an emulated GPU, whose times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import mlx.core as mx
import numpy as np

import pinvnn
from pinvnn._mlx.slices import crosses_by_slices
from pinvnn.nn import LeastSquaresReadout

LIMIT = 480.0  # seconds


def probe_tf32() -> bool:
    """Whether 1 + 2^-12 loses its last bit in a product."""
    x = (1 + 2.0**-12) * mx.eye(32)
    return float(mx.max(x @ x)) < 1 + 2.0**-11


def probe_exact_sums() -> bool:
    """Whether integers up to 128 are multiplied and summed without an error up to 2^24."""
    rng = np.random.default_rng(0)
    a, b = (rng.choice([-128.0, -127.0, 127.0, 128.0], shape) for shape in [(32, 1024), (1024, 32)])
    a[0], b[:, 0] = 128.0, 128.0
    return bool(np.array_equal(np.array(mx.array(a, mx.float32) @ mx.array(b, mx.float32)), a @ b))


def problem(m, n, k, condition):
    rng = np.random.default_rng(0)
    x, v = rng.standard_normal((m, n)), np.linalg.qr(rng.standard_normal((n, n)))[0]
    a = (x * np.geomspace(1, 1 / condition, n)) @ v.T
    return a.astype(np.float32), rng.standard_normal((m, k)).astype(np.float32)


def readout(a, b):
    return LeastSquaresReadout(a.shape[-1], b.shape[-1], l2=1e-3, bias=False)


FUNCTIONS = {
    "pinv": lambda a, b: mx.sum(pinvnn.pinv(a, method="cholesky") ** 2),
    "lstsq": lambda a, b: mx.sum(pinvnn.lstsq(a, b, method="cholesky").solution),
    "ridge": lambda a, b: mx.sum(pinvnn.ridge(a, b, 1e-3)),
    "adapt": lambda a, b: mx.sum(readout(a, b).adapt(a, b, a) ** 2),
    "loo_loss": lambda a, b: readout(a, b).loo_loss(a, b),
}


def accuracy():
    """Relative error of value and gradients of each function at two condition numbers."""
    rows = []
    for condition in (10, 1e4):
        a, b = (mx.array(x) for x in problem(1000, 32, 3, condition))
        for name, fn in FUNCTIONS.items():
            run = mx.value_and_grad(fn, argnums=(0, 1))
            with mx.stream(mx.cpu):
                want = _numbers(run(a.astype(mx.float64), b.astype(mx.float64)))
            got = _numbers(run(a, b))
            errors = [float(np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in zip(got, want, strict=True)]
            rows.append({"function": name, "condition": condition, "value": errors[0], "gradient": max(errors[1:])})
        want = np.array(a).astype(float).T @ np.array(a).astype(float)
        gram = np.array(crosses_by_slices(a)[0])
        error = float(np.linalg.norm(gram - want) / np.linalg.norm(want))
        rows.append({"function": "Gram matrix by slices", "condition": condition, "value": error, "gradient": None})
    return rows


def _numbers(out):
    mx.eval(out)
    value, bars = out
    return [x for x in (np.array(v).astype(float) for v in (value, *bars)) if np.any(x)]


def times(shapes, until):
    """Medians in ms of compiled gradients, the contenders by turns, and MLX's peak memory on the device."""
    rows = []
    for m, n in shapes:
        a, b = problem(m, n, 3, 10)
        for name, fn in FUNCTIONS.items():
            if time.perf_counter() > until:
                return rows
            runs = {"device": _mlx_step(fn, a, b, None), "cpu": _mlx_step(fn, a, b, mx.cpu)}
            if (theirs := _torch_step(name, a, b)) is not None:
                runs["torch"] = theirs
            mx.reset_peak_memory()
            runs["device"]()
            row = {"function": name, "shape": [m, n], "peak_bytes": mx.get_peak_memory()}
            rows.append(row | _by_turns(runs))
        rows.append({"function": "Gram matrix by slices", "shape": [m, n], "peak_bytes": None} | _gram_times(a))
    return rows


def _by_turns(runs, rounds=7):
    seconds = {name: [] for name in runs}
    for step in runs.values():
        step()
    for _ in range(rounds):
        for name, step in runs.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def _mlx_step(fn, a, b, device):
    place = nullcontext() if device is None else mx.stream(device)
    with place:
        a, b = mx.array(a), mx.array(b)
        step = mx.compile(mx.value_and_grad(fn, argnums=(0, 1)))

    def run():
        with nullcontext() if device is None else mx.stream(device):
            mx.eval(step(a, b))

    return run


def _gram_times(a):
    x = mx.array(a)
    sliced = mx.compile(lambda x: crosses_by_slices(x)[0])

    def on_cpu():
        with mx.stream(mx.cpu):
            wide = x.astype(mx.float64)
            mx.eval(wide.T @ wide)

    return _by_turns({"device": lambda: mx.eval(sliced(x)), "cpu": on_cpu})


def _torch_step(name, a, b):
    try:
        import torch
    except ImportError:
        return None
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    functions = {
        "pinv": lambda a, b: (torch.linalg.pinv(a) ** 2).sum(),
        "lstsq": lambda a, b: torch.linalg.lstsq(a, b).solution.sum(),
        "ridge": lambda a, b: torch.linalg.solve(a.T @ a + 1e-3 * eye, a.T @ b).sum(),
    }
    if device is None or name not in functions:
        return None
    eye = torch.eye(a.shape[1], device=device)
    x, y = (torch.tensor(v, device=device, requires_grad=True) for v in (a, b))

    def run():
        functions[name](x, y).backward()
        x.grad = y.grad = None
        torch.cuda.synchronize() if device == "cuda" else torch.mps.synchronize()

    try:
        run()
    except (RuntimeError, NotImplementedError):
        return None
    return run


def markdown(report) -> str:
    facts = [f"{key}: {report[key]}" for key in ("device", "mlx", "tf32", "exact_sums", "seconds")]
    lines = ["; ".join(facts), "", "| function | condition | error of the value | of the gradient |"]
    lines.append("|---|---|---|---|")
    for row in report["accuracy"]:
        gradient = "" if row["gradient"] is None else f"{row['gradient']:.1e}"
        lines.append(f"| {row['function']} | {row['condition']:.0e} | {row['value']:.1e} | {gradient} |")
    lines += ["", "| function | shape | device, ms | CPU, ms | PyTorch, ms | peak, MB |", "|---|---|---|---|---|---|"]
    for row in report["times"]:
        cells = [f"{row[key]:.2f}" if row.get(key) is not None else "" for key in ("device", "cpu", "torch")]
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        lines.append(f"| {row['function']} | {tuple(row['shape'])} | {' | '.join(cells)} | {peak} |")
    return "\n".join(lines) + "\n"


def device_name() -> str:
    if mx.default_device() == mx.cpu:
        return f"CPU, {platform.processor() or platform.machine()}"
    try:
        return str(mx.device_info(mx.default_device()).get("device_name", mx.default_device()))
    except (AttributeError, RuntimeError, TypeError):
        return f"{mx.default_device()}, {platform.machine()}"


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__.split("\n")[0])
    parser.add_argument("--emulated", action="store_true", help="an emulated GPU, on small shapes")
    parser.add_argument("--quick", action="store_true", help="small shapes")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder of device.json and device.md")
    options = parser.parse_args(arguments)
    patches = None
    if options.emulated:
        import pytest

        from tests.support.emulated_gpu import EmulatedGpu

        patches = pytest.MonkeyPatch()
        EmulatedGpu(patches)
    start = time.perf_counter()
    try:
        report = {
            "device": "emulated GPU" if options.emulated else device_name(),
            "mlx": mx.__version__,
            "tf32": probe_tf32(),
            "exact_sums": probe_exact_sums(),
            "accuracy": accuracy(),
        }
        small = options.emulated or options.quick
        shapes = [(2048, 32)] if small else [(10_000, 64), (4096, 512), (100_000, 64)]
        report["times"] = times(shapes, start + 0.7 * LIMIT)
        report["seconds"] = round(time.perf_counter() - start, 1)
    finally:
        if patches is not None:
            patches.undo()
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "device.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.output / "device.md").write_text(markdown(report))
    print(markdown(report))
    return report


if __name__ == "__main__":
    main()
