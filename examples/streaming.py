"""Ten million rows of 64 features through ReadoutStatistics, with means a thousand times the spread.

    python examples/streaming.py [--rows 10000000]

Prints how fast the rows went through, beside the Gram products alone, and how far the weights are from the truth,
beside raw sums of products in float32. Writes streaming.png and streaming.safetensors.
With PINVNN_EXAMPLE_SIZE=small it takes seconds.
"""

import argparse
import copy
import time

import mlx.core as mx
from _common import SMALL, picture
from matplotlib import pyplot as plt
from tqdm import tqdm

from pinvnn.streaming import ReadoutStatistics

FEATURES, MEAN, NOISE = 64, 1000.0, 0.1
CHUNK = 2_000 if SMALL else 100_000


class Source:
    """Rows y = W (x - mean) + noise in chunks that are made as they are asked for."""

    def __init__(self):
        keys = mx.random.split(mx.random.key(0), 4)
        self.weight = mx.random.normal((FEATURES, 1), key=keys[0])
        self.normal = [mx.random.normal((CHUNK, FEATURES), key=key) for key in keys[1:3]]
        self.noise = NOISE * mx.random.normal((CHUNK, 1), key=keys[3])

    def chunk(self, i):
        # Each chunk adds the two pools with another offset: new rows that are cheaper than new random numbers.
        first, second = self.normal
        x = (first + mx.roll(second, 37 * i + 1, 0)) / 2**0.5
        y = x @ self.weight + mx.roll(self.noise, 53 * i, 0)
        return x + MEAN, y

    def error(self, weight):
        return mx.max(mx.abs(weight.T - self.weight)).item()


class RawSums:
    """What not to do: sums of products in float32, centred at the end."""

    def __init__(self):
        self.count, self.x, self.y = 0, mx.zeros((FEATURES,)), mx.zeros((1,))
        self.xx, self.xy = mx.zeros((FEATURES, FEATURES)), mx.zeros((FEATURES, 1))

    def update(self, x, y):
        self.count += x.shape[0]
        self.x, self.y = self.x + mx.sum(x, axis=0), self.y + mx.sum(y, axis=0)
        self.xx, self.xy = self.xx + x.T @ x, self.xy + x.T @ y
        mx.eval(self.x, self.y, self.xx, self.xy)

    def solve(self):
        x, y = self.x / self.count, self.y / self.count
        gram, rhs = self.xx - self.count * x[:, None] * x, self.xy - self.count * x[:, None] * y
        return mx.linalg.solve(gram, rhs, stream=mx.cpu).T


def seconds(fn, *args):
    start = time.perf_counter()
    mx.eval(fn(*args))
    return time.perf_counter() - start


def products(x, y):
    return x.T @ x, x.T @ y


def compare(stats, x, y):
    """Seconds for the update with a chunk, and for its Gram products alone in float32 and float64, on the CPU."""
    with mx.stream(mx.cpu):
        wide = x.astype(mx.float64), y.astype(mx.float64)
        mx.eval(wide)
        return [
            seconds(lambda: stats.update(x, y).moments),
            seconds(products, x, y),
            seconds(products, *wide),
        ]


def main(rows):
    source, stats, raw = Source(), ReadoutStatistics(FEATURES, 1), RawSums()
    chunks = -(-rows // CHUNK)
    total, samples, seen = 0.0, [], []
    with tqdm(total=chunks * CHUNK, unit="row", unit_scale=True) as bar:
        for i in range(chunks):
            x, y = source.chunk(i)
            mx.eval(x, y)
            if i % 10 == 0:
                samples.append(compare(stats, x, y))
                total += samples[-1][0]
            else:
                total += seconds(lambda x=x, y=y: stats.update(x, y).moments)
            if 10 * i < chunks or i < 2:  # Enough to see where it leads.
                raw.update(x, y)
            if i & (i + 1) == 0 or i + 1 == chunks:  # 1, 2, 4, 8, ... chunks
                seen.append([stats.count, source.error(stats.solve()[0]), raw.count, source.error(raw.solve())])
                bar.set_postfix(error=f"{seen[-1][1]:.1e}")
            bar.update(CHUNK)
    print(f"{stats.count:,.0f} rows of {FEATURES} features in {total:.1f} s: {1e9 * total / stats.count:.0f} ns a row")
    update, float32, float64 = (sum(times) for times in zip(*samples, strict=True))
    print(f"speed relative to the Gram products alone: {float64 / update:.2f} in float64, as here, ", end="")
    print(f"{float32 / update:.2f} in float32 (on every tenth chunk)")
    print(f"largest error of a weight: {seen[-1][1]:.1e}; by raw sums of products in float32: {seen[-1][3]:.1e}")
    finish(source, stats)
    draw(*zip(*seen, strict=True))


def finish(source, stats):
    """A chunk leaves again, a penalty is chosen, and the state goes to disk and back."""
    before, _ = stats.solve()
    after, _ = copy.copy(stats).downdate(*source.chunk(0)).update(*source.chunk(0)).solve()
    print(f"a chunk removed and added again changes the weights by {mx.max(mx.abs(after - before)).item():.1e}")
    scores = {l2: stats.gcv(l2).item() for l2 in (0.0, 1.0, 1e2, 1e4, 1e6)}
    best = min(scores, key=scores.__getitem__)
    print(f"generalized cross validation: l2 = {best:g}, error {scores[best] ** 0.5:.4f} (the noise is {NOISE})")
    path = picture("streaming.safetensors")
    stats.save(path)
    loaded = ReadoutStatistics.load(path)
    print(f"{path}: {path.stat().st_size:,} bytes hold {loaded.count:,.0f} rows")


def draw(seen, ours, seen_raw, theirs):
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.loglog(seen_raw, theirs, "o-", color="tab:red", label="raw sums of products, float32")
    axes.loglog(seen, ours, "o-", color="tab:blue", label="ReadoutStatistics")
    axes.loglog(seen, [3 * NOISE / count**0.5 for count in seen], ":", color="gray", label="3 noise / sqrt(rows)")
    axes.set(xlabel="rows", ylabel="largest error of a weight", title=f"{FEATURES} features, mean / spread = {MEAN:g}")
    axes.legend()
    figure.savefig(picture("streaming.png"), dpi=150)
    print(f"wrote {picture('streaming.png')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000 if SMALL else 10_000_000)
    main(parser.parse_args().rows)
