"""Float64 arrays in safetensors files: written atomically, and checked when they are read."""

import json
import os
import pathlib
import struct
from typing import TypeAlias
from uuid import uuid4

import mlx.core as mx

from .._mlx import fail, on_cpu

#: A path as ``open`` takes it.
Path: TypeAlias = str | os.PathLike[str]

FORMAT = "pinvnn.ReadoutStatistics"
VERSION = "1"


def write(path: Path, arrays: dict[str, mx.array], header: dict[str, str]) -> None:
    """Write float64 ``arrays`` and ``header``. The file gets its name only once all of it is on disk."""
    with on_cpu():
        # MLX does not write float64: the same bits go as uint64.
        bits = {key: array.view(mx.uint64) for key, array in arrays.items()}
    path = pathlib.Path(path)
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


def read(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """The arrays and the header that :func:`write` was given.

    Raises:
        ValueError: If the file is truncated, not a safetensors file, or of another format or version.
    """
    header = _header(pathlib.Path(path))
    with on_cpu():
        # From a file object: given a path, MLX would take the format from its suffix. Evaluate before the file closes.
        with open(path, "rb") as file:
            arrays: dict[str, mx.array] = mx.load(file, format="safetensors")  # type: ignore[assignment]
            mx.eval(arrays)
        return {key: array.view(mx.float64) for key, array in arrays.items() if array.dtype == mx.uint64}, header


def _header(path: pathlib.Path) -> dict[str, str]:
    """The metadata of a safetensors file, after a check of its structure, length, format and version."""
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
