"""Scripts on several processes of this machine, by mlx.launch on the ring backend."""

import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(**variables):
    """The environment of a process of the tests: this library, and the device that the tests have."""
    path = os.pathsep.join(map(str, [ROOT / "tests" / "support" / "site", ROOT]))
    return {**os.environ, "PYTHONPATH": path, **variables}


def free_ports(count):
    """The first of ``count`` ports in a row that nobody listens on."""
    for _ in range(100):
        start = random.SystemRandom().randrange(20000, 32000)
        try:
            for port in range(start, start + count):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", port))
        except OSError:
            continue
        return start
    raise OSError("no free ports")


def launch(size, script, *arguments, timeout=120):
    """Run a script on ``size`` ranks. Everything is ended when the time is up: a deadlock is a failure, not a wait."""
    command = [str(Path(sys.executable).with_name("mlx.launch")), "-n", str(size), "--backend", "ring"]
    command += ["--starting-port", str(free_ports(size)), sys.executable, str(script), *map(str, arguments)]
    # A pipe that stays open as stdin: the launcher passes it on, and spins at an end of file.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        process.wait(timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    return output
