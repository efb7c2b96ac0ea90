"""How long ``import pinvnn`` takes beside ``import mlx.core``, each repetition in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import median

from .pool import ROOT

_CODE = """
from time import perf_counter
times = [perf_counter()]
import mlx.core
times.append(perf_counter())
import pinvnn
times.append(perf_counter())
print([b - a for a, b in zip(times, times[1:])])
"""


def import_times(repeats):
    """Milliseconds: of ``import mlx.core``, and what ``import pinvnn`` adds; medians and all repetitions."""
    runs = []
    # With the bytecode of an installed package, which the first run writes.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(repeats + 1):
        done = subprocess.run([sys.executable, "-c", _CODE], cwd=ROOT, env=environment, capture_output=True, text=True,
                              check=True)
        runs.append([1e3 * x for x in json.loads(done.stdout)])
    mlx, added = zip(*runs[1:], strict=True)
    return {"mlx.core": median(mlx), "added": median(added), "all": runs[1:]}
