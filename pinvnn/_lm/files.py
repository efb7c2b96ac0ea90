"""Files that are written completely or not at all, and the checkpoint of an interrupted run."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from .._files import whole_file
from .._mlx import fail
from ..streaming import ReadoutStatistics

CHECKPOINT = "checkpoint"  # the folder of checkpoints in the output


def write_whole(folder: Path, writers: dict[str, Callable[[Path], Any]]) -> None:
    """Write files into ``folder``: first all of them under other names, so that none is ever seen half-written.

    Args:
        folder: Created if it does not exist; its other files are left alone.
        writers: For each name a function that writes the file to the path that it is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as written:
        for name, write in writers.items():
            write(written.enter_context(whole_file(folder / name)))


def check_folder(folder: Path, files: Sequence[str] = ()) -> None:
    """Raise ValueError unless ``files`` can be written into ``folder``. Nothing that this creates is left behind."""
    created: list[Path] = []
    try:
        for path in [*reversed(folder.parents), folder]:
            if not path.is_dir():
                path.mkdir()
                created.append(path)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for name in files:
            if (folder / name).is_dir():
                rule = f"{folder / name}: the output must be a file, or not exist"
                fail("heads", rule, "a folder", "Remove it, or take another output.")
    except OSError as error:
        fail("heads", f"{folder}: the output must be a folder that can be written", error.strerror, "Take another one.")
    finally:
        with suppress(OSError):
            for path in reversed(created):
                path.rmdir()


class Checkpoint:
    """The statistics of one rank, on disk, with the number of chunks that they hold.

    A checkpoint is a folder whose name holds that number. It gets this name only when all of it is written, and only
    then is the previous one removed: whenever the process ends, the newest such name is a complete checkpoint.

    Args:
        folder: Where the checkpoints of the run are.
        run: The settings that the statistics depend on. A checkpoint with other settings is refused.
        rank: Rank of this process.
    """

    def __init__(self, folder: Path, run: dict[str, Any], rank: int = 0) -> None:
        self.folder, self.run, self.rank = folder, run, rank

    def _saved(self) -> list[Path]:
        return sorted(self.folder.glob(f"rank{self.rank}-" + "[0-9]" * 8))

    def save(self, statistics: Sequence[ReadoutStatistics], chunks: int, tokens: int) -> None:
        """Replace the checkpoint by these statistics of the first ``chunks`` chunks, which have ``tokens`` tokens."""
        before = self._saved()
        name = f"rank{self.rank}-{chunks:08d}"
        partial = self.folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for i, stats in enumerate(statistics):
            stats.save(partial / f"{i}.safetensors")
        state = {"run": self.run, "chunks": chunks, "tokens": tokens}
        (partial / "state.json").write_text(json.dumps(state, indent=4) + "\n")
        if (self.folder / name) not in before:  # else these are the statistics that are there already
            os.replace(partial, self.folder / name)
        for old in before:
            if old.name != name:
                shutil.rmtree(old)

    def load(self) -> tuple[list[ReadoutStatistics], int, int] | None:
        """Statistics, chunks and tokens of the newest checkpoint, or None if there is none.

        Raises:
            ValueError: The checkpoint was made with other settings.
        """
        saved = self._saved()
        if not saved:
            return None
        state = json.loads((saved[-1] / "state.json").read_text())
        differs = [key for key in self.run if state["run"].get(key) != self.run[key]]
        if differs:
            key = differs[0]
            got = f"{key} {state['run'].get(key)!r} there and {self.run[key]!r} now"
            rule = f"{saved[-1]}: the checkpoint must be of the same run"
            fail("heads", rule, got, "Use another output folder, or restart.")
        count = len(list(saved[-1].glob("*.safetensors")))
        statistics = [ReadoutStatistics.load(saved[-1] / f"{i}.safetensors") for i in range(count)]
        return statistics, state["chunks"], state["tokens"]

    def remove(self) -> None:
        """Remove the checkpoint of this rank; the last rank removes the folder, too."""
        for path in self.folder.glob(f"rank{self.rank}-*"):
            shutil.rmtree(path)
        with suppress(OSError):  # another rank still has one there, or has removed the folder
            self.folder.rmdir()
