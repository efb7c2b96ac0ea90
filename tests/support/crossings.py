"""Arrays that cross between the CPU and the default device in the graph of a function, counted without a GPU.

The operations that Python builds are recorded with their devices on an emulated GPU, and the graph is read from
``mx.export_to_dot``, where those arrays have names. What MLX adds in C++ has no record; it takes the device of what
uses it, or of what it uses, and its arrays count without their bytes.
"""

import io
import re

import mlx.core as mx
import pytest

from .emulated_gpu import EmulatedGpu, arrays_of


def crossings(fn, *args) -> tuple[int, int]:
    """How many arrays cross in ``fn(*args)``, whose arguments and results are on the GPU, and their bytes."""
    with pytest.MonkeyPatch.context() as patches:
        gpu = EmulatedGpu(patches, tf32=False, record=True)
        out = arrays_of(fn(*args))
    named = [*gpu.made, *(("gpu", x) for x in args), *(("end", x) for x in out)]
    text = io.StringIO()
    mx.export_to_dot(text, **{f"{device}_{i}_{x.nbytes}": x for i, (device, x) in enumerate(named)})
    reads, writes = _edges(text.getvalue())
    devices, made_by = _devices(reads, writes)
    users = {}
    for op in devices:
        for name in reads[op]:
            users.setdefault(name, set()).add(devices[op])
    sizes = []
    for name, of_users in users.items():
        source = devices.get(made_by.get(name), _device(name))
        if source is not None and of_users - {source}:
            sizes.append(int(name.rsplit("_", 1)[1]) if _device(name) else 0)
    return len(sizes), sum(sizes)


def _edges(dot):
    """What each operation reads and writes."""
    reads, writes = {}, {}
    for array, op, other, result in re.findall(r'^(?:"([^"]+)"|(\d+)) -> (?:"([^"]+)"|(\d+))$', dot, re.MULTILINE):
        reads.setdefault(result or op, [])
        writes.setdefault(result or op, [])
        (reads[result] if result else writes[op]).append(array or other)
    return reads, writes


def _device(name):
    return {"cpu_": "cpu", "gpu_": "gpu", "end_": "gpu"}.get(name[:4])


def _devices(reads, writes):
    """The device of each operation that the results need, and the operation that made each array."""
    made_by = {name: op for op, names in writes.items() for name in names}
    live, waiting = set(), [made_by[name] for name in made_by if name.startswith("end_")]
    while waiting:
        op = waiting.pop()
        if op not in live:
            live.add(op)
            waiting += [made_by[name] for name in reads[op] if name in made_by]
    devices = {op: next((d for d in map(_device, writes[op]) if d), None) for op in live}
    devices = {op: device for op, device in devices.items() if device}
    readers = {}
    for op in live:
        for name in reads[op]:
            readers.setdefault(name, []).append(op)
    while True:
        found = {}
        for op in live - set(devices):
            after = {devices[user] for name in writes[op] for user in readers.get(name, []) if user in devices}
            before = {devices[made_by[name]] for name in reads[op] if made_by.get(name) in devices}
            if after | before:
                found[op] = min(after or before)
        if not found:
            return devices, made_by
        devices |= found
