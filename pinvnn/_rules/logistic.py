"""Derivative rules of multinomial logistic regression, at every order, by the implicit function theorem.

Notation as in ``_factor/newton``: A the rows (m x N), T the minimizer (N x c), P = softmax(A T), D = diag(w),
S(X) = P o X - P o rowsum(P o X), and H U = A^T D S(A U) + L o U. At the minimum g = A^T D (P - Y) + L o T is 0, so that

    dT = -H^-1 (dA^T D (P - Y) + A^T dD (P - Y) + A^T D S(dA T) + dL o T),

and with Z = H^-1 T_bar

    A_bar = -D ((P - Y) Z^T + S(A Z) T^T),   w_bar_i = -<(P - Y)_i, (A Z)_i>,   L_bar = -Z o T.

What these read is attached in its turn: the softmax (dP = S(dV), its own rule, since MLX's float64 exp is right to 1e-7
only), and Z = H^-1 B, whose rule needs it once more, with U = H^-1 Z_bar, Q = A U, V = A Z:

    B_bar = U,   A_bar = -D (S(V) U^T + S(Q) Z^T),   w_bar_i = -<Q_i, S(V)_i>,   L_bar = -U o Z,
    P_bar = -D (Q o V - Q rowsum(P o V) - V rowsum(P o Q)).

The leave-one-out step needs H^-1 as a matrix, G: dG = -G dH G, where H is built from A, w, P and L by plain products.
Everything is float64 on the CPU.
"""

import mlx.core as mx

from .._factor import newton
from .._mlx.attach import attach
from .._mlx.eager import visible
from .._mlx.place import astype, on_cpu


def through_numpy(fn, *args):
    """``fn(xp, *args)`` by NumPy where values may be looked at, else in MLX's graph."""
    if not visible(*args):  # `attach` stops the value: see there why what it is computed from is not stopped
        return fn(newton.Graph(), *args)
    xp = newton.NumPy()
    with xp.errstate(all="ignore"):  # NaN and Inf are arguments like others; what comes of them is checked later
        return fn(xp, *(xp.asarray(x) for x in args))


def _value(fn, *args):
    """The same for a ``fn`` that returns one array, as a float64 array of MLX."""
    return _constant(through_numpy(fn, *args))


def _constant(value):
    return value if isinstance(value, mx.array) else mx.array(value, dtype=mx.float64)


def _row_sums(x):
    return mx.sum(x, axis=-1, keepdims=True)


def _times_softmax(p, x):
    """S(x)."""
    px = p * x
    return px - p * _row_sums(px)


def _cross(x, y):
    """Sum over the classes of ``x o y``, for each row."""
    return mx.sum(x * y, axis=-1)


# --- softmax ----------------------------------------------------------------------------------------------------------


def softmax(v):
    """Softmax of float64 ``v`` (..., c) over its last axis, right to rounding at every order."""
    with on_cpu():
        e = newton.Graph.exp(v - mx.max(v, axis=-1, keepdims=True))
        return _softmax(v, e / _row_sums(e))


def _softmax_vjp(p, bar, v):
    with on_cpu():
        return (_times_softmax(p, bar),)


def _softmax_jvp(p, tangents, v):
    with on_cpu():
        return _times_softmax(p, tangents[0])


_softmax = attach(_softmax_vjp, _softmax_jvp, 1, 1)


# --- H^-1 b -----------------------------------------------------------------------------------------------------------


def hessian_solve(a, w, p, l2, b, near=None, look=True):
    """``H^-1 b``, ``(..., N, c)``, where H's null space, the common shifts of free features, is left out.

    Args:
        a: ``(..., m, N)``.
        w: ``(..., m)``.
        p: Probabilities ``(..., m, c)``.
        l2: ``(..., N, 1 or c)``, or compact: see ``newton.penalty_of_all``.
        b: ``(..., N, c)``.
        near: The inverse of a Hessian near H, as of :func:`refits`, or None.
        look: Whether values may be evaluated. A jvp rule must not: what it is given is no tracer any more, so that an
            evaluation would cut it off from an outer transformation, whose derivative would be 0.
    """
    with on_cpu():
        solve = newton.solve_hessian
        args = (a, w, p, l2, b) if near is None else (a, w, p, l2, b, near)
        return _hessian_solve(a, w, p, l2, b, near, _value(solve, *args) if look else solve(newton.Graph(), *args))


def _solve_vjp(z, bar, a, w, p, l2, b, near):
    u = hessian_solve(a, w, p, l2, bar, near)
    with on_cpu():
        q, v, weight = a @ u, a @ z, w[..., None]
        sv, sq = _times_softmax(p, v), _times_softmax(p, q)
        a_bar = -((weight * sv) @ u.mT + (weight * sq) @ z.mT)
        p_bar = -weight * (q * v - q * _row_sums(p * v) - v * _row_sums(p * q))
        return a_bar, -_cross(q, sv), p_bar, _like_penalty(-u * z, l2), u


def _solve_jvp(z, tangents, a, w, p, l2, b, near):
    # H dz = db - dA^T D S(A z) - A^T dD S(A z) - A^T D (S(dA z) + dS(A z)) - dL o z
    da, dw, dp, dl, db = tangents[:5]
    with on_cpu():
        v, weight = a @ z, w[..., None]
        sv, rows, parts = _times_softmax(p, v), [], [] if db is None else [db]
        if da is not None:
            parts.append(-(da.mT @ (weight * sv)))
            rows.append(weight * _times_softmax(p, da @ z))
        if dw is not None:
            rows.append(dw[..., None] * sv)
        if dp is not None:
            rows.append(weight * (dp * v - dp * _row_sums(p * v) - p * _row_sums(dp * v)))
        parts += [-(a.mT @ row) for row in rows]
        parts += [] if dl is None else [-_of_all(dl, z) * z]
        return hessian_solve(a, w, p, l2, sum(parts[1:], parts[0]), near, look=False)


def _of_all(l2, t):
    """``l2`` with a row for each row of ``t``."""
    return newton.penalty_of_all(mx, l2, t.shape[-2])


def _like_penalty(x, l2):
    """The adjoint of :func:`_of_all`; summed over the classes, too, where one penalty serves all."""
    x = _row_sums(x) if l2.shape[-1] == 1 and x.shape[-1] != 1 else x
    if l2.shape[-2] == x.shape[-2]:
        return x
    n = newton.features_of(x.mT, l2)
    return mx.concatenate([mx.sum(x[..., :n, :], axis=-2, keepdims=True), x[..., n:, :]], axis=-2)


_hessian_solve = attach(_solve_vjp, _solve_jvp, 2, 1, 2, 2, 2, 2, 2)


# --- The minimizer ----------------------------------------------------------------------------------------------------


def minimizer(a, y, w, l2, accuracy=newton.FINE):
    """The minimizer T ``(..., N, c)``, differentiable in ``a``, ``w`` and ``l2``; NaN where Newton's method fails.

    Args:
        a: Rows ``(..., m, N)``.
        y: One-hot labels ``(..., m, c)``; no gradient.
        w: Weights ``(..., m)``.
        l2: Penalty ``(..., N, 1 or c)``, or compact: see ``newton.penalty_of_all``.
        accuracy: ``newton.FINE`` or ``newton.COARSE``.
    """
    with on_cpu():
        return attach_minimizer(a, y, w, l2, _constant(fitted(a, y, w, l2, accuracy).t))


def fitted(a, y, w, l2, accuracy):
    """What ``newton.minimize`` returns, in NumPy's arrays where values may be looked at."""
    return through_numpy(lambda *args: newton.minimize(*args, accuracy=accuracy), a, y, w, l2)


def attach_minimizer(a, y, w, l2, value, near=None):
    """``value`` as the minimizer of the problem, with its derivatives; ``near`` as of :func:`hessian_solve`."""
    with on_cpu():
        return _minimizer(a, w, l2, y, near, value)


def _minimizer_vjp(t, bar, a, w, l2, y, near):
    with on_cpu():
        p = softmax(a @ t)
    z = hessian_solve(a, w, p, l2, bar, near)
    with on_cpu():
        az, miss, weight = a @ z, p - y, w[..., None]
        a_bar = -((weight * miss) @ z.mT + (weight * _times_softmax(p, az)) @ t.mT)
        return a_bar, -_cross(miss, az), _like_penalty(-z * t, l2)


def _minimizer_jvp(t, tangents, a, w, l2, y, near):
    da, dw, dl = tangents[:3]
    with on_cpu():
        p = softmax(a @ t)
        miss, weight, parts = p - y, w[..., None], []
        if da is not None:
            parts += [-(da.mT @ (weight * miss)), -(a.mT @ (weight * _times_softmax(p, da @ t)))]
        if dw is not None:
            parts.append(-(a.mT @ (dw[..., None] * miss)))
        if dl is not None:
            parts.append(-_of_all(dl, t) * t)
        return hessian_solve(a, w, p, l2, sum(parts[1:], parts[0]), near, look=False)


_minimizer = attach(_minimizer_vjp, _minimizer_jvp, 2, 1, 2, 2, 2, 2)


# --- The objective at its minimum -------------------------------------------------------------------------------------


def objective(a, y, w, l2, t):
    """F ``(...)``, differentiable in all but ``y``."""
    with on_cpu():
        fit = mx.sum(w * cross_entropy(a @ t, y), axis=-1)
        return fit + mx.sum(_of_all(l2, t) * t * t, axis=(-2, -1)) / 2


def cross_entropy(v, y):
    """``logsumexp(v) - <y, v>`` of float64 logits ``(..., c)``, right to rounding at every order."""
    with on_cpu():
        return _cross_entropy(v, y, newton.residual_and_loss(newton.Graph(), v, y)[1])


def _cross_entropy_vjp(_, bar, v, y):
    with on_cpu():
        return (bar[..., None] * (softmax(v) - y),)


def _cross_entropy_jvp(_, tangents, v, y):
    with on_cpu():
        return _cross(softmax(v) - y, tangents[0])


_cross_entropy = attach(_cross_entropy_vjp, _cross_entropy_jvp, 1, 1, 0)


def mean_cross_entropy(v, y, w):
    """Mean :func:`cross_entropy` ``(...)`` in float64, weighted by ``w`` (..., m) or None.

    Logits ``v`` and one-hot labels ``y`` (..., m, c) may be of any dtype. A row of weight 0 takes no part, even if its
    logits are NaN.
    """
    with on_cpu():
        v, y = astype(v, mx.float64), astype(y, mx.float64)
        if w is None:
            return mx.mean(cross_entropy(v, y), axis=-1)
        w = astype(w, mx.float64)
        v = mx.where((w != 0)[..., None], v, mx.zeros_like(v))
        return mx.sum(w * cross_entropy(v, y), axis=-1) / mx.sum(w, axis=-1)


# --- Leave-one-out ----------------------------------------------------------------------------------------------------


def inverse(k):
    """Inverse of a positive definite matrix ``(..., j, j)``: the first ``dG = -G dK G``."""
    with on_cpu():
        return _inverse(k, _value(lambda xp, k: xp.solve(k, xp.eye(k.shape[-1], dtype=xp.float64) + 0 * k), k))


def _inverse_vjp(g, bar, k):
    with on_cpu():
        return (-(g @ bar @ g),)


def _inverse_jvp(g, tangents, k):
    with on_cpu():
        return -(g @ tangents[0] @ g)


_inverse = attach(_inverse_vjp, _inverse_jvp, 2, 2)


def without_own_row(m, s):
    """``(M^-1 - S)^-1`` of positive semidefinite ``m`` and ``s`` (..., c, c): M if its inverse did not hold S.

    dN = (I + N S) dM (I + S N) + N dS N.
    """

    def value(xp, m, s):
        c = m.shape[-1]
        eye = xp.eye(c, dtype=xp.float64)
        size = xp.max(xp.abs(xp.diagonal(m, 0, -2, -1)), axis=-1)[..., None, None]
        root = xp.cholesky(m + eye * (1e-15 * size + 1e-290))
        inner = eye - root.swapaxes(-1, -2) @ s @ root
        return root @ xp.solve(inner, root.swapaxes(-1, -2))

    with on_cpu():
        return _without_own_row(m, s, _value(value, m, s))


def _without_vjp(n, bar, m, s):
    with on_cpu():
        turned = mx.eye(m.shape[-1], dtype=mx.float64) + s @ n
        return turned @ bar @ turned.mT, n @ bar @ n


def _without_jvp(n, tangents, m, s):
    dm, ds = tangents[:2]
    with on_cpu():
        turned = mx.eye(m.shape[-1], dtype=mx.float64) + s @ n
        parts = ([] if dm is None else [turned.mT @ dm @ turned]) + ([] if ds is None else [n @ ds @ n])
        return sum(parts[1:], parts[0])


_without_own_row = attach(_without_vjp, _without_jvp, 2, 2, 2)


def inverse_hessian(a, w, l2, t):
    """``H^-1`` at ``t`` as a matrix ``(..., c N, c N)``, classes first."""
    with on_cpu():
        p = softmax(a @ t)
        l2 = newton.penalty_of_all(mx, l2, a.shape[-1])
        return inverse(newton.curvature(newton.Graph(), a, w, p, l2))


def one_step_without(a, y, w, t, g):
    r"""Logits ``(..., m, c)`` of each row after one Newton step from ``t`` without it; ``g`` is H^-1 there.

    With G = H^-1, M_i = (a_i x I) G (a_i x I)^T (c x c) and S_i = w_i (diag(p_i) - p_i p_i^T),

        v_i + (M_i^-1 - S_i)^-1 w_i (p_i - y_i).

    References:
        K. R. Rad and A. Maleki, A scalable estimate of the out-of-sample prediction error via approximate leave-one-out
        cross-validation, J. R. Stat. Soc. B 82 (2020), Eq. 7, arXiv 1801.10243.
    """
    with on_cpu():
        v = a @ t
        p = softmax(v)
        (rows, n), c, batch = a.shape[-2:], p.shape[-1], p.shape[:-2]
        g = mx.swapaxes(g.reshape(*batch, c, n, c, n), -3, -2).reshape(*batch, c * c, n, n)
        left = a[..., None, :, :]
        m = mx.sum((left @ g) * left, axis=-1).mT.reshape(*batch, rows, c, c)
        s = w[..., None, None] * (p[..., None] * (mx.eye(c, dtype=mx.float64) - p[..., None, :]))
        step = without_own_row((m + m.mT) / 2, s) @ (w[..., None] * (p - y))[..., None]
        return v + step[..., 0]


def refits(a, y, w, l2, t, g):
    """Minimizers ``(..., K, N, c)`` for K vectors of weights, and which of them were found ``(..., K)``.

    Args:
        a: Rows ``(..., m, N)``.
        y: One-hot labels ``(..., m, c)``.
        w: Weights ``(..., K, m)``.
        l2: As of :func:`minimizer`.
        t: A minimizer near them, ``(..., N, c)``; what was not found is this.
        g: The inverse ``(..., c N, c N)`` of the Hessian there.
    """
    with on_cpu():
        a, y, g, t = a[..., None, :, :], y[..., None, :, :], g[..., None, :, :], t[..., None, :, :]
        l2 = newton.penalty_of_all(mx, l2, a.shape[-1])
        t = mx.broadcast_to(t, (*w.shape[:-1], *t.shape[-2:]))
        value = mx.stop_gradient(_value(newton.refit, a, y, w, l2, t, g))
        found = mx.isfinite(mx.sum(value, axis=(-2, -1)))
        return attach_minimizer(a, y, w, l2, mx.where(found[..., None, None], value, t), g), found


# --- The smallest objective: its derivatives need no H^-1 -------------------------------------------------------------
# At the minimum dF/dT = 0, so that T may be held fixed: A_bar = D (P - Y) T^T, w_bar = the cross-entropies,
# L_bar = T o T / 2, times F_bar. The T that these read is attached, which makes them right at second order.


def smallest_objective(a, y, w, l2, accuracy=newton.FINE):
    """F at its minimum ``(...)``, with the derivatives of the envelope theorem. Arguments as in :func:`minimizer`."""
    with on_cpu():
        t = mx.stop_gradient(minimizer(a, y, w, l2, accuracy))
        return _smallest_objective(a, w, l2, y, t, objective(a, y, w, l2, t))


def _smallest_vjp(_, bar, a, w, l2, y, value):
    t = attach_minimizer(a, y, w, l2, value)
    with on_cpu():
        v, bar = a @ t, bar[..., None, None]
        a_bar = bar * (w[..., None] * (softmax(v) - y)) @ t.mT
        return a_bar, bar[..., 0] * cross_entropy(v, y), _like_penalty(bar * t * t / 2, l2)


def _smallest_jvp(_, tangents, a, w, l2, y, value):
    da, dw, dl = tangents[:3]
    t = attach_minimizer(a, y, w, l2, value)
    with on_cpu():
        v, parts = a @ t, []
        if da is not None:
            parts.append(mx.sum(w[..., None] * (softmax(v) - y) * (da @ t), axis=(-2, -1)))
        if dw is not None:
            parts.append(mx.sum(dw * cross_entropy(v, y), axis=-1))
        if dl is not None:
            parts.append(mx.sum(_of_all(dl, t) * t * t, axis=(-2, -1)) / 2)
        return sum(parts[1:], parts[0])


_smallest_objective = attach(_smallest_vjp, _smallest_jvp, 2, 1, 2, 2, 2, 0)
