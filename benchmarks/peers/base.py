"""What every library's ``Peer`` provides, in NumPy's terms."""

from __future__ import annotations

from typing import Any

import numpy as np


class Unsupported(Exception):
    """The library has no such operation; the row says so."""


# Every library that takes a cutoff gets this one, below the smallest singular value of every case: with their defaults
# some would drop values that others keep, and solve another problem.
RTOL = {"float32": 1e-6, "float64": 1e-14}


class Peer:
    """The operations of one library.

    ``prepare(case, mode, data)`` gives a function ready to be timed, from such data to a tuple of native arrays: the
    value, and with ``mode == "backward"`` the gradients for the cotangent ``data.bar``. ``data`` has ``a, b, bar, l2``
    or, for a readout, ``x, w, c, y, l2``.
    """

    uses_numpy = True  # for products of its own

    def __init__(self, name="", device="cpu"):
        self.name, self.device = name, device

    def versions(self) -> str:
        raise NotImplementedError

    def blas(self) -> list[str]:
        """What the memory map of the process does not show."""
        return []

    def load(self, path) -> Any:
        return np.load(path)

    def prepare(self, case, mode, data):
        raise NotImplementedError

    def finish(self, outputs):
        """Wait until they are computed."""

    def numpy(self, array):
        return np.asarray(array)


class ForwardPeer(Peer):
    """A library without gradients: a method for each operation it has, from data to value."""

    def prepare(self, case, mode, data):
        if mode != "forward":
            raise Unsupported("no gradients")
        solve = getattr(self, case.op, None)
        if solve is None:
            raise Unsupported(f"no {case.op}")
        if case.batch > 1 and case.op not in self.batched:
            raise Unsupported("no batches")
        return lambda data: (solve(case, data),)

    batched: tuple[str, ...] = ()


def hand_written_ridge(solve, a, at, b, l2, eye):
    """What people write: the normal equations of the smaller side; ``at`` is the transpose of ``a``."""
    if a.shape[-2] >= a.shape[-1]:
        return solve(at @ a + l2 * eye, at @ b)
    return at @ solve(a @ at + l2 * eye, b)
