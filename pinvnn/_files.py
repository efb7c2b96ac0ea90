"""Files that are whole or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to. The file gets the name ``path`` when the block ends, and none if the block raises.

    What stood at ``path`` before is replaced at once, or stays. Several of these in an ``ExitStack`` are renamed only
    once all are written.
    """
    # In the same folder, since a rename is atomic only within a file system; with the suffix, by which writers tell
    # the format.
    partial = path.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
