"""Saved statistics come back whole, or not at all."""

import json
import os
import struct

import mlx.core as mx
import pytest

from pinvnn.streaming import ReadoutStatistics, _file
from tests.support.rows import assert_close, rows


@pytest.fixture
def stats():
    x, y, w = rows(40, 3, 2, mean=100.0)
    return ReadoutStatistics(3, 2).update(x, y, w)


@pytest.mark.parametrize("name", ["stats.safetensors", "stats", "stats.tar.gz"])
@pytest.mark.parametrize("bias", [True, False])
def test_round_trip(tmp_path, name, bias):
    x, y, w = rows(40, 3, 2, mean=100.0)
    stats = ReadoutStatistics(3, 2, bias=bias).update(x, y, w)
    stats.save(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    loaded = ReadoutStatistics.load(str(tmp_path / name))
    assert repr(loaded) == repr(stats)
    for a, b in zip(loaded.moments, stats.moments, strict=True):
        assert_close(a, b, 0)
    assert loaded.update(x, y).count == stats.count + 40  # and it goes on


def test_round_trip_keeps_float64(tmp_path):
    with mx.stream(mx.cpu):
        stats = ReadoutStatistics(3, 2).update(*rows(20, 3, 2, dtype=mx.float64)[:2])
        stats.save(tmp_path / "s")
        assert_close(ReadoutStatistics.load(tmp_path / "s").solve()[0], stats.solve()[0], 0)
        assert ReadoutStatistics.load(tmp_path / "s").solve()[0].dtype == mx.float64


@pytest.mark.parametrize("step", ["save_safetensors", "fsync", "replace"])
def test_a_crash_while_saving_leaves_the_old_file(tmp_path, stats, monkeypatch, step):
    path = tmp_path / "stats.safetensors"
    stats.save(path)
    old = path.read_bytes()

    def crash(*args):
        if step == "save_safetensors":
            args[0].write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(mx if step == "save_safetensors" else os, step, crash)
    with pytest.raises(KeyboardInterrupt):
        stats.decay(0.5).save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_file_is_on_disk_before_it_has_its_name(tmp_path, stats, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, original=original: (calls.append(name), original(*a))[1])
    stats.save(tmp_path / "s")
    assert calls == ["fsync", "replace"]


def test_truncated_at_any_byte(tmp_path, stats):
    path = tmp_path / "s"
    stats.save(path)
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"^\[pinvnn.ReadoutStatistics.load\] the file must .*, but got \d+"):
            ReadoutStatistics.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match=rf"must have {len(whole)} bytes, but got {len(whole) + 1}"):
        ReadoutStatistics.load(path)


FOREIGN = {
    "text": b"not a safetensors file, but long enough",
    "zip": b"PK\x03\x04" + bytes(200),
    "header of a list": struct.pack("<Q", 2) + b"[]",
    "header that is no text": struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
    "entries that are none": struct.pack("<Q", 7) + b'{"a":1}',
    "no metadata": struct.pack("<Q", 2) + b"{}",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_files(tmp_path, content):
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(ValueError, match=r"^\[pinvnn.ReadoutStatistics.load\] the file must .* but got .*Pass a file"):
        ReadoutStatistics.load(tmp_path / "s")


def test_weights_of_a_layer_are_foreign(tmp_path):
    path = tmp_path / "layer.safetensors"
    mx.save_safetensors(str(path), {"weight": mx.ones((2, 3))})
    with pytest.raises(ValueError, match="the file must have the format pinvnn.ReadoutStatistics, but got None"):
        ReadoutStatistics.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        ReadoutStatistics.load(tmp_path / "none")


def test_a_missing_folder_is_named(tmp_path, stats):
    with pytest.raises(FileNotFoundError, match=r"^\[pinvnn.ReadoutStatistics.save\] the folder .* got .*none\. Make"):
        stats.save(tmp_path / "none" / "s.safetensors")


def test_a_folder_in_place_of_a_file_is_named(tmp_path, stats):
    with pytest.raises(IsADirectoryError, match=r"save\] the path must name a file, but got the folder .*Add"):
        stats.save(tmp_path)
    assert not list(tmp_path.iterdir())


HEADER = {"input_dims": "3", "output_dims": "2", "bias": "True", "dtype": "float32"}
MISMATCHED = {
    "version": ({"version": "2"}, {}, "the file must have the version 1, but got 2"),
    "dims": ({"input_dims": "4"}, {}, r"x_mean must have the shape \(4,\) of the header, but got \(3,\)"),
    "no number": ({"output_dims": "many"}, {}, "the header must have input_dims, output_dims"),
    "negative": ({"output_dims": "-2"}, {}, "the header must have input_dims, output_dims"),
    "bias": ({"bias": "maybe"}, {}, "the header must have input_dims, output_dims, bias"),
    "dtype": ({"dtype": "int8"}, {}, "the header must have input_dims, output_dims, bias and dtype"),
    "part missing": ({}, {"xy": None}, r"xy must have the shape \(3, 2\) of the header, but got nothing"),
    "part in float32": ({}, {"xy": mx.ones((3, 2))}, r"xy must have the shape \(3, 2\) of the header, but got nothing"),
    "nan": ({}, {"yy": float("nan")}, "the statistics must be finite and their count non-negative"),
    "count": ({}, {"count": -1.0}, "the statistics must be finite and their count non-negative"),
}


@pytest.mark.parametrize(("header", "arrays", "message"), MISMATCHED.values(), ids=MISMATCHED.keys())
def test_parts_that_do_not_fit_together(tmp_path, stats, header, arrays, message):
    parts = {key: part for key, part in stats.moments._asdict().items()}
    for key, value in arrays.items():
        with mx.stream(mx.cpu):
            parts[key] = parts[key] * 0 + value if isinstance(value, float) else value
    parts = {key: part for key, part in parts.items() if part is not None}
    with mx.stream(mx.cpu):
        bits = {key: a.view(mx.uint64) if a.dtype == mx.float64 else a for key, a in parts.items()}
    metadata = {"format": _file.FORMAT, "version": _file.VERSION, **HEADER, **header}
    path = tmp_path / "s.safetensors"
    mx.save_safetensors(str(path), bits, metadata)
    with pytest.raises(ValueError, match=rf"^\[pinvnn.ReadoutStatistics.load\] {message}"):
        ReadoutStatistics.load(path)


def test_the_file_is_plain_safetensors(tmp_path, stats):
    stats.save(tmp_path / "s.safetensors")
    content = (tmp_path / "s.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    assert metadata == {"format": _file.FORMAT, "version": _file.VERSION, **HEADER}
    arrays, again = mx.load(str(tmp_path / "s.safetensors"), return_metadata=True)
    assert again == metadata and set(arrays) == set(stats.moments._fields)
