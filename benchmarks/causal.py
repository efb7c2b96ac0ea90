"""causal_ridge beside a loop of steps and softmax attention: ``python -m benchmarks.causal [--length T] [--rounds N]``.

float32, one head of n = p = 64. Seconds of the value and of value and gradient, compiled, measured in turns (medians,
and the medians of the ratios to causal_ridge, round by round), and the peak of memory beyond the inputs. The loop takes
one position after the other, as decoding does; its gradient is left out beyond 512 positions: its graph is too large.
"""

from __future__ import annotations

import argparse
from time import perf_counter

import mlx.core as mx
import numpy as np

from pinvnn import causal_ridge, causal_ridge_step

L2 = 0.01


def ours(q, k, v, decay):
    return causal_ridge(q, k, v, L2, decay=decay)


def softmax(q, k, v, decay):
    return mx.fast.scaled_dot_product_attention(
        q[None, None], k[None, None], v[None, None], scale=q.shape[-1] ** -0.5, mask="causal"
    )[0, 0]


def linear(q, k, v, decay):
    return mx.tril(q @ k.T) @ v


def loop(q, k, v, decay):
    state, out = None, []
    for t in range(q.shape[0]):
        at = slice(t, t + 1)
        piece, state = causal_ridge_step(q[at], k[at], v[at], L2, state, decay=decay[at])
        mx.async_eval(piece, state)
        out.append(piece)
    return mx.concatenate(out)


def traced_loop(q, k, v, decay):
    state, out = None, []
    for t in range(q.shape[0]):
        at = slice(t, t + 1)
        piece, state = causal_ridge_step(q[at], k[at], v[at], L2, state, decay=decay[at])
        out.append(piece)
    return mx.concatenate(out)


def gradient(fn):
    return mx.value_and_grad(lambda *args: mx.sum(mx.square(fn(*args))), argnums=[0, 1, 2, 3])


def measured(calls, args, rounds):
    """Seconds, ``(rounds, calls)``, and the peak memory of each beyond the inputs."""
    times, peaks = np.zeros((rounds + 1, len(calls))), np.zeros(len(calls))
    for i in range(rounds + 1):
        for j in range(len(calls)) if i % 2 else reversed(range(len(calls))):
            mx.clear_cache()
            mx.reset_peak_memory()
            before, start = mx.get_active_memory(), perf_counter()
            mx.eval(calls[j](*args))
            times[i, j] = perf_counter() - start
            peaks[j] = mx.get_peak_memory() - before
    return times[1:], peaks  # the first round compiles


def report(title, calls, args, rounds):
    times, peaks = measured(list(calls.values()), args, rounds)
    print(title)
    for j, name in enumerate(calls):
        ratio = np.median(times[:, j] / times[:, 0])
        print(f"    {name:<24}{np.median(times[:, j]):>9.3f} s{ratio:>10.3f} x{peaks[j] / 1e6:>10.0f} MB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    q, k, v = (mx.array(rng.standard_normal((args.length, args.features)) / 8, mx.float32) for _ in range(3))
    inputs = q, k, v, mx.array(rng.uniform(0.9, 1, args.length), mx.float32)
    mx.eval(inputs)
    contenders = {"causal_ridge": ours, "softmax attention": softmax, "linear attention": linear}
    title = f"T = {args.length}, n = p = {args.features}"
    values = {name: mx.compile(fn) for name, fn in contenders.items()} | {"loop of steps": loop}
    report(f"{title}: value", values, inputs, args.rounds)
    gradients = {name: mx.compile(gradient(fn)) for name, fn in contenders.items()}
    if args.length <= 512:
        gradients["loop of steps, eager"] = gradient(traced_loop)
    report(f"{title}: value and gradient", gradients, inputs, args.rounds)


if __name__ == "__main__":
    main()
