"""Multinomial logistic regression by Newton's method: constants in float64, for NumPy and for MLX graphs alike.

With A the rows (m x N, a column of ones among them where there is an intercept), V = A T the logits, P = softmax(V),
D = diag(w) and Y the labels as one-hot rows,

    F(T) = sum_i w_i (logsumexp(v_i) - <y_i, v_i>) + 1/2 sum l2 o T o T
    g    = A^T D (P - Y) + l2 o T
    H U  = A^T D S(A U) + l2 o U,    S(X) = P o X - P o rowsum(P o X).

F is convex; a step along -H^-1 g takes the best of several lengths, so that F never grows. Only where values may be
looked at does the number of steps depend on them; in a graph it is fixed.

Adding one number to a feature's weights of all classes changes nothing but the penalty. Where a feature has none
("free", the intercept above all), its weights sum to 0: H is singular in that direction and gets a multiple of the
projector on it, which changes no step.
"""

import math
from typing import Any, NamedTuple

import mlx.core as mx

from .lapack import cholesky, thin_svd, tri_inv
from .right_factor import power_of_two

# Largest (N c) for which the Hessian is formed and factored; conjugate gradients beyond.
DENSE = 1200
# Lengths of a step that are tried. Beyond 1: on separable classes Newton's own step is too short by far.
_LENGTHS = (1.0, 2.0, 4.0, 0.5, 0.25, 0.1, 0.03, 0.01, 1e-3)
# Newton steps in a graph, and the most that a fit to visible values may take.
GRAPH_STEPS, MOST_STEPS = 24, 100
# Steps of conjugate gradients for one Newton step: in a graph, and at most.
_GRAPH_CG, _MOST_CG = 30, 500


class Fitted(NamedTuple):
    """What :func:`minimize` returns.

    Attributes:
        t: The minimizer ``(..., N, c)``; NaN where Newton's method did not converge.
        steps: Number of Newton steps that were taken.
        decrement: Newton decrement g^T H^-1 g before the last step over F, ``(...)``.
    """

    t: Any
    steps: int
    decrement: Any


class NumPy:
    """Visible values: as many steps as it takes."""

    adaptive = True

    def __init__(self):
        import numpy as np  # here, since it takes longer to import than all of MLX

        self.np = np

    def __getattr__(self, name):
        return getattr(self.np, name)

    def cholesky(self, k):
        """Lower Cholesky factor; NaN where there is none."""
        try:
            return self.np.linalg.cholesky(k)
        except self.np.linalg.LinAlgError:
            return self.np.full_like(k, math.nan) if k.ndim == 2 else self.np.stack([self.cholesky(one) for one in k])

    def solve(self, k, b):
        """``k^-1 b`` of positive definite ``k``; NaN where it is singular."""
        try:
            return self.np.linalg.solve(k, b)
        except self.np.linalg.LinAlgError:
            if k.ndim == 2:
                return self.np.full_like(b, math.nan)
            return self.np.stack([self.solve(*one) for one in zip(k, b, strict=True)])

    def left_factor(self, a):
        """Orthonormal columns Q and a square R with ``a`` = Q R, for tall finite ``a``."""
        q, s, vt = self.np.linalg.svd(a, full_matrices=False)
        return q, s[..., :, None] * vt


class Graph:
    """MLX arrays in a graph, on the CPU stream of the caller."""

    adaptive = False

    def __getattr__(self, name):
        return getattr(mx, name)

    @staticmethod
    def exp(x):
        """MLX's own float64 exp is right to 1e-7 only; its power is right to rounding."""
        return mx.power(mx.array(math.e, mx.float64), x)

    @staticmethod
    def cholesky(k):
        """Lower Cholesky factor; garbage where there is none."""
        return mx.tril(cholesky(k))

    @staticmethod
    def solve(k, b):
        """``k^-1 b`` of positive definite ``k``."""
        inverse = tri_inv(Graph.cholesky(k))
        return inverse.mT @ (inverse @ b)

    @staticmethod
    def left_factor(a):
        """Orthonormal columns Q and a square R with ``a`` = Q R, for tall finite ``a``."""
        r = power_of_two(mx.max(mx.abs(a), axis=(-2, -1), keepdims=True), mx.float64)
        q, s, v = thin_svd(a * r)
        return q, s[..., :, None] * v.mT / r


def _t(x):
    return x.swapaxes(-1, -2)


def residual_and_loss(xp, v, y):
    """P - Y, ``(..., m, c)``, and the cross-entropy of each row, ``(..., m)``, to the last digit near 0 and 1."""
    d = v - xp.sum(y * v, axis=-1, keepdims=True)
    top = xp.max(d, axis=-1, keepdims=True)
    others = xp.exp(d - top) * (1 - y)
    rest = xp.sum(others, axis=-1, keepdims=True)
    own = xp.exp(-top)
    total = own + rest
    residual = others / total - y * (rest / total)
    return residual, (top + xp.log1p(own - 1 + rest))[..., 0]


def free_features(xp, l2):
    """1.0 for the features whose weights no penalty holds, ``(..., N, 1)``."""
    return xp.where(xp.max(xp.abs(l2), axis=-1, keepdims=True) == 0, 1.0 + 0 * l2[..., :1], 0 * l2[..., :1])


def without_common_shift(xp, b, free):
    """``b`` (..., N, c) less its mean over the classes where the feature is free."""
    return b - free * xp.mean(b, axis=-1, keepdims=True)


# --- The penalty, and few rows ----------------------------------------------------------------------------------------
# Where all features have the same penalty, l2 has one row for them, and another one for the intercept if there is one.
# With fewer rows m than features the minimizer is then a combination of rows, A^T X. An orthonormal basis Q of the row
# space leaves a problem with m features, A Q; in the null space of A, H is the penalty alone.


def penalty_of_all(xp, l2, n):
    """``l2`` (..., 1, 2 or n, 1 or c) with a row for each of ``n`` columns of A."""
    rows = l2.shape[-2]
    if rows == n:
        return l2
    features = xp.broadcast_to(l2[..., :1, :], (*l2.shape[:-2], n - rows + 1, l2.shape[-1]))
    return features if rows == 1 else xp.concatenate([features, l2[..., 1:, :]], axis=-2)


def _features_beyond_rows(a, l2):
    """The number of features if the problem is solved in its row space, else 0."""
    n = a.shape[-1] - l2.shape[-2] + 1
    return n if l2.shape[-2] < a.shape[-1] and a.shape[-2] < n else 0


def _in_row_space(xp, a, n):
    """A Q with the intercept's column, and Q ``(..., n, m)``; NaN where A is not finite."""
    x = _t(a[..., :n])
    finite = xp.isfinite(xp.sum(xp.abs(x), axis=(-2, -1), keepdims=True))
    q, r = xp.left_factor(xp.where(finite, x, xp.zeros_like(x)))
    r = xp.where(finite, r, r * math.nan)
    return xp.concatenate([_t(r), a[..., n:]], axis=-1), q


def _from_row_space(xp, q, t):
    m = q.shape[-1]
    return xp.concatenate([q @ t[..., :m, :], t[..., m:, :]], axis=-2)


# --- H^-1 -------------------------------------------------------------------------------------------------------------


def curvature(xp, a, w, p, l2):
    """H ``(..., c N, c N)``, classes first, with the projectors on the common shifts of free features."""
    m, n = a.shape[-2:]
    c, batch = p.shape[-1], tuple(a.shape[:-2])
    rows = (p[..., :, :, None] * a[..., :, None, :]).reshape(*batch, m, c * n)
    weight = w[..., None]
    own = _t(a)[..., None, :, :] @ (_t(weight * p)[..., None] * a[..., None, :, :])  # (..., c, n, n)
    free = free_features(xp, l2)[..., 0]
    scale = xp.sum(weight * a * a, axis=-2)
    shift = free * xp.where(scale > 0, scale, xp.ones_like(scale)) / c
    eye_c, eye_n = xp.eye(c, dtype=xp.float64), xp.eye(n, dtype=xp.float64)
    diagonal = own + eye_n * _t(l2 + 0 * p[..., :1, :])[..., None]
    blocks = eye_c[:, None, :, None] * diagonal[..., :, :, None, :]
    blocks = blocks + (eye_n * shift[..., None])[..., None, :, None, :]
    return blocks.reshape(*batch, c * n, c * n) - _t(rows) @ (weight * rows)


def _dense_solve(xp, a, w, p, l2, b):
    n, c = b.shape[-2:]
    k = curvature(xp, a, w, p, l2)
    unit = 1 / xp.sqrt(xp.maximum(xp.diagonal(k, 0, -2, -1), 1e-290))  # units of the features: no pivot decides by them
    x = xp.solve(k * unit[..., None] * unit[..., None, :], unit[..., None] * _t(b).reshape(*b.shape[:-2], n * c, 1))
    return _t((unit[..., None] * x).reshape(*b.shape[:-2], c, n))


def times_hessian(xp, a, w, p, l2, u):
    """``H u``, without H."""
    v = p * (a @ u)
    v = v - p * xp.sum(v, axis=-1, keepdims=True)
    return _t(a) @ (w[..., None] * v) + l2 * u


class Bound:
    """Boehning's bound of the Hessian, 1/2 I x A^T D A + L, factored: what preconditions conjugate gradients.

    D. Boehning, Multinomial logistic regression algorithm, Ann. Inst. Statist. Math. 44 (1992), 197-200. The Gram
    matrix is that of ridge regression; where all classes have the same penalty, so is the factorization.
    """

    def __init__(self, xp, a, w, l2):
        n = a.shape[-1]
        gram = _t(a) @ (w[..., None] * a) / 2
        k = gram[..., None, :, :] + xp.eye(n, dtype=xp.float64) * _t(l2)[..., None, :]
        self.xp, self.shared = xp, l2.shape[-1] == 1
        unit = 1 / xp.sqrt(xp.maximum(xp.diagonal(k, 0, -2, -1), 1e-290))
        eye = xp.eye(n, dtype=xp.float64) + 0 * k
        self.inverse = unit[..., None] * xp.solve(k * unit[..., None] * unit[..., None, :], eye) * unit[..., None, :]

    def __call__(self, b):
        if self.shared:
            return self.inverse[..., 0, :, :] @ b
        return _t((self.inverse @ _t(b)[..., None])[..., 0])


def _cg_solve(xp, a, w, p, l2, b, tolerance, bound):
    """``H^-1 b`` by preconditioned conjugate gradients, until the squared residual norm falls by ``tolerance**2``."""

    def dot(x, y):
        return xp.sum(x * y, axis=(-2, -1), keepdims=True)

    x, rest = xp.zeros_like(b), b
    z = bound(rest)
    direction, norm = z, dot(rest, z)
    goal = norm * tolerance**2
    for _ in range(_MOST_CG if xp.adaptive else _GRAPH_CG):
        turned = times_hessian(xp, a, w, p, l2, direction)
        slope = dot(direction, turned)
        going = xp.logical_and(norm > goal, slope > 0)
        if xp.adaptive and not going.any():
            break
        length = xp.where(going, norm / xp.where(slope > 0, slope, 1 + 0 * slope), 0 * norm)
        x, rest = x + length * direction, rest - length * turned
        z = bound(rest)
        last, norm = norm, dot(rest, z)
        direction = z + xp.where(going, norm / xp.where(last > 0, last, 1 + 0 * last), 0 * norm) * direction
    # A solve that has not converged must not pass for one: the caller sees NaN.
    return xp.where(norm <= xp.maximum(goal, 1e-16 * dot(b, bound(b))), x, x * math.nan)


def solve_hessian(xp, a, w, p, l2, b, tolerance=1e-10, bound=None):
    """``H^-1 b`` for ``b`` (..., N, c), by a factorization of H or, where that is too large, by conjugate gradients.

    NaN where conjugate gradients do not converge.
    """
    n, c = b.shape[-2:]
    features = _features_beyond_rows(a, l2)
    if features:
        small, q = _in_row_space(xp, a, features)
        inside = _t(q) @ b[..., :features, :]
        outside = b[..., :features, :] - q @ inside
        rest = l2[..., :1, :] + 0 * outside
        outside = xp.where(rest > 0, outside / xp.where(rest > 0, rest, xp.ones_like(rest)), rest * math.nan)
        inside = xp.concatenate([inside, b[..., features:, :]], axis=-2)
        x = _from_row_space(xp, q, solve_hessian(xp, small, w, p, l2, inside, tolerance))
        return xp.concatenate([x[..., :features, :] + outside, x[..., features:, :]], axis=-2)
    l2 = penalty_of_all(xp, l2, n)
    b = without_common_shift(xp, b, free_features(xp, l2))
    if n * c <= DENSE:
        return _dense_solve(xp, a, w, p, l2, b)
    return _cg_solve(xp, a, w, p, l2, b, tolerance, bound or Bound(xp, a, w, l2))


# --- The minimizer ----------------------------------------------------------------------------------------------------


def minimize(xp, a, y, w, l2) -> Fitted:
    """The minimizer of F.

    Args:
        xp: :class:`NumPy` or :class:`Graph`: whose arrays these are.
        a: Rows, ``(..., m, N)``, float64 like all others.
        y: One-hot labels, ``(..., m, c)``.
        w: Weights, ``(..., m)``.
        l2: Penalty ``(..., N, 1 or c)``, or compact, see :func:`penalty_of_all`.
    """
    n, c = a.shape[-1], y.shape[-1]
    features = _features_beyond_rows(a, l2)
    if features:
        small, q = _in_row_space(xp, a, features)
        found = minimize(xp, small, y, w, l2)
        return found._replace(t=_from_row_space(xp, q, found.t))
    l2 = penalty_of_all(xp, l2, n)
    batch = tuple(a.shape[:-2])
    large = n * c > DENSE
    bound = Bound(xp, a, w, l2) if large else None
    t = xp.zeros((*batch, n, c), dtype=xp.float64)
    v = xp.zeros((*batch, a.shape[-2], c), dtype=xp.float64)
    lengths = xp.array(_LENGTHS, dtype=xp.float64).reshape(-1, *(1,) * (len(batch) + 2))

    def objective(v, t):
        fit = xp.sum(w * residual_and_loss(xp, v, y)[1], axis=-1)
        return (fit + xp.sum(l2 * t * t, axis=(-2, -1)) / 2)[..., None, None]

    value, last, done, steps = objective(v, t), None, None, 0
    decrement = value
    for count in range(MOST_STEPS if xp.adaptive else GRAPH_STEPS):
        miss, _ = residual_and_loss(xp, v, y)
        g = _t(a) @ (w[..., None] * miss) + l2 * t
        # An inexact step suffices far from the minimum.
        tolerance = 0.1 if xp.adaptive and (last is None or (last > 1e-3 * value).any()) else 1e-3
        step = -solve_hessian(xp, a, w, miss + y, l2, g, tolerance, bound)
        decrement = -xp.sum(g * step, axis=(-2, -1), keepdims=True)
        # Near a minimum the decrement falls by its square. A minimizer at infinity (separable classes without a
        # penalty) lets it fall by a constant factor only, and is none.
        if last is None:
            done, found = decrement > math.inf, decrement <= 1e-26 * value
        else:
            squared = xp.logical_or(decrement <= 0.05 * last, last <= 1e-26 * value)
            found = xp.logical_and(abs(decrement) <= 1e-10 * value, squared)
        near = decrement <= 1e-3 * value
        moved = a @ step
        trials = objective(v[None] + lengths * moved[None], t[None] + lengths * step[None])
        best = xp.min(trials, axis=0)
        length = xp.take(lengths.reshape(-1), xp.argmin(trials, axis=0))
        length = xp.where(best < value, length, xp.zeros_like(length))
        length = xp.where(xp.logical_and(near, trials[0] <= value * (1 + 1e-12)), xp.ones_like(length), length)
        length = xp.where(done, xp.zeros_like(length), length)  # the step after the last
        t, v = t + xp.where(done, 0 * step, length * step), v + xp.where(done, 0 * moved, length * moved)
        value = xp.where(done, value, objective(v, t))
        last, done, steps = decrement, xp.logical_or(done, found), count + 1
        if xp.adaptive and xp.logical_or(done, decrement != decrement).all():
            break
    return Fitted(xp.where(done, t, t * math.nan), steps, (decrement / value)[..., 0, 0])
