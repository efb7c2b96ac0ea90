"""What a gradient's graph consists of: ``python -m benchmarks.graph``.

Nodes (``mx.export_to_dot``) of eager values with their gradients at (256, 64) with 8 targets: MLX builds them in Python
for each call. Fused kernels of a compiled gradient through a small network: on Linux MLX translates each by the C++
compiler when it is first used, seconds each. Both are numbers of the code and not of the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

import pinvnn
from pinvnn.nn import LeastSquaresReadout

RIDGE = 0.1


def arrays(*shapes: tuple[int, int]) -> list[mx.array]:
    rng = np.random.default_rng(0)
    return [mx.array(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]


def nodes(fn, *args: mx.array) -> int:
    """Nodes of the value and the gradient of ``fn`` in all arguments."""
    mx.eval(args)
    out = mx.value_and_grad(fn, argnums=tuple(range(len(args))))(*args)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.dot"
        mx.export_to_dot(str(path), out)
        return path.read_text().count("label =")


def counted() -> dict[str, int]:
    a, b, again = arrays((256, 64), (256, 8), (256, 64))
    readout = LeastSquaresReadout(64, 8, l2=RIDGE)
    return {
        "pinv": nodes(lambda a: pinvnn.pinv(a).sum(), a),
        "lstsq": nodes(lambda a, b: pinvnn.lstsq(a, b).solution.sum(), a, b),
        "ridge": nodes(lambda a, b: pinvnn.ridge(a, b, RIDGE).sum(), a, b),
        "adapt": nodes(lambda a, b, again: readout.adapt(a, b, again).sum(), a, b, again),
        "projected_loss": nodes(readout.projected_loss, a, b),
        "loo_loss": nodes(readout.loo_loss, a, b),
    }


def compiled_step(method: str) -> None:
    """One compiled gradient step of a small network, through the readout's ``method`` or an ``nn.Linear``."""
    x, y = arrays((256, 16), (256, 8))
    backbone = nn.Sequential(nn.Linear(16, 64), nn.Tanh())
    if method == "nn.Linear":
        backbone.layers.append(nn.Linear(64, 8))
        loss = lambda net: nn.losses.mse_loss(net(x), y)  # noqa: E731
    else:
        readout = LeastSquaresReadout(64, 8, l2=RIDGE)
        loss = lambda net: getattr(readout, method)(net(x), y)  # noqa: E731
    gradient = nn.value_and_grad(backbone, loss)
    mx.eval(mx.compile(lambda: gradient(backbone), inputs=backbone.state)())


def kernels(method: str) -> int:
    """Fused kernels that a compiled step translates, seen in an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.graph", method]
        subprocess.run(command, check=True, env={**os.environ, "TMPDIR": folder})
        return sum(1 for _ in Path(folder).rglob("*.so"))


def main() -> None:
    with mx.stream(mx.cpu):
        if len(sys.argv) > 1:
            compiled_step(sys.argv[1])
            return
        print("nodes:", ", ".join(f"{name} {count}" for name, count in counted().items()))
        if sys.platform.startswith("linux"):
            found = {method: kernels(method) for method in ("nn.Linear", "projected_loss", "loo_loss")}
            print("fused kernels:", ", ".join(f"{name} {count}" for name, count in found.items()))


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    main()
