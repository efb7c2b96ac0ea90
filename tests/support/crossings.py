"""Arrays that cross between the CPU and the default device in the graph of a function, counted without a GPU.

The operations that Python builds are recorded with their devices on an emulated GPU, and the graph is read from
``mx.export_to_dot``, where those arrays have names. What MLX adds in C++ has no record; it takes the device of what
uses it, or of what it uses, and its arrays count without their bytes. (Copies and custom functions take that of their
last argument, which they hand on.)
"""

import io
import re

import mlx.core as mx
import pytest

from .emulated_gpu import EmulatedGpu, arrays_of

_AT_A_TIME = 1000  # export_to_dot takes 1024 names


def crossings(fn, *args, compiled=False) -> tuple[int, int]:
    """How many arrays cross in ``fn(*args)``, whose arguments and results are on the GPU, and their bytes.

    With ``compiled`` it is traced as by ``mx.compile``, where no array has a value.
    """
    found = []
    with pytest.MonkeyPatch.context() as patches:
        gpu = EmulatedGpu(patches, tf32=False, record=True)

        def traced(*args):
            gpu.made.clear()
            out = fn(*args)
            found.append(_count([*gpu.made, *(("gpu", x) for x in args)], arrays_of(out)))
            return out

        (mx.compile(traced) if compiled else traced)(*args)
    return found[0]


def _count(named, out):
    ends = {f"end_{i}_{x.nbytes}": x for i, x in enumerate(out)}
    reads, writes, _, copies = _edges(ends, {})  # all that the results need
    names = {}
    for i in range(0, len(named), _AT_A_TIME):
        some = {f"{device}_{i}_{x.nbytes}": x for i, (device, x) in enumerate(named[i : i + _AT_A_TIME])}
        names |= _edges(ends, some, reads)[2]
    names |= _edges(ends, {})[2]
    devices, made_by = _devices(reads, writes, names, copies)
    users = {}
    for op in devices:
        for array in reads[op]:
            users.setdefault(array, set()).add(devices[op])
    sizes = []
    for array, of_users in users.items():
        source = devices.get(made_by.get(array), _device(names.get(array, "")))
        if source is not None and of_users - {source}:
            while array not in names and made_by.get(array) in copies:
                array = reads[made_by[array]][-1]
            sizes.append(int(names[array].rsplit("_", 1)[1]) if array in names else 0)
    return len(sizes), sum(sizes)


def _edges(ends, some, known=None):
    """What each operation reads and writes, and the names of arrays.

    An operation is known by its address, and an array by its place: the i-th result of an operation or, where none made
    it, the first place among the ``known`` operations where it is read.
    """
    text = io.StringIO()
    mx.export_to_dot(text, **ends, **some)
    pattern = r'^(?:"([^"]+)"|(\d+)) -> (?:"([^"]+)"|(\d+))$'
    read, written, place, labels = {}, {}, {}, set()
    for array, op, other, result in re.findall(pattern, text.getvalue(), re.MULTILINE):
        of = result or op
        reads, writes = read.setdefault(of, []), written.setdefault(of, [])
        if result:
            reads.append(array)
        else:
            writes.append(other)
            place[other] = of, "result", len(writes) - 1
        labels.add(array or other)
    for op in sorted(read if known is None else known):
        for i, array in enumerate(read.get(op, [])):
            place.setdefault(array, (op, "argument", i))
    for label in labels:
        place.setdefault(label, (label,))
    reads, writes = ({op: [place[x] for x in arrays] for op, arrays in side.items()} for side in (read, written))
    copies = set(re.findall(r'(\d+) \[label ="(?:CustomTransforms|Copy)"', text.getvalue()))
    return reads, writes, {place[label]: label for label in labels if _device(label)}, copies


def _device(name):
    return {"cpu_": "cpu", "gpu_": "gpu", "end_": "gpu"}.get(name[:4])


def _devices(reads, writes, names, copies):
    """The device of each operation, and the operation that made each array."""
    made_by = {array: op for op, arrays in writes.items() for array in arrays}
    live = set(reads)
    devices = {op: next((_device(names[x]) for x in writes[op] if x in names), None) for op in live}
    devices = {op: device for op, device in devices.items() if device}
    readers = {}
    for op in live:
        for name in reads[op]:
            readers.setdefault(name, []).append(op)
    while True:
        found = {}
        for op in live - set(devices):
            after = {devices[user] for name in writes[op] for user in readers.get(name, []) if user in devices}
            before = [devices.get(made_by.get(name), _device(names.get(name, ""))) for name in reads[op]]
            if op in copies:
                after, before = before[-1:], []
            if known := {device for device in after or before if device}:
                found[op] = min(known)
        if not found:
            return devices, made_by
        devices |= found
