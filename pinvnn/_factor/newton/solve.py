"""H^-1 b: by a factorization of H or, where that is too large, by conjugate gradients."""

import math

from .arrays import transposed
from .basis import basis_kind, features_of, in_basis, out_of_basis, penalty_of_all
from .conjugate_gradients import conjugate_gradients
from .hessian import factored_solve, is_large
from .objective import free_features, without_common_shift
from .preconditioners import preconditioner
from .refits import Inverse

# Steps of conjugate gradients in a graph where the inverse of a Hessian nearby is known; rows of real data took 50.
_NEAR_STEPS = 80


def solve_hessian(xp, a, w, p, l2, b, near=None, tolerance=1e-10):
    """``H^-1 b`` for ``b`` (..., N, c); NaN where conjugate gradients do not converge.

    Args:
        xp: Whose arrays these are.
        a: Rows ``(..., m, N)``.
        w: Weights ``(..., m)``.
        p: Probabilities ``(..., m, c)``.
        l2: Penalty ``(..., N, 1 or c)``, or compact: see :func:`penalty_of_all`.
        b: ``(..., N, c)``.
        near: The inverse of a Hessian near this one, as of :func:`refit`, or None.
        tolerance: Of conjugate gradients.
    """
    if near is not None:
        l2 = penalty_of_all(xp, l2, b.shape[-2])
        b = without_common_shift(xp, b, free_features(xp, l2))
        return conjugate_gradients(xp, a, w, p, l2, b, tolerance, Inverse(near), _NEAR_STEPS)
    kind = basis_kind(a, l2, b.shape[-1])
    if kind is None:
        return _solve(xp, a, w, p, penalty_of_all(xp, l2, b.shape[-2]), b, tolerance, False)
    n = features_of(a, l2)
    rows, q = in_basis(xp, a, w, n, kind)
    inside = xp.concatenate([transposed(q) @ b[..., :n, :], b[..., n:, :]], axis=-2)
    of_all = penalty_of_all(xp, l2, rows.shape[-1])
    x = out_of_basis(xp, q, _solve(xp, rows, w, p, of_all, inside, tolerance, True))
    if kind == "rows":  # outside of the row space
        rest = b[..., :n, :] - q @ inside[..., : q.shape[-1], :]
        l2 = l2[..., :1, :] + 0 * rest
        rest = xp.where(l2 > 0, rest / xp.where(l2 > 0, l2, xp.ones_like(l2)), l2 * math.nan)
        x = xp.concatenate([x[..., :n, :] + rest, x[..., n:, :]], axis=-2)
    return x


def _solve(xp, a, w, p, l2, b, tolerance, orthogonal):
    b = without_common_shift(xp, b, free_features(xp, l2))
    if not is_large(*b.shape[-2:]):
        return factored_solve(xp, a, w, p, l2, b)
    found = preconditioner(xp, a, w, l2, orthogonal)
    return conjugate_gradients(xp, a, w, p, l2, b, tolerance, found.of_spread(found.spread(p)))
