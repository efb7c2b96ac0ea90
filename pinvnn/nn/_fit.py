"""One factorization of a readout problem, and all that is read off it: solution, residuals, leverages, covariance.

Notation: A the centred rows (m x n), D = diag(w), K = A^T D A, R = (K + L)^-1, or K^+ truncated where there is no
penalty; Y = A R, and the leverage h_i = a_i R a_i^T = <y_i, a_i>. Residuals and leverages are summed in float64, since
what follows divides by 1 - h_i.
"""

from typing import NamedTuple

import mlx.core as mx

from .. import _dtypes
from .._attach import attach, attach_like
from .._blocks import BLOCK, cross
from .._factor import CORES, Factor, factor
from .._place import astype, large, on_cpu
from .._products import gram
from .._ridge import _inverse
from .._ridge_rules import attach_ridge, gram_normal
from .._ridge_values import Inverse, solution
from .._rules import attach_solve
from .._spectral import inverse, split
from .._values import solve_value
from ._problem import Problem


class Fit(NamedTuple):
    """Read off one factorization of a :class:`Problem` in its n x n form; what is not used is not computed.

    Attributes:
        solution: ``(..., n, k)`` in the dtype of the problem.
        residual: Unweighted, ``(..., m, k)``, float64.
        leverage: ``(..., m)``, float64, without the part of the intercept.
        rows: Y, ``(..., m, n)`` in the dtype of the problem.
        inverse: R, ``(..., n, n)``, float64.
        rank: Of K + L, ``(...)``. No gradient.
        noise: Rounding error to expect in a leverage, ``(...)``. No gradient.
    """

    solution: mx.array
    residual: mx.array
    leverage: mx.array
    rows: mx.array
    inverse: mx.array
    rank: mx.array
    noise: mx.array


def fit(p: Problem) -> Fit:
    """Fit ``p``, whose targets have one penalty in common."""
    a = p.a
    kind, f, x, value = _minimum_norm(p) if p.l2 is None else _penalized(p, p.l2)
    with on_cpu():
        zero, eye = mx.zeros((1, 1), mx.float64), mx.eye(a.shape[-1], dtype=mx.float64)
        l2 = zero if p.l2 is None else p.l2
        if kind == "feature":  # The factor, which has an axis for targets, is of K + L.
            f = Factor(f.v[..., 0, :, :], f.s[..., 0, :], f.kept[..., 0, :], f.r[..., 0, :, :])
        k = gram(a, p.w, f) / f.r / f.r
        if kind == "feature":
            kind, k, l2 = "shared", k + eye * l2, zero
        r = _solve(kind, k, l2, eye, f)
        constant = mx.stop_gradient(r)
        rows, leverage, residual = _by_blocks(p, constant, mx.stop_gradient(value))
        rows = mx.stop_gradient(rows)
        # K is scaled to a diagonal of about 1, so the inverse of that shows the condition number.
        cond = mx.max(mx.abs(constant), axis=(-2, -1)) / (f.r * f.r)[..., 0, 0]
        noise = 8 * _dtypes.eps(mx.float64) * mx.maximum(cond, 1)
        rank = mx.sum(f.kept, axis=-1)
    leverage_of, rows_of = _leverages[kind]
    return Fit(
        solution=x,
        residual=_residual(a, p.b, x, residual),
        leverage=leverage_of(a, k, l2, *f, rows, leverage),
        rows=rows_of(a, k, l2, *f, rows),
        inverse=r,
        rank=rank,
        noise=noise,
    )


def _minimum_norm(p: Problem):
    """The kind of R, its factor, the solution, and its value in float64."""
    f, left = factor(p.a, p.w, entries=p.entries)
    value = solve_value(p.a, p.b, p.w, None, f, left)
    return "truncated", f, attach_solve(p.a, p.b, p.w, f, value), value


def _penalized(p: Problem, l2):
    kind = "feature" if l2.shape[-2] > 1 or p.entries != mx.float64 else "shared"
    constants, known = _inverse(p.a, p.w, l2, kind, p.entries, p.b)
    value = solution(constants, p.a, p.b, p.w, l2, known)
    with large(p.a.dtype):
        ones = mx.ones((1,), p.a.dtype) if p.w is None else p.w
    return constants.route, constants.f, attach_ridge(p.a, p.b, ones, l2, constants, value), value


def _by_blocks(p: Problem, r, x):
    """Values of A R, of its leverages and of the residuals b - A x; the last two, and the sums in all, in float64."""
    shift_a, shift_b = (0, 0) if p.means is None else (_mean(p.a, p.w), _mean(p.b, p.w))
    rows, leverages, residuals = [], [], []
    for i in range(0, p.a.shape[-2], BLOCK):
        block = p.a[..., i : i + BLOCK, :].astype(mx.float64) - shift_a
        y = block @ r
        rows.append(y.astype(p.a.dtype))
        leverages.append(mx.sum(y * block, axis=-1))
        residuals.append(p.b[..., i : i + BLOCK, :].astype(mx.float64) - shift_b - block @ x)
    return mx.concatenate(rows, -2), mx.concatenate(leverages, -1), mx.concatenate(residuals, -2)


def _mean(x, w):
    """What rounding left of the mean, in float64: a leverage feels it at first order."""
    ones = mx.ones((*x.shape[:-2], x.shape[-2], 1), x.dtype) if w is None else w[..., None]
    total = mx.sum(ones.astype(mx.float64), axis=-2, keepdims=True)
    return mx.swapaxes(cross(x, ones), -1, -2) / mx.where(total == 0, mx.ones_like(total), total)


def _plain_residual(a, b, x):
    with large(a.dtype):
        return astype(b - a @ x, mx.float64)


_residual = attach_like(_plain_residual, 3, (2, 2, 2, 2))


# --- Leverages ----------------------------------------------------------------------------------------
# h_i = a_i R a_i^T with dR = -R (dK + dL) R, and for a truncated R also + R C + (R C)^T, C = S(dK) (see ``_spectral``).
# With g = h_bar, Y = A R and H = Y^T diag(g) Y:
#     A_bar = 2 diag(g) Y,  L_bar = -H,  K_bar = -H, and if truncated + T + T^T with T = S(Y^T diag(g) A).
# K carries its part back to A and w. From A^T diag(g) A or A^T diag(g) Y, float32 would lose cond(A)^2, not cond(A).


def _t(x):
    return mx.swapaxes(x, -1, -2)


def _solve(kind, k, l2, x, hints):
    """``R x`` as a function of K and l2."""
    f = Factor(*hints)
    if kind == "truncated":
        return inverse(k * f.r * f.r, x, f) * f.r * f.r
    return gram_normal(k, l2, x, Inverse(f, kind))


def _leverage(kind):
    def plain_rows(a, k, l2, *f):
        with on_cpu():
            r = _solve(kind, k, l2, mx.eye(a.shape[-1], dtype=mx.float64), f)
            return astype(astype(a, mx.float64) @ r, a.dtype)

    rows_of = attach_like(plain_rows, 3, (2, 2, 2, *CORES, 2))

    def vjp(_, bar, a, k, l2, *hints):
        *f, y = hints
        y = rows_of(a, k, l2, *f, y)
        g = astype(bar, a.dtype)
        with large(a.dtype):
            gy = g[..., None] * y
            h, t = _t(y) @ gy, _t(gy) @ a if kind == "truncated" else None
            a_bar = 2 * gy
        with on_cpu():
            k_bar = -astype(h, mx.float64)
            l2_bar = mx.sum(mx.eye(h.shape[-1], dtype=mx.float64) * k_bar, axis=-1, keepdims=True)
            if t is not None:
                rr = f[3] * f[3]
                d = split(k * rr, astype(t, mx.float64), Factor(*f)) * rr
                k_bar = k_bar + d + _t(d)
            return a_bar, k_bar, l2_bar

    def jvp(_, tangents, a, k, l2, *hints):
        da, dk, dl = tangents[:3]
        *f, y = hints
        y = astype(rows_of(a, k, l2, *f, y), mx.float64)
        with on_cpu():
            wide, parts = astype(a, mx.float64), []
            if da is not None:
                parts.append(2 * y * astype(da, mx.float64))
            if dk is not None:
                parts.append(-y * (y @ dk))
                if kind == "truncated":
                    rr = f[3] * f[3]
                    parts.append(2 * wide * (y @ split(k * rr, dk * rr, Factor(*f))))
            if dl is not None:
                parts.append(-y * y * _t(dl))
            return sum(mx.sum(part, axis=-1) for part in parts)

    return attach(vjp, jvp, (2, 2, 2, *CORES, 2, 1)), rows_of


_leverages = {kind: _leverage(kind) for kind in ("truncated", "shared")}
