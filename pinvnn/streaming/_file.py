"""Arrays in float64 on disk: safetensors, written at once or not at all, and read with suspicion."""

import json
import os
import struct
from pathlib import Path
from uuid import uuid4

import mlx.core as mx

from .._mlx import fail, on_cpu

FORMAT = "pinvnn.ReadoutStatistics"
VERSION = "1"


def write(path: str | os.PathLike, arrays: dict[str, mx.array], header: dict[str, str]) -> None:
    """Write float64 ``arrays`` and ``header``. The file appears under its name only when all of it is on disk."""
    with on_cpu():
        # MLX does not write float64: the same bits go as uint64.
        bits = {key: array.view(mx.uint64) for key, array in arrays.items()}
    path = Path(path)
    # In the same folder, since a rename is atomic only within a file system.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            mx.save_safetensors(file, bits, {"format": FORMAT, "version": VERSION, **header})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike) -> tuple[dict[str, mx.array], dict[str, str]]:
    """The arrays and the header that :func:`write` was given.

    Raises:
        ValueError: The file is truncated, or no safetensors file, or of another format or version.
    """
    header = _header(Path(path))
    with on_cpu():
        # Opened here, since MLX would tell the format from the suffix of a path. Evaluated before the file is closed.
        with open(path, "rb") as file:
            arrays: dict[str, mx.array] = mx.load(file, format="safetensors")  # type: ignore[assignment]
            mx.eval(arrays)
        return {key: array.view(mx.float64) for key, array in arrays.items() if array.dtype == mx.uint64}, header


def _header(path: Path) -> dict[str, str]:
    """The metadata, once it is certain that the file is what it should be and as long as it says that it is."""
    name, remedy = "ReadoutStatistics.load", "Pass a file that ReadoutStatistics.save has written."
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        try:
            if length + 8 > size:
                raise ValueError
            header = json.loads(file.read(length))
            metadata = dict(header.pop("__metadata__", None) or {})
            end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, AttributeError, KeyError, TypeError):
            fail(name, "the file must be a whole safetensors file", f"{size} bytes of something else in {path}", remedy)
    if end != size:
        fail(name, f"the file must have {end} bytes", f"{size} in {path}", "It is truncated: save it again.")
    for key, value in [("format", FORMAT), ("version", VERSION)]:
        if metadata.get(key) != value:
            fail(name, f"the file must have the {key} {value}", f"{metadata.get(key)} in {path}", remedy)
    return metadata
