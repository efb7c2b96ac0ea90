"""Features trained through a readout whose rows lie on four ranks, each of which sees one part of the curve only.

    python examples/distributed.py                                        starts four ranks on this machine
    mlx.launch --hostfile hosts.json --backend ring python examples/distributed.py   on several Macs (docs/streaming.md)

Every rank puts its own rows through the same sine features, the readout comes from the statistics of all ranks, and the
gradient of the frequencies goes back through it. The last rank has no rows at all. Started without a launcher, it also
trains in one process on all rows and compares. Writes distributed.png. With PINVNN_EXAMPLE_SIZE=small it takes seconds.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from _common import SMALL, picture
from matplotlib import pyplot as plt
from mlx.utils import tree_map

from pinvnn.streaming import ReadoutStatistics

RANKS, ROWS, FEATURES, STEPS = (2, 200, 8, 5) if SMALL else (4, 3000, 12, 60)
L2 = 1.0


class Sines(nn.Module):
    """x (m, 1) -> sin(frequency x + phase) (m, FEATURES)."""

    def __init__(self):
        super().__init__()
        keys = mx.random.split(mx.random.key(1))
        self.frequency = 3 * mx.random.normal((1, FEATURES), key=keys[0])
        self.phase = 3 * mx.random.normal((FEATURES,), key=keys[1])

    def __call__(self, x):
        return mx.sin(x @ self.frequency + self.phase)


def curve():
    """All rows: a chirp with noise, in order."""
    x = mx.linspace(-2.0, 2.0, ROWS)[:, None]
    return x, mx.sin(2 * x * x + x) + 0.05 * mx.random.normal(x.shape, key=mx.random.key(0))


def own_part(x, y, rank, size):
    """A stretch of the curve for each rank but the last, which has none."""
    edges = [i * ROWS // max(size - 1, 1) for i in range(size)] + [ROWS]
    return (x, y) if size == 1 else (x[edges[rank] : edges[rank + 1]], y[edges[rank] : edges[rank + 1]])


def fitted(features, x, y, group):
    """The readout of all ranks' rows, at this rank's rows."""
    z = features(x)
    weight, bias = ReadoutStatistics(FEATURES, 1).update(z, y).all_reduce(group).solve(L2)
    assert bias is not None  # for the type checker
    return z @ weight.T + bias


def train(group):
    """The losses at every step, the same on every rank, and the fitted curve of this rank's rows."""
    x, y = own_part(*curve(), group.rank(), group.size())
    features, optimizer = Sines(), optim.Adam(learning_rate=0.02)

    def own_loss(features):
        return mx.sum((fitted(features, x, y, group) - y) ** 2) / ROWS

    losses = []
    for _ in range(STEPS):
        loss, gradient = nn.value_and_grad(features, own_loss)(features)
        # all_reduce sees to it that each rank's gradient is that of all losses; what is left is to add up the
        # contributions of the ranks' rows to the parameters that they share.
        gradient = tree_map(lambda g: mx.distributed.all_sum(g, group=group), gradient)
        optimizer.update(features, gradient)
        losses.append(mx.distributed.all_sum(loss, group=group).item())
        mx.eval(features.parameters(), optimizer.state)
    return losses, (x, fitted(features, x, y, group))


def run_rank(group):
    losses, (x, fit) = train(group)
    where = f"rank {group.rank()} of {group.size()}: {x.shape[0]} rows"
    print(f"{where}, loss {losses[0]:.5f} -> {losses[-1]:.5f}", flush=True)
    folder = os.environ.get("PINVNN_RANKS_FOLDER")
    if folder:
        result = {"losses": losses, "x": x.reshape(-1).tolist(), "fit": fit.reshape(-1).tolist()}
        Path(folder, f"{group.rank()}.json").write_text(json.dumps(result))


def run_ranks():
    """Start the ranks on this machine and collect what they found."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = min(s.getsockname()[1], 65535 - RANKS)
    with tempfile.TemporaryDirectory() as folder:
        launcher = [str(Path(sys.executable).with_name("mlx.launch")), "-n", str(RANKS), "--backend", "ring"]
        command = [*launcher, "--starting-port", str(port), sys.executable, str(Path(__file__).resolve())]
        environment = {**os.environ, "PINVNN_RANKS_FOLDER": folder}
        # The launcher reads its input without a pause once that has ended: a pipe stays open.
        subprocess.run(command, env=environment, check=True, stdin=os.pipe()[0])
        found = [Path(folder, f"{rank}.json") for rank in range(RANKS)]
        missing = [path.stem for path in found if not path.exists()]
        if missing:
            raise SystemExit(f"distributed.py: no result from rank {', '.join(missing)}; see the output above")
        return [json.loads(path.read_text()) for path in found]


def draw(ranks, losses):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    x, y = curve()
    left.plot(x.reshape(-1).tolist(), y.reshape(-1).tolist(), ".", markersize=2, color="0.6", label="data")
    for rank, result in enumerate(ranks):
        left.plot(result["x"], result["fit"], label=f"rank {rank}: {len(result['x'])} rows")
    left.set(xlabel="x", ylabel="y", title="one readout, fitted where no rank sees all")
    left.legend()
    right.semilogy(losses, "-", linewidth=4, color="lightgray", label="one process, all rows")
    right.semilogy(ranks[0]["losses"], "--", color="tab:blue", label=f"{len(ranks)} ranks")
    right.set(xlabel="step", ylabel="mean squared error", title="training the frequencies")
    right.legend()
    figure.savefig(picture("distributed.png"), dpi=150)
    print(f"wrote {picture('distributed.png')}")


def main():
    group = mx.distributed.init()
    if group.size() > 1:
        run_rank(group)
        return
    losses, _ = train(group)
    print(f"one process: {ROWS} rows, loss {losses[0]:.5f} -> {losses[-1]:.5f}", flush=True)
    ranks = run_ranks()
    apart = max(abs(a - b) / a for result in ranks for a, b in zip(losses, result["losses"], strict=True))
    print(f"largest relative difference of a loss over {STEPS} steps: {apart:.1e}")
    draw(ranks, losses)


if __name__ == "__main__":
    main()
