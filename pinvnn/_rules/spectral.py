"""Functions of a Gram matrix K = A^H A (real symmetric, n x n, float64) that are differentiable at every order.

Notation: K = V diag(l) V^T with l = s^2, kept values s (l_k) and dropped values t (l_d), Pi = V_k V_k^T the kept
projector, N = I - Pi, B = V_k diag(1 / l_k) V_k^T the truncated inverse (A^+ = B A^H). Bars are cotangents.

Two functions are closed under differentiation (Daleckii and Krein 1965; docs/math.md):

    inverse  B h        dB = -B dK B + B C + (B C)^T
    split    S(R)       S(R)_kd = (V^T R V)_kd / (l_k - l_d), zero elsewhere, in the basis V
    with     C = S(dK) = Pi dPi N,  dPi = C + C^T.

At zero dropped values this is Golub and Pereyra's derivative; at non-zero ones it is the derivative of the truncated
inverse itself. There is no pole at repeated kept values: the only one is a closing gap at the cut. With full rank N = 0
and C = 0 hold exactly, since they come from the mask and not from I - A^+ A.

K is an array of zeros that has the derivative of A^H D A (``products.gram_handle``): the value of K is never read.
"""

import mlx.core as mx

from .._factor.right_factor import RightFactor
from .._factor.values import inverse_value, reciprocal, scaled_vectors
from .._mlx.attach import attach, attach_like
from .._mlx.place import on_cpu


def inverse(k: mx.array, x: mx.array, f: RightFactor) -> mx.array:
    """``B x`` for ``x`` (..., n, j)."""
    with on_cpu():
        return _inverse(k, x, f, inverse_value(f, x))


def inverse_matrix(k: mx.array, f: RightFactor) -> mx.array:
    """``B`` (..., n, n)."""
    with on_cpu():
        eye = mx.broadcast_to(mx.eye(f.v.shape[-1], dtype=mx.float64), f.v.shape)
        return _inverse(k, eye, f, scaled_vectors(f, 2) @ f.v.mT)


def split(k: mx.array, x: mx.array, f: RightFactor) -> mx.array:
    """``S(x)``, the kept-by-dropped block of ``x`` (..., n, n) over the differences of the eigenvalues."""
    with on_cpu():
        if f.full:
            return mx.zeros_like(x)
        return _split(k, x, f, f.v @ (split_weight(f) * (f.v.mT @ x @ f.v)) @ f.v.mT)


def split_weight(f: RightFactor) -> mx.array:
    """1 / (l_k - l_d) for kept rows and dropped columns, zero elsewhere."""
    pair = f.kept[..., :, None] * (1 - f.kept[..., None, :]) > 0
    s, t = f.s[..., :, None], f.s[..., None, :]
    # (s - t)(s + t), not s^2 - t^2: the difference of two close values keeps its digits.
    difference = mx.where(pair, (s - t) * (s + t), mx.array(1.0, mx.float64))
    return mx.where(pair, 1 / difference, mx.array(0.0, mx.float64))


def pull_back(k: mx.array, t: mx.array, g: mx.array, f: RightFactor, dtype: mx.Dtype) -> mx.array:
    """M with A_bar = A M, from the cotangent G = B_bar of the truncated inverse and T = G B.

    M = -(B T + T^T B) + Q + Q^T,  Q = S(B G + T^T).  ``t`` is an argument of its own because callers have more accurate
    forms of it: G B would lose cond(A)^2 digits. The products are summed in ``dtype``: a float32 A M loses as much.
    """
    with on_cpu():
        fast = _pull_back_in_basis(f, t.astype(dtype), g.astype(dtype))
        return _attach_pull_back(k, t, g, f, fast.astype(mx.float64))


def turn(k: mx.array, t: mx.array, g: mx.array, f: RightFactor, dtype: mx.Dtype) -> mx.array:
    """The part Q + Q^T of :func:`pull_back`, by which the kept subspace turns; zero at full rank."""
    with on_cpu():
        fast = _pull_back_in_basis(f, t.astype(dtype), g.astype(dtype), kept=False)
        return _attach_turn(k, t, g, f, fast.astype(mx.float64))


def _turn(k, t, g, f: RightFactor):
    with on_cpu():
        q = split(k, inverse(k, g, f) + t.mT, f)
        return q + q.mT


def _pull_back(k, t, g, f: RightFactor):
    with on_cpu():
        bt = inverse(k, t, f)
        return _turn(k, t, g, f) - bt - bt.mT


def _pull_back_in_basis(f: RightFactor, t, g, kept=True):
    """M, or Q + Q^T alone unless ``kept``, in the basis V: six products instead of eight, in the dtype of ``t``."""
    with on_cpu():
        v, beta, weight = f.v.astype(t.dtype), reciprocal(f, 2)[..., :, None], split_weight(f)
        db, weight = (weight * beta).astype(t.dtype), weight.astype(t.dtype)
        beta = beta.astype(t.dtype)
        t, g = v.mT @ t @ v, v.mT @ g @ v
        m = db * g + weight * t.mT
        m = m - beta * t if kept else m
        return v @ (m + m.mT) @ v.mT


def _inverse_vjp(out, bar, k, x, f: RightFactor):
    # w = B x:  x_bar = B w_bar,  K_bar = M / 2 with B_bar = w_bar x^T.
    with on_cpu():
        u = inverse(k, bar, f)
        if f.full:  # B T = u w^T
            turned = u @ out.mT
            return -(turned + turned.mT) / 2, u
        return pull_back(k, bar @ out.mT, bar @ x.mT, f, mx.float64) / 2, u


def _inverse_jvp(out, tangents, k, x, f: RightFactor):
    # dw = B (dx - dK w + C x) + C^T w
    dk, dx = tangents[:2]
    with on_cpu():
        if dk is None:
            return inverse(k, dx, f)
        c = split(k, dk, f)
        right = c @ x - dk @ out
        return inverse(k, right if dx is None else right + dx, f) + c.mT @ out


def _split_vjp(out, bar, k, x, f: RightFactor):
    # Q = S(R), Y = S(Q_bar):  R_bar = Y,
    # K_bar = Q^T Y - Y Q^T + S(Y R^T - R^T Y + Q Q_bar^T - Q_bar^T Q)
    with on_cpu():
        y = split(k, bar, f)
        c = y @ x.mT - x.mT @ y + out @ bar.mT - bar.mT @ out
        return out.mT @ y - y @ out.mT + split(k, c, f), y


def _split_jvp(out, tangents, k, x, f: RightFactor):
    # dQ = S(dR + Q dK - dK Q + C R - R C) + C^T Q - Q C^T, with C for dPi = C + C^T in S, which sees no more of it
    dk, dx = tangents[:2]
    with on_cpu():
        if dk is None:
            return split(k, dx, f)
        c = split(k, dk, f)
        inner = out @ dk - dk @ out + c @ x - x @ c
        return split(k, inner if dx is None else inner + dx, f) + c.mT @ out - out @ c.mT


_inverse = attach(_inverse_vjp, _inverse_jvp, 2, 2, None, 2)
_split = attach(_split_vjp, _split_jvp, 2, 2, None, 2)
_attach_pull_back = attach_like(_pull_back, 3, 2, 2, 2, None, 2)
_attach_turn = attach_like(_turn, 3, 2, 2, 2, None, 2)


# --- Eigenvalues and eigenvectors -----------------------------------------------------------------


def eigenvalues(k: mx.array, f: RightFactor, twins: bool) -> mx.array:
    """The eigenvalues ``l = s^2`` (..., n). Second derivatives of repeated ones, which have a pole, are NaN.

    Args:
        k: The handle of the Gram matrix.
        f: Its factor.
        twins: Whether f is that of an embedded complex matrix, with every vector twice.
    """
    return _EIGEN[twins][0](k, f, f.s * f.s)


def _eigenvectors(k, f: RightFactor, twins: bool):
    return _EIGEN[twins][1](k, f, f.v)


def _mixing(k, f: RightFactor, twins: bool):
    """1 / (l_j - l_i); 0 on the diagonal and between twins, which mix freely; NaN at repeated values."""
    values = eigenvalues(k, f, twins)
    n = f.s.shape[-1]
    difference = values[..., None, :] - values[..., :, None]
    index = mx.arange(n) // (2 if twins else 1)
    same = index[:, None] == index[None, :]
    close = mx.abs(difference) <= n * 2.0**-50 * f.s[..., :1, None] ** 2
    # Values that are numerically zero have gradient 0 by convention: how their vectors mix has no effect.
    zero = f.s <= n * 2.0**-26 * f.s[..., :1]
    same = mx.logical_or(same, mx.logical_and(zero[..., :, None], zero[..., None, :]))
    turn = 1 / mx.where(mx.logical_or(same, close), mx.array(float("nan"), mx.float64), difference)
    return mx.where(same, mx.zeros_like(difference), turn)


def _eigen(twins):
    # dl = diag(V^T dK V),  dV = V (F o (V^T dK V)),  F_ij = 1 / (l_j - l_i)
    def values_vjp(out, bar, k, f: RightFactor):
        with on_cpu():
            v = _eigenvectors(k, f, twins)
            return ((v * bar[..., None, :]) @ v.mT,)

    def values_jvp(out, tangents, k, f: RightFactor):
        with on_cpu():
            v = _eigenvectors(k, f, twins)
            return mx.sum(v * (tangents[0] @ v), axis=-2)

    def vectors_vjp(v, bar, k, f: RightFactor):
        with on_cpu():
            return (v @ (_mixing(k, f, twins) * (v.mT @ bar)) @ v.mT,)

    def vectors_jvp(v, tangents, k, f: RightFactor):
        with on_cpu():
            return v @ (_mixing(k, f, twins) * (v.mT @ tangents[0] @ v))

    return attach(values_vjp, values_jvp, 2, None, 1), attach(vectors_vjp, vectors_jvp, 2, None, 2)


_EIGEN = {twins: _eigen(twins) for twins in (False, True)}
