"""Float64 arrays in safetensors files: written atomically, and checked when they are read."""

import json
import os
import pathlib
import struct
from typing import TypeAlias

import mlx.core as mx

from .._files import whole_file
from .._mlx import fail, on_cpu

#: A path as ``open`` takes it.
Path: TypeAlias = str | os.PathLike[str]

FORMAT = "pinvnn.ReadoutStatistics"  # of that class; others put their own name after the dot
VERSION = "1"


def write(path: Path, arrays: dict[str, mx.array], header: dict[str, str], format: str = FORMAT) -> None:
    """Write float64 ``arrays`` and ``header``. The file gets its name only once all of it is on disk.

    Raises:
        FileNotFoundError: If there is no such folder.
        IsADirectoryError: If the path is a folder.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        rule, got = "the folder of the file must exist", f"{path.parent}"
        fail(f"{format.removeprefix('pinvnn.')}.save", rule, got, "Make the folder first.", FileNotFoundError)
    if path.is_dir():
        got, remedy = f"the folder {path}", "Add a file name."
        fail(f"{format.removeprefix('pinvnn.')}.save", "the path must name a file", got, remedy, IsADirectoryError)
    with on_cpu():
        # MLX does not write float64: the same bits go as uint64.
        bits = {key: array.view(mx.uint64) for key, array in arrays.items()}
    with whole_file(path) as partial, open(partial, "xb") as file:
        mx.save_safetensors(file, bits, {"format": format, "version": VERSION, **header})


def read(path: Path, format: str = FORMAT) -> tuple[dict[str, mx.array], dict[str, str]]:
    """The arrays and the header that :func:`write` was given.

    Raises:
        ValueError: If the file is truncated, not a safetensors file, or of another format or version.
    """
    header = _header(pathlib.Path(path), format)
    with on_cpu():
        # From a file object: given a path, MLX would take the format from its suffix. Evaluate before the file closes.
        with open(path, "rb") as file:
            arrays: dict[str, mx.array] = mx.load(file, format="safetensors")  # type: ignore[assignment]
            mx.eval(arrays)
        return {key: array.view(mx.float64) for key, array in arrays.items() if array.dtype == mx.uint64}, header


def _header(path: pathlib.Path, format: str) -> dict[str, str]:
    """The metadata of a safetensors file, after a check of its structure, length, format and version."""
    kind = format.removeprefix("pinvnn.")
    name, remedy = f"{kind}.load", f"Pass a file that {kind}.save has written."
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
    for key, value in [("format", format), ("version", VERSION)]:
        if metadata.get(key) != value:
            fail(name, f"the file must have the {key} {value}", f"{metadata.get(key)} in {path}", remedy)
    return metadata
