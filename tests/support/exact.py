"""Pseudo-inverses of full-rank matrices in rational arithmetic, rounded once."""

from fractions import Fraction

import numpy as np


def solve(a, b):
    """``a x = b`` for lists of rows of fractions, by Gauss-Jordan elimination."""
    rows = [list(left) + list(right) for left, right in zip(a, b, strict=True)]
    n = len(rows)
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for r in range(n):
            if r != i and rows[r][i]:
                factor = rows[r][i]
                rows[r] = [u - factor * v for u, v in zip(rows[r], rows[i], strict=True)]
    return [row[n:] for row in rows]


def pinv(x):
    """The pseudo-inverse of the real float64 ``x`` (m, n) of full rank, correct to the last bit or so."""
    if x.shape[0] < x.shape[1]:
        return pinv(x.T).T
    rows = [[Fraction(float(v)) for v in row] for row in x]
    columns = list(zip(*rows, strict=True))
    gram = [[sum(u * v for u, v in zip(p, q, strict=True)) for q in columns] for p in columns]
    return np.array([[float(v) for v in row] for row in solve(gram, columns)])
