"""A command that is killed goes on from its last checkpoint, and several processes share the text."""

import json
import signal
import subprocess
import sys
import time

import mlx.core as mx
import numpy as np

from pinvnn._command import main
from tests.support.launch import environment, launch

# The command as a user runs it, except that the second chunk waits forever.
SLOW = """
import sys, time
from pinvnn._command import main
from pinvnn._lm import stream

real = stream.TextReader.batches

def batches(self, texts):
    while texts.index == 1:
        time.sleep(0.01)
    return real(self, texts)

stream.TextReader.batches = batches
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_repair_goes_on(tiny, packed, texts, tmp_path):
    output = tmp_path / "out"
    arguments = ["repair", "--model", str(packed), "--original", str(tiny), "--data", str(texts), "--rank", "4"]
    command = [sys.executable, "-c", SLOW, *arguments, "--output", str(output), "--save-every", "0"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (output / "checkpoint" / "rank0-00000001").exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finally:
        process.kill()
        process.wait()
    assert [path.name for path in output.iterdir()] == ["checkpoint"]

    assert main([*arguments, "--output", str(output)]) == 0
    assert main([*arguments, "--output", str(tmp_path / "whole")]) == 0
    assert json.loads((output / "repair.json").read_text())["resumed_texts"] == 256
    a, b = (mx.load(str(folder / "adapters.safetensors")) for folder in (output, tmp_path / "whole"))
    assert isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys()
    assert all(mx.array_equal(a[key], b[key]) for key in a)


def test_two_processes_find_what_one_finds(tiny, packed, texts, tmp_path):
    arguments = ["repair", "--model", packed, "--original", tiny, "--data", texts, "--rank", "4", "--output"]
    said = launch(2, "-m", "pinvnn", *arguments, tmp_path / "two")
    assert (tmp_path / "two" / "repair.json").exists(), said
    assert said.count("Mean relative error") == 1  # one process speaks
    assert main([*map(str, arguments), str(tmp_path / "one")]) == 0
    two, one = (json.loads((tmp_path / name / "repair.json").read_text()) for name in ("two", "one"))
    assert two["tokens"] == one["tokens"]
    errors = [[[row["error_before"], row["error_after"]] for row in part["layers"]] for part in (two, one)]
    np.testing.assert_allclose(*errors, rtol=1e-4)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )
