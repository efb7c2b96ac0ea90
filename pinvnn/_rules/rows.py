"""Residuals and leverages of all rows, as one function with one derivative.

With R = (K + L)^-1, K = A^T D A, or K^+ truncated where there is no penalty, and the solution x = R A^T D b:

    r = b - A x,    h_i = a_i R a_i^T.

Let R = W W^T and U = A W, so that h_i = |u_i|^2, and xi = U^T D b, so that A x = U xi. The cotangents rho of r and g of
h give x_bar = -A^T rho, R x_bar = W zeta with zeta = -U^T rho, and with C = U^T diag(g) U

    A_bar = (2 diag(g) U - 2 D U C - b_bar xi^T + D r zeta^T) W^T,    b_bar = rho + D U zeta,
    w_bar_i = r_i . (U zeta)_i - u_i C u_i^T,    L_bar = -(W zeta) o x - diag(W C W^T).

All large products have U in them, whose entries are of one size whatever the condition of A, so that they may be
summed in float32: their errors pass W once, as those of A do. (In A and Y = A R they would pass it twice.)

A truncated R is W_k W_k^T with W_k = V_k diag(1 / s_k). Let W have the dropped vectors V_d, too, unscaled. U, xi and
zeta above are then those of the kept columns, and the turning of the kept subspace (S in ``spectral.py``) adds
D U Q W^T to A_bar and u_i Q u_i^T / 2 to w_bar_i, with

    Q_kd = Q_dk = (2 C + zeta xi^T + xi zeta^T)_kd / (s_k^2 - s_d^2),    zero elsewhere.

From second order on, the rule is the derivative of :func:`_plain`, which is made of attached values and products.
"""

from functools import partial
from typing import Literal, TypeAlias

import mlx.core as mx

from .._factor.ridge_values import RidgeInverse, reciprocals
from .._factor.right_factor import RightFactor
from .._mlx.attach import attach, attach_like, rules_like
from .._mlx.centred import Matrix, in_float64, rounded, with_batch
from .._mlx.matmul import addmm, matmul
from .._mlx.place import astype, large, on_cpu
from .._mlx.shapes import same_batch, total
from .products import gram_handle, weigh
from .residuals import exact_residual
from .ridge import gram_normal
from .solve import attach_solve
from .spectral import inverse, split_weight

#: Which R: truncated; K + L with the factor of A, if L is the same for all features; K + L with a factor of its own.
Kind: TypeAlias = Literal["truncated", "shared", "feature"]


def inverse_root(kind: Kind, f: RightFactor, l2: mx.array, shape: tuple[int, ...]) -> tuple[mx.array, mx.array]:
    """W with W W^T = R, ``(..., n, n)`` in float64, and which of its columns are kept (1.0 or 0.0), ``(..., n, 1)``."""
    with on_cpu():
        if kind == "truncated":
            on = f.kept > 0
            root = f.v * (mx.where(on, 1 / mx.where(on, f.s, 1), 1)[..., None, :] * f.r)
            return mx.stop_gradient(root), f.kept[..., None]
        if f.full:
            root = f.v * f.r
        else:
            d = reciprocals(RidgeInverse(f, "shared"), mx.zeros_like(l2) if kind == "feature" else l2, shape)
            root = f.v * (mx.sqrt(d).mT * f.r)
        return mx.stop_gradient(root), mx.ones((shape[-1], 1), mx.float64)


def inverse_of(kind: Kind, a: Matrix, w: mx.array | None, l2: mx.array, f: RightFactor) -> mx.array:
    """R ``(..., n, n)`` in float64, differentiable in A, w and L."""
    with on_cpu():
        eye, zero = mx.eye(a.shape[-1], dtype=mx.float64), mx.zeros((1, 1), mx.float64)
        k = gram_handle(a, w, f)
        if kind == "truncated":
            return inverse(k, eye, f) * f.r * f.r
        k = k / f.r / f.r
        k, l2 = (k + eye * l2, zero) if kind == "feature" else (k, l2)
        return gram_normal(k, l2, eye, RidgeInverse(f, "shared"))


def solution_of(
    kind: Kind, a: Matrix, b: Matrix, w: mx.array | None, l2: mx.array, f: RightFactor, value: mx.array
) -> mx.array:
    """The solution ``(..., n, k)``: the float64 constant ``value`` with its derivatives attached."""
    if kind == "truncated":
        return attach_solve(a, b, w, None, f, value)
    if kind == "feature":  # A factorization for each target, in general.
        with on_cpu():
            f = RightFactor(f.v[..., None, :, :], f.s[..., None, :], f.kept[..., None, :], f.r[..., None, :, :])
    return attach_solve(a, b, w, l2, RidgeInverse(f, kind), value)


def _plain(kind, a, b, w, l2, f, value):
    x, r = solution_of(kind, a, b, w, l2, f, value), inverse_of(kind, a, w, l2, f)
    rest = exact_residual(a, b, x)
    with on_cpu():
        wide = in_float64(a)
        leverage = mx.sum((wide @ r) * wide, axis=-1, keepdims=True)
        return mx.concatenate(same_batch(rest, leverage), axis=-1)


# Trailing dimensions of a, b, w and l2.
_CORES = (2, 2, 1, 2)


def _plain_bar(kind, which):
    """One of the cotangents that :func:`_plain` has, for each problem of the batch and, of w and l2, for each entry."""
    vjp, _ = rules_like(partial(_plain, kind), 4)

    def bar_of(a, b, w, l2, bar, f, x):
        batch, (m, n) = bar.shape[:-2], a.shape[-2:]

        def whole(y, *shape):
            return None if y is None else mx.broadcast_to(y, (*batch, *shape))

        with on_cpu():
            f = f._make(whole(y, *y.shape[y.ndim - core :]) for y, core in zip(f, f.cores, strict=True))
            args = with_batch(a, batch), with_batch(b, batch), whole(w, m), whole(l2, n, 1)
            return vjp(None, bar, *args, f, whole(x, *x.shape[-2:]))[which]

    return attach_like(bar_of, 5, *_CORES, 2, None, 2, _CORES[which])


def _bars(kind, out, bar, b, w, f: RightFactor, root, u):
    """The four cotangents by the products of U, as in the head of this file; None for what is no argument."""
    k, dtype, truncated = b.shape[-1], u.dtype, kind == "truncated"
    with on_cpu():
        rest, rho, g, narrow = (astype(x, dtype) for x in (out[..., :k], bar[..., :k], bar[..., k:], root))
        kept = turn = mx.ones((1, 1), dtype)  # for a truncated R only
        if truncated:
            kept, turn = astype(f.kept[..., None, :], dtype), astype(split_weight(f), dtype)
    with large(dtype):
        gu, wu = (2 * g) * u, weigh(w, u)
        c = matmul(u.mT, gu)
        both = matmul(u.mT, mx.concatenate([weigh(w, rounded(b)), -rho], axis=-1)).mT
        xi, zeta, m = both[..., :k, :], both[..., k:, :], -c  # xi and zeta transposed
        if truncated:
            z = matmul(zeta.mT, xi)
            m = (turn + turn.mT) * (c + z + z.mT) - c * kept * kept.mT
            gu, xi, zeta = gu * kept, xi * kept, zeta * kept
        # Here -b_bar xi^T is -rho xi^T - D U (zeta xi^T).
        thin, flat = mx.concatenate([weigh(w, rest), -rho], axis=-1), mx.concatenate([zeta, xi], axis=-2)
        a_bar = matmul(addmm(addmm(gu, thin, flat), wu, m - matmul(zeta.mT, xi)), narrow.mT)
        uz = matmul(u, zeta.mT)
        b_bar = rho + weigh(w, uz)
        w_bar = mx.sum(rest * uz, axis=-1) + mx.sum(matmul(u, m) * u, axis=-1) / 2 if w is not None else None
    if truncated:
        return a_bar, b_bar, w_bar, None
    with on_cpu():
        zeta, xi, c = (astype(x, mx.float64) for x in (zeta, xi, c))
        zx = mx.sum((root @ zeta.mT) * (root @ xi.mT), axis=-1, keepdims=True)
        l2_bar = -zx - mx.sum((root @ c) * root, axis=-1, keepdims=True) / 2
    return a_bar, b_bar, w_bar, l2_bar


def _build(kind):
    plain_bars = [_plain_bar(kind, which) for which in range(4)]

    def vjp(out, bar, a, b, w, l2, f, x, root, u):
        fast = _bars(kind, out, bar, b, w, f, root, u)
        pairs = zip(plain_bars, fast, strict=True)
        return [None if v is None else attached(a, b, w, l2, bar, f, x, v) for attached, v in pairs]

    _, jvp = rules_like(lambda a, b, w, l2, f, x, root, u: _plain(kind, a, b, w, l2, f, x), 4)
    return attach(vjp, jvp, *_CORES, None, 2, 2, 2, 2)


_rules = {kind: _build(kind) for kind in ("truncated", "shared", "feature")}


def attach_residuals_and_leverages(
    kind: Kind,
    a: Matrix,
    b: Matrix,
    w: mx.array | None,
    l2: mx.array,
    f: RightFactor,
    x: mx.array,
    root: mx.array,
    u: mx.array,
    value: mx.array,
) -> mx.array:
    """Residuals and leverages ``(..., m, k + 1)`` in float64: the constant ``value`` with its derivatives attached.

    Args:
        kind: See :data:`Kind`.
        a: ``(..., m, n)``.
        b: ``(..., m, k)``.
        w: ``(..., m)``, or None.
        l2: ``(..., 1 or n, 1)``, float64.
        f: A factor, without an axis for targets.
        x: The solution in float64.
        root: W, from :func:`inverse_root`.
        u: U = A W in the dtype of ``a``.
        value: Residuals and leverages as they were computed.
    """
    return _rules[kind](a, b, w, l2, f, x, root, u, value)


def _rest_vjp(_, bar, leverage, w):
    with on_cpu():
        return (-bar, None) if w is None else (-w * bar, -leverage * bar)


def _rest_jvp(_, tangents, leverage, w):
    with on_cpu():
        moved, dw = tangents
        parts = [] if moved is None else [-moved if w is None else -w * moved]
        return total(parts if dw is None else [*parts, -leverage * dw])


#: ``attach_rest(leverage, w, value)``: the constant ``value`` with the derivatives of 1 - w leverage.
attach_rest = attach(_rest_vjp, _rest_jvp, 1, 1, 1)
