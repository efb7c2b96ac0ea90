"""Derivative rules of ridge regression, real and at every order.

W = R A^T D b with R_t = (A^T D A + L_t)^-1 for each target t, D = diag(w), L_t = diag(l2_t); r = b - A W, z = R W_bar:

    A_bar = D (r z^T - (A z) W^T),  b_bar = D A z,  w_bar_i = sum_t r_it (A z)_it,  l2_bar = -z o W
    dW    = R (dA^T D r - A^T D dA W + A^T dD r + A^T D db - dL o W)

(l2_bar summed over the dimensions along which l2 broadcasts.) The rules contain R; ``normal`` is R h, with the rule

    q = R h, u = R q_bar:  h_bar = u,  A_bar = -D ((A q) u^T + (A u) q^T),  w_bar = -sum_t (A u) o (A q),
    l2_bar = -u o q

No root of a weight appears: the gradient at weight 0 is finite and exact. Complex problems arrive as real ones
(``_mlx/complex.py``). The dual form is in ``dual.py``.
"""

import mlx.core as mx

from .._factor.ridge_values import RidgeInverse, apply_inverse, scales
from .._factor.right_factor import CORES, RightFactor
from .._mlx.attach import attach
from .._mlx.matmul import matmul
from .._mlx.place import astype, large, on_cpu
from .._mlx.shapes import same_batch, total
from .products import product_and_residual, residual


def normal(a: mx.array, w: mx.array, l2: mx.array, x: mx.array, inverse: RidgeInverse) -> mx.array:
    """``R x / r^2`` with its derivatives; ``x`` (..., n, k) and the result are float64.

    It is divided by r^2, with r near 1 / |A|, because R x is of the size of x / |A|^2, which may be out of range.
    """
    return _RULES[inverse.route][0](a, w, l2, x, *inverse.f, apply_inverse(inverse, l2, a.shape, x))


def attach_ridge(
    a: mx.array, b: mx.array, w: mx.array, l2: mx.array, inverse: RidgeInverse, value: mx.array
) -> mx.array:
    """The solution W, float64, with its derivatives in ``a``, ``b``, ``w`` (..., 1 or m), ``l2`` (..., 1 or n, 1 or k).

    ``value`` should be float64, too: the rules take residuals from it.
    """
    return _RULES[inverse.route][1](a, b, w, l2, *inverse.f, astype(value, mx.float64))


def _build(route):
    def inverse(hints):
        return RidgeInverse(RightFactor(*hints), route)

    def normal_vjp(q, bar, a, w, l2, x, *hints):
        u = normal(a, w, l2, bar, inverse(hints))
        with on_cpu():
            r = scales(inverse(hints))
            ur, qr = u * r, q * r
            l2_bar = -ur * qr
        ur, qr = astype(ur, a.dtype), astype(qr, a.dtype)
        with large(a.dtype):
            au, aq, weight = matmul(a, ur), matmul(a, qr), w[..., None]
            a_bar = -(matmul(weight * aq, ur.mT) + matmul(weight * au, qr.mT))
            return a_bar, -_sum_to(au * aq, w), l2_bar, u

    def normal_jvp(q, tangents, a, w, l2, x, *hints):
        da, dw, dl, dx = tangents[:4]
        with on_cpu():
            r = scales(inverse(hints))
            qr = astype(q * r, a.dtype)
            parts = ([] if dl is None else [-dl * (q * r) * r]) + ([] if dx is None else [dx])
        with large(a.dtype):
            weight, moved = w[..., None], []
            if da is not None:
                moved.append(matmul(da.mT, weight * matmul(a, qr)) + matmul(a.mT, weight * matmul(da, qr)))
            if dw is not None:
                moved.append(matmul(a.mT, dw[..., None] * matmul(a, qr)))
        with on_cpu():
            parts += [-astype(p, mx.float64) * r for p in moved]
            return normal(a, w, l2, total(parts), inverse(hints))

    def ridge_vjp(x, bar, a, b, w, l2, *hints):
        with on_cpu():
            r = scales(inverse(hints))
            zr = normal(a, w, l2, bar, inverse(hints)) * r
            z = zr * r
            # One product with twice the columns, [A z | r rest] [-W | z / r]^T: a pass over A_bar less.
            both = product_and_residual(a, z, b, x, r)
            right = mx.concatenate(same_batch(-x, zr), axis=-1).astype(a.dtype)
            l2_bar, r = -z * x, r.astype(a.dtype)
        with large(a.dtype):
            az, rest = mx.split(both, 2, axis=-1)
            return matmul(_weigh(w, both), right.mT), _weigh(w, az), _sum_to(rest / r * az, w), l2_bar

    def ridge_jvp(x, tangents, a, b, w, l2, *hints):
        da, db, dw, dl = tangents[:4]
        with on_cpu():
            r = scales(inverse(hints))
            one = mx.max(r, axis=-1, keepdims=True)
            rest, rs, narrow = residual(b, a, x, one), r.astype(a.dtype), x.astype(a.dtype)
        with large(a.dtype):
            moved, weight, rest = [], w[..., None], rest * rs
            if da is not None:
                moved.append(matmul(da.mT, weight * rest) - matmul(a.mT, weight * matmul(da, narrow) * rs))
            if dw is not None:
                moved.append(matmul(a.mT, dw[..., None] * rest))
            if db is not None:
                moved.append(matmul(a.mT, weight * db * rs))
        with on_cpu():
            parts = [p.astype(mx.float64) for p in moved] + ([] if dl is None else [-dl * x * r])
            return normal(a, w, l2, total(parts), inverse(hints)) * r

    return (
        attach(normal_vjp, normal_jvp, (2, 1, 2, 2, *cores(route), 2)),
        attach(ridge_vjp, ridge_jvp, (2, 2, 1, 2, *cores(route), 2)),
    )


def _weigh(w, x):
    """``diag(w) x`` for weights ``(..., m)``, or ones ``(1,)``, which stand for no weights."""
    return x if w.shape[-1] == 1 and x.shape[-2] != 1 else w[..., None] * x


def cores(route):
    """Trailing dimensions of a factor's fields that are no batch: one more for targets on the route "feature"."""
    return (3, 2, 2, 3) if route == "feature" else CORES


# --- From a Gram matrix ---------------------------------------------------------------------------


def gram_normal(k: mx.array, l2: mx.array, x: mx.array, inverse: RidgeInverse) -> mx.array:
    """``(K + L)^-1 x`` as a function of a Gram matrix K that was accumulated elsewhere; all float64."""
    with on_cpu():
        r = scales(inverse)
        return _GRAM_RULES[inverse.route](k, l2, x, *inverse.f, apply_inverse(inverse, l2, k.shape, x) * r * r)


def _build_gram(route):
    # q = R x, u = R q_bar:  K_bar = -(u q^T + q u^T) / 2,  l2_bar = -u o q,  x_bar = u
    def vjp(q, bar, k, l2, x, *hints):
        with on_cpu():
            u = gram_normal(k, l2, bar, RidgeInverse(RightFactor(*hints), route))
            turn = u @ q.mT
            return -(turn + turn.mT) / 2, -u * q, u

    def jvp(q, tangents, k, l2, x, *hints):
        dk, dl, dx = tangents[:3]
        with on_cpu():
            parts = [] if dx is None else [dx]
            parts += [] if dk is None else [-(dk + dk.mT) @ q / 2]
            parts += [] if dl is None else [-dl * q]
            return gram_normal(k, l2, total(parts), RidgeInverse(RightFactor(*hints), route))

    return attach(vjp, jvp, (2, 2, 2, *cores(route), 2))


def _sum_to(x, w):
    """Sum over the targets, and over the rows where one weight serves all."""
    x = mx.sum(x, axis=-1)
    return mx.sum(x, axis=-1, keepdims=True) if w.shape[-1] == 1 else x


_GRAM_RULES = {route: _build_gram(route) for route in ("shared", "feature")}
_RULES = {route: _build(route) for route in ("shared", "feature")}
