"""Peak memory of one forward and backward pass, each in a fresh process."""

from __future__ import annotations

import os
import shutil

from .cases import CONDITIONS, Case
from .contenders import OURS
from .peers.base import Unsupported
from .pool import Failed, Missing

DIFFERENTIATING = (OURS, "torch", "jax", "lineax")
SHAPES = [(10_000, 64), (1_000_000, 64)]
QUICK_SHAPES = [(64, 8)]
_WARM_UP = (64, 8)  # a small case loads the code that the large one needs


def cases(ops, quick=False):
    for m, n in QUICK_SHAPES if quick else SHAPES:
        for op in ("lstsq",) if quick else ("pinv", "lstsq", "ridge"):
            if not ops or op in ops:
                yield Case(op, 1, m, n, "float32")


def measure_memory(case: Case, pool, limit, folder):
    """Bytes at the peak beyond an idle process, by contender, with the input's for comparison."""
    small = Case(case.op, 1, *_WARM_UP, case.dtype)
    try:
        files = [pool.judge.call("pose", 600, case=x.asdict(), cond=CONDITIONS[0], folder=str(folder / x.shape),
                                 judged=False) for x in (small, case)]
        input_bytes = os.path.getsize(files[1]["a"])
        results = {name: _peak(pool.fresh(name), small, case, files, limit)
                   for name in DIFFERENTIATING if name in pool.workers}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"case": case.asdict(), "shape": case.shape, "input": input_bytes, "results": results}


def _peak(worker, small, case, files, limit):
    try:
        worker.call("load", limit, case=small.asdict(), mode="backward", files=files[0])
        return {"bytes": worker.call("peak", limit, case=case.asdict(), mode="backward", files=files[1])}
    except (Unsupported, Failed, Missing) as reason:
        return {"note": str(reason)}
    finally:
        worker.close()
