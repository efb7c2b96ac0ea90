"""The data of a case: matrices of a chosen condition, right-hand sides, cotangents."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from .cases import INPUTS, Case


def problem(case: Case, cond: float) -> dict:
    """Arrays in the case's dtype, and the number ``l2``; the same for every call.

    The entries of ``a`` are near 1 in size. Half of its singular values are spread evenly in the logarithm, half lie
    within a factor of two of the smallest: an error then has many directions and depends little on chance. ``b`` is
    10 % noise.
    ``l2`` is a tenth of the smallest squared singular value: enough to count, too little to help.
    """
    rng = np.random.default_rng(zlib.crc32(f"{case.shape} {cond:g}".encode()))
    if case.op == "readout":
        return _readout(case, rng)
    batch = () if case.batch == 1 else (case.batch,)
    m, n, k = case.m, case.n, case.k
    scale = np.sqrt(max(m, n))
    a = (scale * _matrix(rng, batch, m, n, cond)).astype(case.dtype)
    signal, noise = a @ rng.standard_normal((*batch, n, k)), rng.standard_normal((*batch, m, k))
    b = signal / np.std(signal) + 0.1 * noise
    bar = rng.standard_normal((*batch, n, m if case.op == "pinv" else k))
    arrays = {"a": a, "b": b.astype(case.dtype), "bar": bar.astype(case.dtype)}
    return arrays | {"l2": float((scale / cond) ** 2 / 10)}


def save(problem, folder) -> dict:
    """Arrays as files; the answer has their paths, and numbers as they are."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    saved = {}
    for name, value in problem.items():
        if isinstance(value, np.ndarray):
            np.save(folder / f"{name}.npy", value)
            value = str(folder / f"{name}.npy")
        saved[name] = value
    return saved


def _matrix(rng, batch, m, n, cond):
    if m < n:
        return _matrix(rng, batch, n, m, cond).mT
    u = np.linalg.qr(rng.standard_normal((*batch, m, n)))[0]
    v = np.linalg.qr(rng.standard_normal((*batch, n, n)))[0]
    s = np.concatenate([np.geomspace(1, 2 / cond, n - n // 2), np.geomspace(2 / cond, 1 / cond, n // 2 + 1)[1:]])
    return (u * s) @ v


def _readout(case, rng):
    x = rng.standard_normal((case.m, INPUTS))
    w = rng.standard_normal((INPUTS, case.n)) / np.sqrt(INPUTS)
    c = 0.1 * rng.standard_normal(case.n)
    signal = np.sin(x @ rng.standard_normal((INPUTS, case.k)) / np.sqrt(INPUTS))
    arrays = {"x": x, "w": w, "c": c, "y": signal + 0.1 * rng.standard_normal((case.m, case.k))}
    return {name: value.astype(case.dtype) for name, value in arrays.items()} | {"l2": 1.0}
