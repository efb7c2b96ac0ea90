"""Who takes part: one process each, so that no library shares a BLAS or a thread pool with another."""

from __future__ import annotations

import sys
from dataclasses import dataclass

OURS = "pinvnn"
JUDGE = "judge"
BASELINE = "LAPACK"
AS_INSTALLED = " as installed"


@dataclass(frozen=True)
class Contender:
    """``module`` in ``benchmarks.peers`` and how its process is started.

    Attributes:
        mlx: runs in this interpreter with the preloaded BLAS; others in the interpreter of the peers with none.
        preload: whether an MLX process gets the preloaded BLAS.
        timed: the baseline of errors is not.
        device: "gpu" for the default GPU.
    """

    name: str
    module: str
    mlx: bool = False
    preload: bool = True
    timed: bool = True
    device: str = "cpu"


def contenders(device="cpu", names=None, as_installed=True):
    """All of them, ours first; ``names`` selects among the peers."""
    found = [
        Contender(OURS, "pinvnn_", mlx=True, device=device),
        Contender("floor", "floor", mlx=True, device=device),
        Contender("gram", "floor", mlx=True, device=device),
        Contender(BASELINE, "lapack", timed=False),
        Contender("mx.linalg", "mlx_", mlx=True),
        Contender("numpy", "numpy_"),
        Contender("scipy", "scipy_"),
        Contender("sklearn", "sklearn_"),
        Contender("torch", "torch_"),
        Contender("jax", "jax_"),
        Contender("lineax", "lineax_"),
    ]
    if device == "gpu":
        found.append(Contender("torch gpu", "torch_", device="gpu"))
    if as_installed and sys.platform == "linux":
        found += [Contender(x.name + AS_INSTALLED, x.module, mlx=True, preload=False, device=x.device)
                  for x in found if x.name in (OURS, "mx.linalg")]
    return [x for x in found if not names or is_own(x.name) or x.name.removesuffix(AS_INSTALLED) in names]


def is_own(name):
    """Whether a contender is part of the harness rather than a peer."""
    return name in (OURS, OURS + AS_INSTALLED, "floor", "gram", BASELINE)
