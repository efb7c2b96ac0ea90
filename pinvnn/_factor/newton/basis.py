"""The penalty, and a basis of the features.

Where all features have the same penalty, l2 has one row for them, and another one for the intercept if there is one:
"compact". The problem then has the same form in any orthonormal basis Q of the features, with rows A Q.

With fewer rows m than features the minimizer is a combination of rows: a basis of the row space leaves m features,
and in the null space of A the Hessian is the penalty alone. Where the Hessian is too large to factor, eigenvectors
of A^T D A make its mean over the rows diagonal, which preconditions conjugate gradients.
"""

import math

from .arrays import transposed
from .hessian import is_large

# How many columns of A^T D A tell whether it is nearly diagonal.
_COLUMNS = 16


def features_of(a, l2):
    """The number of features that share the first row of a compact ``l2``."""
    return a.shape[-1] - l2.shape[-2] + 1


def penalty_of_all(xp, l2, n):
    """``l2`` (..., 1, 2 or n, 1 or c) with a row for each of ``n`` columns of A."""
    rows = l2.shape[-2]
    if rows == n:
        return l2
    features = xp.broadcast_to(l2[..., :1, :], (*l2.shape[:-2], n - rows + 1, l2.shape[-1]))
    return features if rows == 1 else xp.concatenate([features, l2[..., 1:, :]], axis=-2)


def basis_kind(a, l2, c):
    """The basis in which a problem with ``c`` classes is solved: "rows", "eigenvectors", or None: as it is given."""
    if l2.shape[-2] == a.shape[-1]:
        return None
    if a.shape[-2] < features_of(a, l2):
        return "rows"
    return "eigenvectors" if l2.shape[-1] == 1 and is_large(a.shape[-1], c) else None


def is_nearly_diagonal(xp, a, w, l2, c):
    """Whether the Hessian's eigenvectors would gain little over the features themselves, where values are visible.

    In units in which the diagonal of A^T D A / c + L, the Hessian at 0, is 1, the variance of its eigenvalues is the
    mean over its columns of the other entries' squares. Some columns show whether that is below 1.
    """
    n = features_of(a, l2)
    x, chosen = a[..., :n], xp.arange(0, n, -(-n // _COLUMNS))
    sizes = xp.sizes(x, w) / c + l2[..., 0, :]
    entries = xp.thin(transposed(x), w[..., None] * x[..., chosen]) / c
    squares = entries * entries / xp.maximum(sizes[..., None] * sizes[..., None, chosen], 1e-290)
    squares[..., chosen, xp.arange(len(chosen))] = 0
    return bool((squares.sum(axis=(-2, -1)) <= len(chosen)).all())


def in_basis(xp, a, w, n, kind):
    """A Q with the intercept's column, and Q ``(..., n, m or n)``; NaN where A is not finite."""
    x = a[..., :n]
    finite = xp.isfinite(xp.sum(xp.abs(x), axis=(-2, -1), keepdims=True))
    clean = xp.where(finite, x, xp.zeros_like(x))
    if kind == "rows":
        q, r = xp.left_factor(transposed(clean))
        rows = transposed(r)
    else:
        gram = transposed(clean) @ (xp.where(xp.isfinite(w), w, xp.zeros_like(w))[..., None] * clean)
        q = xp.eigenpairs(gram)[1]
        rows = clean @ q
    rows = xp.where(finite, rows, rows * math.nan)
    return xp.concatenate([rows, a[..., n:]], axis=-1), q


def out_of_basis(xp, q, t):
    """``t`` in the basis of the features."""
    m = q.shape[-1]
    return xp.concatenate([q @ t[..., :m, :], t[..., m:, :]], axis=-2)
