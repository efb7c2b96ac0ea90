"""The process that makes the data of a case and knows its answer."""

from __future__ import annotations

import math

import numpy as np

from . import blas
from .cases import Case
from .problems import problem, save
from .reference import reference


class Judge:
    def __init__(self, name="", device="cpu"):
        self.answers = {}

    def about(self):
        return {"versions": f"numpy {np.__version__}", "blas": blas.loaded()}

    def pose(self, case, cond, folder, judged=True):
        """Write the problem's arrays; keep its answer if results will be judged."""
        data = problem(Case(**case), cond)
        self.answers[cond] = reference(case["op"], data) if judged else []
        return save(data, folder)

    def errors(self, cond, paths):
        """Relative errors of value and worst gradient, in the Frobenius norm (root mean square over a batch)."""
        errors = [_error(np.load(path), right) for path, right in zip(paths, self.answers[cond], strict=False)]
        return {"value": errors[0]} | ({"gradient": max(errors[1:])} if errors[1:] else {})


def _error(result, right):
    if result.shape != right.shape:
        raise ValueError(f"a result of shape {result.shape} instead of {right.shape}")
    axes = tuple(range(-min(right.ndim, 2), 0)) or None
    square = np.sum((result.astype(np.float64) - right) ** 2, axis=axes) / np.sum(right**2, axis=axes)
    error = float(np.sqrt(np.mean(square)))
    return math.inf if math.isnan(error) else error
