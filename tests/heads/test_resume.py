"""An interrupted run goes on from its last checkpoint: nothing counted twice, nothing lost."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import pytest

from pinvnn._lm.files import Checkpoint, write_whole
from pinvnn.heads import atlas
from pinvnn.streaming import ReadoutStatistics
from tests.support.launch import environment
from tests.support.topics import write_folder

L2 = [0.1, 10.0]
# The command as a user runs it, except that each chunk waits for a file: the test decides how far the run gets.
SLOW = """
import signal, sys, time
from pathlib import Path
from pinvnn._lm import stream
from pinvnn.heads._cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
gate, real = Path(sys.argv[1]), stream.Reader.chunk

def chunk(self, texts):
    while not (gate / f"chunk{texts.index}").exists():
        time.sleep(0.01)
    return real(self, texts)

stream.Reader.chunk = chunk
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Four chunks of training texts."""
    return write_folder(tmp_path_factory.mktemp("data"), 900, 40)


@pytest.fixture(scope="module")
def whole(tiny, data):
    """What a run says that nobody interrupts."""
    return atlas(str(tiny), data, l2=L2)


def start(gate: Path, arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-c", SLOW, str(gate), *arguments]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen):
    # No deadline: on a busy machine the first forward pass alone may take minutes.
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, tiny, data, whole, number, code):
    output = tmp_path / "out"
    arguments = ["atlas", "--model", str(tiny), "--data", str(data), "--output", str(output), "--save-every", "0"]
    arguments += ["--l2", *map(str, L2)]
    for i in range(2):
        (tmp_path / f"chunk{i}").touch()
    process = start(tmp_path, arguments)
    try:
        wait_for(output / "checkpoint" / "rank0-00000002", process)  # two chunks are saved, the third waits at its gate
        process.send_signal(number)
        for i in range(2, 4):  # a run that ignored the signal would now go through to its end, with exit code 0
            (tmp_path / f"chunk{i}").touch()
        message = process.communicate()[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert [path.name for path in output.iterdir()] == ["checkpoint"]
    if number == signal.SIGINT:
        assert message.splitlines()[-1].endswith("interrupted. The same command goes on from its last checkpoint.")

    resumed = atlas(str(tiny), data, l2=L2, output=output)
    assert resumed.resumed == 512
    for a, b in zip(resumed.weights + resumed.biases, whole.weights + whole.biases, strict=True):
        assert mx.array_equal(a, b)
    assert (resumed.gcv, resumed.valid, resumed.test) == (whole.gcv, whole.valid, whole.test)
    assert resumed.clock.tokens < whole.clock.tokens
    assert sorted(path.name for path in output.iterdir()) == ["atlas.json", "atlas.png", "head"]


def interrupted(tiny, data, folder, monkeypatch, chunks=2):
    """Leave a checkpoint of some chunks behind."""
    from pinvnn._lm import stream

    real = stream.Reader.chunk

    def chunk(self, texts):
        if texts.index == chunks:
            raise KeyboardInterrupt
        return real(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(stream.Reader, "chunk", chunk)
        with pytest.raises(KeyboardInterrupt):
            atlas(str(tiny), data, l2=L2, output=folder, save_every=0)


@pytest.mark.parametrize("chunks", [1, 3])
def test_in_the_middle_of_the_training_texts(tmp_path, tiny, data, whole, monkeypatch, chunks):
    interrupted(tiny, data, tmp_path, monkeypatch, chunks)
    resumed = atlas(str(tiny), data, l2=L2, output=tmp_path)
    assert resumed.resumed == 256 * chunks
    assert (resumed.gcv, resumed.valid, resumed.test) == (whole.gcv, whole.valid, whole.test)


@pytest.mark.parametrize("place", ["_atlas.solve_grid", "_atlas._score", "_result.Atlas.head", "_report.write_whole"])
def test_after_the_training_texts(tmp_path, tiny, data, whole, monkeypatch, place):
    with monkeypatch.context() as patch:
        patch.setattr(f"pinvnn.heads.{place}", stop)
        with pytest.raises(KeyboardInterrupt):
            atlas(str(tiny), data, l2=L2, output=tmp_path)
    resumed = atlas(str(tiny), data, l2=L2, output=tmp_path)
    assert resumed.resumed == 900
    assert (resumed.gcv, resumed.valid, resumed.test) == (whole.gcv, whole.valid, whole.test)


def stop(*_):
    raise KeyboardInterrupt


def test_another_grid_may_go_on_but_nothing_else(tmp_path, tiny, data, monkeypatch):
    folder = tmp_path / "out"
    interrupted(tiny, data, folder, monkeypatch)
    other = write_folder(tmp_path / "other", 300, 10)
    for options, message in [
        ({"pooling": "mean"}, "but got pooling 'last' there and 'mean' now"),
        ({"layers": [1]}, r"but got layers \[0, 1, 2, 3, 4\] there and \[1\] now"),
        ({"max_length": 10}, "but got longest text 64 there and 10 now"),
        ({"batch_size": 8}, "but got batch size 16 there and 8 now"),
    ]:
        with pytest.raises(ValueError, match=message), pytest.MonkeyPatch.context() as patch:
            patch.setattr("pinvnn._lm.data.warnings.warn", lambda *_, **__: None)
            atlas(str(tiny), data, l2=L2, output=folder, **options)
    with pytest.raises(ValueError, match="checkpoint must be of the same run, but got data"):
        atlas(str(tiny), other, l2=L2, output=folder)
    assert atlas(str(tiny), data, l2=[1.0], output=folder).resumed == 512


def test_a_restart_counts_from_the_beginning(tmp_path, tiny, data, whole, monkeypatch):
    interrupted(tiny, data, tmp_path, monkeypatch)
    result = atlas(str(tiny), data, l2=L2, output=tmp_path, restart=True)
    assert (result.resumed, result.valid) == (0, whole.valid)


def statistics(count):
    x = mx.random.normal((count, 3), key=mx.random.key(count))
    return [ReadoutStatistics(3, 1).update(x, x[:, :1])]


def test_a_checkpoint_that_was_not_finished_is_not_taken(tmp_path, monkeypatch):
    saved = Checkpoint(tmp_path, {"model": "m"})
    saved.save(statistics(5), 1, 50)

    def broken(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("pinvnn._lm.files.json.dumps", broken)
        with pytest.raises(OSError, match="disk full"):
            saved.save(statistics(9), 2, 90)
    found = saved.load()
    assert found is not None
    assert (found[0][0].count, *found[1:]) == (5.0, 1, 50)
    saved.save(statistics(9), 2, 90)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank0-00000002"]
    saved.save(statistics(9), 2, 90)  # the same once more
    found = saved.load()
    assert found is not None and found[0][0].count == 9.0


def test_each_rank_keeps_its_own(tmp_path):
    one, two = (Checkpoint(tmp_path / "c", {}, rank) for rank in range(2))
    one.save(statistics(5), 1, 50)
    assert two.load() is None
    two.save(statistics(7), 3, 70)
    one.remove()
    found = two.load()
    assert found is not None and found[0][0].count == 7.0
    two.remove()
    assert not (tmp_path / "c").exists()


def test_files_are_written_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "f", {"a.json": lambda path: path.write_text(json.dumps(1))})

    def broken(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "f", {"a.json": lambda path: path.write_text("2"), "b.json": broken})
    assert [(path.name, path.read_text()) for path in (tmp_path / "f").iterdir()] == [("a.json", "1")]
