"""nnls beside a loop over SciPy's nnls: ``python -m benchmarks.nnls [--rounds N]``.

Medians in milliseconds, measured in turns, and of the ratios loop / nnls round by round: above 1 nnls is faster.
Both start from and end in MLX arrays. The data are positive parts, positive amounts and noise.
"""

from __future__ import annotations

import argparse
from time import perf_counter

import mlx.core as mx
import numpy as np
from scipy.optimize import nnls as scipy_nnls

from pinvnn import nnls

SIZES = [(90, 120, 16), (300, 40, 6), (30, 400, 40), (1, 20000, 16)]


def loop(a: mx.array, b: mx.array) -> mx.array:
    left, right = np.array(a), np.array(b)
    return mx.array(np.stack([scipy_nnls(x, y[:, 0])[0][:, None] for x, y in zip(left, right, strict=True)]), a.dtype)


def problem(count: int, m: int, n: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    rng = np.random.default_rng(0)
    a = np.abs(rng.standard_normal((count, m, n)))
    b = a @ np.maximum(rng.standard_normal((count, n, 1)), 0) + 0.3 * rng.standard_normal((count, m, 1))
    return mx.array(a, dtype), mx.array(b, dtype)


def seconds(fn, *args) -> float:
    start = perf_counter()
    mx.eval(fn(*args))
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with mx.stream(mx.cpu):
        for size in SIZES:
            for dtype in (mx.float32, mx.float64):
                args = problem(*size, dtype)
                mx.eval(args)
                times = np.array([[seconds(f, *args) for f in (nnls, loop)] for _ in range(rounds + 1)])[1:]
                ours, theirs = 1e3 * np.median(times, axis=0)
                ratio = np.median(times[:, 1] / times[:, 0])
                print(f"{size} {dtype}: nnls {ours:.1f} ms, loop {theirs:.1f} ms, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
