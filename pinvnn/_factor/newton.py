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

from .lapack import cholesky, eigh, thin_svd, tri_inv
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

    def eigenpairs(self, k):
        """Eigenvalues and eigenvectors of symmetric ``k``; NaN where it is not finite."""
        finite = self.np.isfinite(k).all(axis=(-2, -1), keepdims=True)
        values, vectors = self.np.linalg.eigh(self.np.where(finite, k, 0.0))
        return self.np.where(finite[..., 0], values, math.nan), vectors

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
    def eigenpairs(k):
        """Eigenvalues and eigenvectors of symmetric ``k``; NaN where it is not finite."""
        finite = mx.isfinite(mx.sum(mx.abs(k), axis=(-2, -1), keepdims=True))
        # The product with 1, since mx.compile fails if stopped copies of one element-wise result are in use.
        values, vectors = eigh(mx.where(finite, k, mx.zeros_like(k)) @ mx.eye(k.shape[-1], dtype=mx.float64))
        return mx.where(finite[..., 0], values, mx.array(math.nan, mx.float64)), vectors

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


# --- The penalty, and a basis of the features -------------------------------------------------------------------------
# Where all features have the same penalty, l2 has one row for them, and another one for the intercept if there is one:
# "compact". The problem then has the same form in any orthonormal basis Q of the features, with rows A Q.
#
# With fewer rows m than features the minimizer is a combination of rows: a basis of the row space leaves m features,
# and in the null space of A the Hessian is the penalty alone. Where the Hessian is too large to factor, eigenvectors
# of A^T D A make its mean over the rows diagonal, which preconditions conjugate gradients.


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
    return "eigenvectors" if l2.shape[-1] == 1 and a.shape[-1] * c > DENSE else None


def in_basis(xp, a, w, n, kind):
    """A Q with the intercept's column, and Q ``(..., n, m or n)``; NaN where A is not finite."""
    x = a[..., :n]
    finite = xp.isfinite(xp.sum(xp.abs(x), axis=(-2, -1), keepdims=True))
    clean = xp.where(finite, x, xp.zeros_like(x))
    if kind == "rows":
        q, r = xp.left_factor(_t(clean))
        rows = _t(r)
    else:
        gram = _t(clean) @ (xp.where(xp.isfinite(w), w, xp.zeros_like(w))[..., None] * clean)
        q = xp.eigenpairs(gram)[1]
        rows = clean @ q
    rows = xp.where(finite, rows, rows * math.nan)
    return xp.concatenate([rows, a[..., n:]], axis=-1), q


def out_of_basis(xp, q, t):
    """``t`` in the basis of the features."""
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


class Mean:
    """The Hessian if all rows had the mean S of theirs, S x A^T D A + L, for A whose columns are orthogonal.

    Diagonal in the eigenvectors of S. It is nearer to the Hessian than Boehning's bound, in which S is 1/2, the farther
    the probabilities are from equal ones: conjugate gradients take a fifth of the steps.
    """

    def __init__(self, xp, a, w, p, l2):
        total = xp.sum(w, axis=-1)[..., None, None]
        total = xp.where(total > 0, total, xp.ones_like(total))
        c = p.shape[-1]
        mean = xp.sum(w[..., None] * p, axis=-2)[..., None] * xp.eye(c, dtype=xp.float64) - _t(p) @ (w[..., None] * p)
        values, self.classes = xp.eigenpairs(mean / total)
        values = xp.where(values > 1e-12 * values[..., -1:], values, xp.where(values != values, values, 0 * values))
        norms = xp.sum(w[..., None] * a * a, axis=-2)[..., None]
        sizes = norms * values[..., None, :] + l2
        self.inverse = xp.where(sizes == 0, 0 * sizes, 1 / xp.where(sizes == 0, xp.ones_like(sizes), sizes))

    def __call__(self, b):
        return ((b @ self.classes) * self.inverse) @ _t(self.classes)


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


def solve_hessian(xp, a, w, p, l2, b, tolerance=1e-10):
    """``H^-1 b`` for ``b`` (..., N, c), by a factorization of H or, where that is too large, by conjugate gradients.

    NaN where conjugate gradients do not converge.
    """
    c = b.shape[-1]
    kind = basis_kind(a, l2, c)
    if kind is None:
        l2 = penalty_of_all(xp, l2, b.shape[-2])
        large = b.shape[-2] * c > DENSE
        preconditioner = _preconditioner(xp, a, w, l2, False) if large else None
        return _solve_in_basis(xp, a, w, p, l2, b, tolerance, preconditioner)
    n = features_of(a, l2)
    rows, q = in_basis(xp, a, w, n, kind)
    inside = xp.concatenate([_t(q) @ b[..., :n, :], b[..., n:, :]], axis=-2)
    of_all = penalty_of_all(xp, l2, rows.shape[-1])
    large = rows.shape[-1] * c > DENSE
    preconditioner = _preconditioner(xp, rows, w, of_all, True) if large else None
    x = out_of_basis(xp, q, _solve_in_basis(xp, rows, w, p, of_all, inside, tolerance, preconditioner))
    if kind == "rows":  # outside of the row space
        rest = b[..., :n, :] - q @ inside[..., : q.shape[-1], :]
        l2 = l2[..., :1, :] + 0 * rest
        rest = xp.where(l2 > 0, rest / xp.where(l2 > 0, l2, xp.ones_like(l2)), l2 * math.nan)
        x = xp.concatenate([x[..., :n, :] + rest, x[..., n:, :]], axis=-2)
    return x


def _solve_in_basis(xp, a, w, p, l2, b, tolerance, preconditioner):
    b = without_common_shift(xp, b, free_features(xp, l2))
    if preconditioner is None:
        return _dense_solve(xp, a, w, p, l2, b)
    return _cg_solve(xp, a, w, p, l2, b, tolerance, preconditioner(p))


def _preconditioner(xp, a, w, l2, orthogonal):
    """Of conjugate gradients, as a function of the probabilities; ``orthogonal`` says that A's columns are."""
    if orthogonal and l2.shape[-1] == 1:
        return lambda p: Mean(xp, a, w, p, l2)
    bound = Bound(xp, a, w, l2)
    return lambda p: bound


# --- The minimizer ----------------------------------------------------------------------------------------------------


def minimize(xp, a, y, w, l2) -> Fitted:
    """The minimizer of F.

    Args:
        xp: :class:`NumPy` or :class:`Graph`: whose arrays these are.
        a: Rows, ``(..., m, N)``, float64 like all others.
        y: One-hot labels, ``(..., m, c)``.
        w: Weights, ``(..., m)``.
        l2: Penalty ``(..., N, 1 or c)``, or compact: see :func:`penalty_of_all`.
    """
    kind = basis_kind(a, l2, y.shape[-1])
    if kind is None:
        return minimize_in_basis(xp, a, y, w, penalty_of_all(xp, l2, a.shape[-1]))
    rows, q = in_basis(xp, a, w, features_of(a, l2), kind)
    found = minimize_in_basis(xp, rows, y, w, penalty_of_all(xp, l2, rows.shape[-1]), orthogonal=True)
    return found._replace(t=out_of_basis(xp, q, found.t))


def minimize_in_basis(xp, a, y, w, l2, orthogonal=False, start=None, accuracy=None) -> Fitted:
    """:func:`minimize` with a full ``l2``.

    Args:
        xp: As of :func:`minimize`.
        a: As of :func:`minimize`.
        y: As of :func:`minimize`.
        w: As of :func:`minimize`.
        l2: ``(..., N, 1 or c)``.
        orthogonal: Whether the columns of ``a`` are orthogonal under the weights, nearly at least.
        start: Where to start, ``(..., N, c)``; by default 0.
        accuracy: Relative accuracy of F at which to stop; by default that of float64.
    """
    n, c = a.shape[-1], y.shape[-1]
    batch = tuple(a.shape[:-2])
    preconditioner = _preconditioner(xp, a, w, l2, orthogonal) if n * c > DENSE else None
    t = xp.zeros((*batch, n, c), dtype=xp.float64) if start is None else start
    v = xp.zeros((*batch, a.shape[-2], c), dtype=xp.float64) if start is None else a @ start
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
        step = -_solve_in_basis(xp, a, w, miss + y, l2, g, tolerance if accuracy is None else 0.3, preconditioner)
        decrement = -xp.sum(g * step, axis=(-2, -1), keepdims=True)
        # Near a minimum the decrement falls by its square. A minimizer at infinity (separable classes without a
        # penalty) lets it fall by a constant factor only, and is none.
        if last is None:
            done, found = decrement > math.inf, decrement <= 1e-26 * value
        else:
            squared = xp.logical_or(decrement <= 0.05 * last, last <= 1e-26 * value)
            found = xp.logical_and(abs(decrement) <= 1e-10 * value, squared)
        if accuracy is not None:
            found = decrement <= accuracy * value
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
