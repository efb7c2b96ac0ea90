"""Values read off a factor: constants, which ``attach`` gives their derivatives."""

import mlx.core as mx

from .._mlx.blocks import cross, times
from .._mlx.complex import h, stack
from .._mlx.place import large, on_cpu
from .full_rank import Certified
from .right_factor import Factor


def reciprocal(f: Factor, power):
    """``s**-power`` for the kept singular values of ``r A``, 0 for the others."""
    on = f.kept > 0
    s = mx.where(on, f.s, mx.ones_like(f.s))
    return mx.where(on, 1 / (s * s if power == 2 else s), mx.zeros_like(f.s))


def right_rows(f: Factor, power):
    """``V diag(s**-power)`` over the kept singular values."""
    return f.v if f.full else f.v * reciprocal(f, power)[..., None, :]


def inverse_value(f: Factor, x):
    """``B x``, the truncated inverse of the Gram matrix of ``r A`` times float64 ``x`` (..., n, k)."""
    return right_rows(f, 2) @ (f.v.mT @ x)


def left_vectors(a, f: Factor):
    """Left singular vectors ``(..., m, n)`` of the real ``a`` that ``f`` factors, 0 where the singular value is."""
    with on_cpu():
        unit = mx.where(f.s == 0, mx.zeros_like(f.s), 1 / mx.where(f.s == 0, mx.ones_like(f.s), f.s))
        return times(a, f.v * unit[..., None, :] * f.r)


def pinv_value(a, f: Factor, left=None):
    """The pseudo-inverse ``(..., n, m)`` of the tall ``a`` that ``f`` factors, by its ``left`` vectors if given."""
    if left is not None:
        with on_cpu():
            right = (right_rows(f, 1) * f.r).astype(left.dtype)
        with large(left.dtype):
            return right @ left.mT
    with on_cpu():
        columns = f.v.shape[-1] // (2 if a.dtype == mx.complex64 else 1)
        inverse = right_rows(f, 2) @ f.v[..., :columns, :].mT
        return h(times(a, inverse * f.r * f.r))


def known_pinv_value(a, known: Certified):
    """The pseudo-inverse ``(..., n, m)`` of the tall ``a``, of full rank."""
    with on_cpu():
        if known.pair is None:
            return pinv_value(a, known.factor)
        q, x = known.pair
        return x @ q.mT


def solve_value(a, b, w, f: Factor, left=None):
    """``pinv(diag(sqrt(w)) a) diag(sqrt(w)) b``, stacked, for the matrix that ``f`` factors."""
    with on_cpu():
        if left is None:
            return inverse_value(f, cross(a, b, w)) * f.r * f.r
        b = b if w is None else mx.sqrt(w.astype(mx.float64))[..., None] * b
        return right_rows(f, 1) @ (left.mT @ b) * f.r


def known_solve_value(a, b, w, known: Certified):
    """The same at full rank."""
    with on_cpu():
        if known.pair is not None:
            return refined(known.pair, a, b, w)
        f, rhs = known.factor, known.rhs
        return inverse_value(f, cross(a, b, w) if rhs is None else rhs) * f.r * f.r


def refined(pair, a, b, w, penalty=None):
    """``X Q^T D b`` (see :class:`Certified`) after a step of refinement; ``penalty(y)`` is R L y for ridge."""
    q, x = pair

    def solve(rest):
        return x @ (q.mT @ (rest if w is None else w[..., None] * rest))

    y = solve(b)
    better = y + solve(b - a @ y)
    return better if penalty is None else better - penalty(y)


def square_value(a, b, inverse):
    """``a^-1 b`` by the float64 ``inverse``, in float64; if ``a`` is, with a step of refinement."""
    with on_cpu():
        x = inverse @ b.astype(mx.float64)
        return x + inverse @ (b - a @ x) if a.dtype == mx.float64 else x


def adjoint_value(a, x, f: Factor, left=None):
    """``pinv(a)^H x`` (..., m, k) for the tall ``a`` that ``f`` factors."""
    with on_cpu():
        if left is not None:
            return (left @ (right_rows(f, 1).mT @ x) * f.r).astype(a.dtype)
        return times(a, inverse_value(f, stack(x)) * f.r * f.r)


def known_adjoint_value(a, x, known: Certified):
    """The same at full rank."""
    with on_cpu():
        if known.pair is None:
            return adjoint_value(a, x, known.factor)
        q, inner = known.pair
        y = q @ (inner.mT @ x)
        return y + q @ (inner.mT @ (x - a.mT @ y))
