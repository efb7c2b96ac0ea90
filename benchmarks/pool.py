"""The coordinator's side of the workers."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import IO

from . import blas
from .contenders import BASELINE, JUDGE, Contender
from .peers.base import Unsupported

ROOT = Path(__file__).resolve().parent.parent


class Missing(Exception):
    """The library is not installed."""


class Failed(Exception):
    """The call raised, took too long or killed its process."""


class Worker:
    """One contender's process, started when first needed and again after it died."""

    def __init__(self, contender: Contender, python, preload, log):
        self.contender, self.python, self.preload, self.log = contender, python, preload, log
        self.process: subprocess.Popen | None = None
        self.ready = False
        self.unread = b""

    @property
    def name(self):
        return self.contender.name

    def start(self):
        """Start the process without waiting for its imports."""
        if self.process is None:
            self.ready, self.unread = False, b""
            self.process = subprocess.Popen(
                [self.python, "-m", "benchmarks.worker", self.contender.module, self.name, self.contender.device],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, cwd=ROOT, env=self._environment())

    def call(self, method, timeout, **arguments):
        """What the worker's method returns.

        While it is not asked, a worker is stopped: threads of BLAS and OpenMP that spin after a call would disturb the
        next worker's turn.
        """
        self.start()
        assert self.process is not None and self.process.stdin is not None
        if not self.ready:
            self._receive(60 + timeout)
            self.ready = True
        try:
            self.process.send_signal(signal.SIGCONT)
            self.process.stdin.write(json.dumps({"method": method, "arguments": arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._died()
        try:
            return self._receive(timeout)
        finally:
            if self.process is not None:
                self.process.send_signal(signal.SIGSTOP)

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
            self.process.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]
            self.process = None

    def _environment(self):
        environment = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONWARNINGS="ignore", JAX_PLATFORMS="cpu")
        environment.pop("LD_PRELOAD", None)
        if self.contender.mlx and self.contender.preload and self.preload:
            environment["LD_PRELOAD"] = self.preload
        if self.name in (JUDGE, BASELINE):  # many small products, which gain nothing from threads
            environment["OPENBLAS_NUM_THREADS"] = "1"
        return environment

    def _receive(self, timeout):
        answer = json.loads(self._line(timeout))
        if "missing" in answer:
            self.close()
            raise Missing(answer["missing"])
        if "unsupported" in answer:
            raise Unsupported(answer["unsupported"])
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer["value"]

    def _line(self, timeout):
        assert self.process is not None and self.process.stdout is not None
        deadline = monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.unread:
                if not selector.select(max(0.0, deadline - monotonic())):
                    self.close()
                    raise Failed(f"over {timeout:g} s")
                part = os.read(self.process.stdout.fileno(), 1 << 16)
                if not part:
                    self._died()
                self.unread += part
        line, self.unread = self.unread.split(b"\n", 1)
        return line

    def _died(self):
        assert self.process is not None
        code = self.process.wait()
        self.close()
        raise Failed("killed, probably for memory" if code == -signal.SIGKILL else f"the process died ({code})")


class Pool:
    """All workers of a run."""

    def __init__(self, contenders, peer_python=None, preload=True, log: int | IO = subprocess.DEVNULL):
        self.preload = blas.preloadable() if preload else None
        peers = peer_python or sys.executable
        # Without a BLAS to preload, "as installed" is what runs anyway.
        contenders = [x for x in contenders if x.preload or self.preload]
        self.workers = {x.name: Worker(x, sys.executable if x.mlx else peers, self.preload, log) for x in contenders}
        self.judge = Worker(Contender(JUDGE, JUDGE), peers, None, log)

    def start(self):
        """Start every process; the answer has what each says about itself, or why it is missing."""
        everyone = [self.judge, *self.workers.values()]
        for worker in everyone:
            worker.start()
        about, missing = {}, {}
        for worker in everyone:
            try:
                about[worker.name] = worker.call("about", 60)
            except (Missing, Failed) as error:
                missing[worker.name] = str(error)
                self.workers.pop(worker.name, None)
        if JUDGE in missing:
            raise SystemExit(f"the judge needs NumPy: {missing[JUDGE]}")
        return about, missing

    def about(self):
        """What each process says about itself now."""
        found = {}
        for name, worker in self.workers.items():
            try:
                found[name] = worker.call("about", 60)
            except Failed:
                pass
        return found

    def fresh(self, name):
        """A second process of a contender, for a measurement that must not see the first one's past."""
        worker = self.workers[name]
        return Worker(worker.contender, worker.python, worker.preload, worker.log)

    def close(self):
        for worker in [self.judge, *self.workers.values()]:
            worker.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
