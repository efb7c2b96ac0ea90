"""The baseline of errors: LAPACK in the row's own dtype, with the textbook gradients written by hand. Not timed.

NumPy cannot serve: it computes float32 input in float64. The letters are those of docs/math.md.
"""

from typing import Any

import numpy as np
import scipy
import scipy.linalg

from .base import RTOL, Unsupported
from .base import Peer as Base


class Peer(Base):
    def versions(self):
        return f"scipy {scipy.__version__}"

    def prepare(self, case, mode, data):
        rule = {"pinv": _pinv, "lstsq": _solve, "ridge": _solve}.get(case.op)
        if rule is None:
            raise Unsupported(f"no {case.op}")

        def call(data):
            l2 = data.l2 if case.op == "ridge" else 0.0
            rows = [data.a, data.bar] if case.op == "pinv" else [data.a, data.b, data.bar]
            if case.batch == 1:
                return rule(*rows, l2)
            parts = [rule(*(x[i] for x in rows), l2) for i in range(case.batch)]
            return tuple(np.stack(x) for x in zip(*parts, strict=True))

        return call


def _pinv(a, bar, l2):
    if a.shape[0] < a.shape[1]:
        p, gradient = _pinv(a.T, bar.T, l2)
        return p.T, gradient.T
    p = np.asarray(scipy.linalg.pinv(a, rtol=RTOL[str(a.dtype)]))
    g = p @ bar.T
    return p, -p.T @ (bar @ p.T) + (bar.T - a @ g) @ (p @ p.T)


def _solve(a, b, bar, l2):
    m, n = a.shape
    tall = m >= n
    q, r = _qr(a if tall else a.T, l2)

    def solve(y, trans):
        return scipy.linalg.solve_triangular(r, y, trans=trans)

    if tall:
        x, half = solve(q.T @ b, 0), solve(bar, 1)
        z, y = solve(half, 0), q @ half
        rest = b - a @ x if m > n or l2 else np.zeros_like(b)
        return x, rest @ z.T - y @ x.T, y
    half = solve(b, 1)
    u, x = solve(half, 0), q @ half
    v = solve(q.T @ bar, 0)
    return x, u @ (bar - a.T @ v).T - v @ x.T, v


def _qr(a, l2):
    """Q and R of [a; sqrt(l2) I], only the rows of ``a`` in Q."""
    rows = [a, np.sqrt(l2, dtype=a.dtype) * np.eye(a.shape[1], dtype=a.dtype)] if l2 else [a]
    factors: Any = scipy.linalg.qr(np.concatenate(rows), mode="economic")
    return factors[0][: a.shape[0]], factors[1]
