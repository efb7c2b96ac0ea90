"""A process that holds one library and answers requests, one line of JSON each."""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import blas
from .cases import Case
from .judge import Judge
from .peers.base import Unsupported

SHARE_OF_MEMORY = 0.75  # one allocation beyond it fails in its library instead of calling for the kernel's help


class Runner:
    """Runs one library's operations."""

    def __init__(self, peer):
        self.peer = peer
        self.prepared: tuple | None = None
        self.function: Callable = _nothing
        self.data: Any = None
        self.outputs: Any = None
        self.seconds = 1.0

    def about(self):
        return {"versions": self.peer.versions(), "blas": self.peer.blas() + blas.loaded(self.peer.uses_numpy)}

    def load(self, case, mode, files):
        """Load data, compile if the library does and the case is new, call; the answer is the seconds of a call."""
        self.data = self.outputs = None
        gc.collect()
        data = {name: self.peer.load(value) if isinstance(value, str) else value for name, value in files.items()}
        self.data = SimpleNamespace(**data)
        if self.prepared != (case, mode):
            self.function = self.peer.prepare(Case(**case), mode, self.data)
            self.prepared = (case, mode)
        seconds = self._timed(1)
        if seconds < 1:  # the first call paid for pages, threads and caches
            seconds = self._timed(1)
        self.seconds = seconds
        return seconds

    def turn(self, least):
        """Seconds per call, over calls of ``least`` seconds together, after an untimed one that wakes the threads."""
        repeats = max(1, min(1000, int(least / self.seconds)))
        if repeats > 1:
            self._timed(1)
        return self._timed(repeats) / repeats

    def save(self, folder):
        """Results of the last call, as files."""
        paths = []
        for i, output in enumerate(self.outputs):
            paths.append(str(Path(folder) / f"result{i}.npy"))
            np.save(paths[-1], self.peer.numpy(output))
        self.outputs = None
        return paths

    def peak(self, case, mode, files):
        """Most bytes held while loading and calling, beyond those held after ``load`` of a small case."""
        self.data = self.outputs = None
        gc.collect()
        _reset_peak()
        before = _memory("VmRSS") or _highest()
        self.load(case, mode, files)
        return (_memory("VmHWM") or _highest()) - before

    def _timed(self, repeats):
        self.outputs = outputs = None
        start = perf_counter()
        for _ in range(repeats):
            outputs = self.function(self.data)
            self.peer.finish(outputs)
        seconds = perf_counter() - start
        self.outputs = outputs
        return seconds


def _nothing(data):
    raise RuntimeError("nothing is loaded")


def _memory(field):
    """A line of /proc/self/status in bytes, None where there is none."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))
    except (OSError, StopIteration):
        return None


def _highest():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _reset_peak():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def _limit_memory():
    if sys.platform == "linux":
        most = int(SHARE_OF_MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _server(module, name, device):
    if module == "judge":
        return Judge()
    if device == "cpu":
        _limit_memory()
    return Runner(importlib.import_module(f"benchmarks.peers.{module}").Peer(name, device))


def _answer(server, line):
    request = json.loads(line)
    try:
        return {"value": getattr(server, request["method"])(**request["arguments"])}
    except Unsupported as error:
        return {"unsupported": str(error)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:160]}


def main(module, name, device):
    # Libraries print what they like: the answers have a channel that only they use.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        server = _server(module, name, device)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), file=channel, flush=True)
        return
    gc.disable()  # no collection inside a timed call,
    gc.freeze()  # and quick ones between: what an import made stays
    print(json.dumps({"value": None}), file=channel, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(server, line)), file=channel, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
