"""What least squares within bounds does with the rows, in NumPy: the Gram matrix, the gradient, one hard problem."""

import numpy as np

from .active_set import bounded_free_set
from .bounded_rounds import Problem

# Rows, or matrices, that are held together, by numbers.
NUMBERS_AT_ONCE = 2**21


def numpy_crosses(a, b, w):
    """A^T D A and A^T D b by NumPy, whose BLAS is the faster one on Linux; by blocks of rows."""
    m = a.shape[-2]
    step = max(1, NUMBERS_AT_ONCE * m // (a.size + b.size))
    gram, rhs = 0.0, 0.0
    for i in range(0, m, step):
        rows = slice(i, i + step)
        left, right = (v[..., rows, :].astype(float, copy=False) for v in (a, b))
        weighted = left if w is None else w[..., rows, None] * left
        weighted = weighted.swapaxes(-1, -2)
        gram, rhs = gram + weighted @ left, rhs + weighted @ right
    return gram, rhs


def numpy_slope(a, b, w, x):
    """A^T D (b - A x) of float64 arrays."""
    rest = b - a @ x
    return a.swapaxes(-1, -2) @ (rest if w is None else w[..., None] * rest)


def solve_by_rows(p: Problem, at, a, b, w, l2, in_units: bool = False):
    """Solve for x and state of the one problem ``at`` an index over (batch, targets).

    Of several solutions the free variables are the shortest: with columns of length 1, or ``in_units`` of the caller.
    """
    batch, t = p.q.shape[:-2], at[-1]
    m, n, lengths = *a.shape[-2:], p.lengths[at]
    rows = np.broadcast_to(a, (*batch, m, n))[at[:-1]].astype(float)
    rhs = np.broadcast_to(b, (*batch, m, b.shape[-1]))[at[:-1]][:, t].astype(float)
    penalty = np.broadcast_to(l2, (*batch, n, b.shape[-1]))[at[:-1]][:, t]
    if w is not None:
        root = np.sqrt(np.broadcast_to(w, (*batch, m))[at[:-1]].astype(float))
        rows, rhs = root[:, None] * rows, root * rhs
    units = np.ones(n) if in_units else lengths
    rows = np.concatenate([rows, np.diag(np.sqrt(penalty))[penalty > 0]]) / units
    rhs = np.concatenate([rhs, np.zeros(len(rows) - m)])
    if len(rows) > n:
        q, rows = np.linalg.qr(rows)
        rhs = q.T @ rhs
    by = lengths / units
    lower, upper = p.lower[at] / by, p.upper[at] / by
    free, x = bounded_free_set(rows, rhs, lower, upper)
    gradient = rows.T @ (rows @ x - rhs) / by
    movable = lower < upper
    slope = np.where(x > lower, np.maximum(gradient, 0), 0) + np.where(x < upper, np.maximum(-gradient, 0), 0)
    if not (np.where(movable, slope, 0) <= 1e-9 * (p.size[at] + np.abs(x * by).sum())).all():
        x = np.full(n, np.nan)
    return x * by, np.where(free, 0, np.where(x <= lower, -1, 1))
