"""Values and gradients to compare with, far more precise than what they judge.

Float32 results are judged in float64, except that the Gram matrix and its inverse are made in twice that precision;
float64 results are judged in twice the precision of float64 throughout. The formulas are written once for both: arrays
and :class:`Exact` matrices know the same operators. The letters are those of docs/math.md, and
X = (A^T A + l2 I)^-1, or (A A^T + l2 I)^-1 if A is wide.
"""

from __future__ import annotations

import numpy as np

from .exact import Exact, inverse


def reference(op, problem) -> list:
    """Value and gradients, float64: of pinv in a; of lstsq and ridge in a and b; of the readout's loss in w and c."""
    if op == "readout":
        return [np.asarray(part, np.float64) for part in _readout(problem)]
    a, l2 = problem["a"], problem["l2"] if op == "ridge" else 0.0
    x = _small_inverse(Exact.of(a), l2)
    if a.dtype == np.float64:
        arrays = [Exact.of(problem[name]) for name in ("a", "b", "bar")]
    else:
        x, arrays = x.hi, [problem[name].astype(np.float64) for name in ("a", "b", "bar")]
    a, b, bar = arrays
    parts = _pinv(a, x, bar) if op == "pinv" else _solve(a, x, b, bar)
    return [part.hi if isinstance(part, Exact) else part for part in parts]


def _small_inverse(a: Exact, l2) -> Exact:
    gram = a.mT @ a if a.shape[-2] >= a.shape[-1] else a @ a.mT
    return inverse(gram + Exact(np.broadcast_to(l2 * np.eye(gram.shape[-1]), gram.shape)))


def _pinv(a, x, g):
    if a.shape[-2] < a.shape[-1]:
        return [part.mT for part in _pinv(a.mT, x, g.mT)]
    p = x @ a.mT
    return [p, (g.mT - a @ (p @ g.mT)) @ x - p.mT @ (g @ p.mT)]


def _solve(a, x_inverse, b, bar):
    if a.shape[-2] >= a.shape[-1]:
        x, z = x_inverse @ (a.mT @ b), x_inverse @ bar
        r, y = b - a @ x, a @ z
        return [x, r @ z.mT - y @ x.mT, y]
    u, v = x_inverse @ b, x_inverse @ (a @ bar)
    x = a.mT @ u
    return [x, u @ (bar - a.mT @ v).mT - v @ x.mT, v]


def _readout(problem):
    """The ridge objective at its minimum, over m k, and its gradients: the envelope theorem, then h = tanh(x w + c)."""
    x, w, c, y = (problem[name].astype(np.float64) for name in ("x", "w", "c", "y"))
    h = np.tanh(x @ w + c)
    hc, yc = h - h.mean(0), y - y.mean(0)
    l2 = problem["l2"]
    inverse = _small_inverse(Exact.of(hc), l2).hi
    weight = inverse @ (hc.T @ yc)
    r = yc - hc @ weight
    loss = (np.sum(r**2) + l2 * np.sum(weight**2)) / y.size
    back = -2 / y.size * (r @ weight.T) * (1 - h**2)  # r has mean zero: centring changes nothing
    return [loss, x.T @ back, back.sum(0)]
