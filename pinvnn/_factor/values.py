"""Pseudo-inverses and solutions from a right factor, as constants: ``_rules`` gives them their derivatives."""

import mlx.core as mx

from .._mlx.blocks import cross, times
from .._mlx.centred import Matrix, in_float64
from .._mlx.complex import h, stack
from .._mlx.eager import evaluated_times
from .._mlx.matmul import matmul
from .._mlx.place import large, on_cpu
from .full_rank import Certified
from .right_factor import RightFactor


def reciprocal(f: RightFactor, power: int) -> mx.array:
    """``s**-power`` of the kept singular values of r A, 0 for the dropped ones, ``(..., n)``; ``power`` is 1 or 2."""
    on = f.kept > 0
    s = mx.where(on, f.s, mx.ones_like(f.s))
    return mx.where(on, 1 / (s * s if power == 2 else s), mx.zeros_like(f.s))


def scaled_vectors(f: RightFactor, power: int) -> mx.array:
    """``V diag(s**-power)`` over the kept singular values, ``(..., n, n)``; V itself if ``f`` is full."""
    return f.v if f.full else f.v * reciprocal(f, power)[..., None, :]


def inverse_value(f: RightFactor, x: mx.array) -> mx.array:
    """``B x`` for float64 ``x`` (..., n, k), with B the truncated inverse of the Gram matrix of r A."""
    return scaled_vectors(f, 2) @ (f.v.mT @ x)


def left_vectors(a: mx.array, f: RightFactor) -> mx.array:
    """Left singular vectors ``(..., m, n)`` of real ``a`` with the factor ``f``; 0 where the singular value is 0."""
    with on_cpu():
        unit = mx.where(f.s == 0, mx.zeros_like(f.s), 1 / mx.where(f.s == 0, mx.ones_like(f.s), f.s))
        return times(a, f.v * unit[..., None, :] * f.r)


def pinv_value(a: mx.array, f: RightFactor, left: mx.array | None = None, product=times) -> mx.array:
    """The pseudo-inverse ``(..., n, m)`` of tall ``a`` from its factor ``f`` and, if given, left singular vectors."""
    if left is not None:
        with on_cpu():
            right = (scaled_vectors(f, 1) * f.r).astype(left.dtype)
        with large(left.dtype):
            return matmul(right, left.mT)
    with on_cpu():
        columns = f.v.shape[-1] // (2 if a.dtype == mx.complex64 else 1)
        inverse = scaled_vectors(f, 2) @ f.v[..., :columns, :].mT
        return h(product(a, inverse * f.r * f.r))


def full_rank_pinv_value(a: mx.array, known: Certified, visible: bool) -> mx.array:
    """:func:`pinv_value` at full rank; ``visible`` says that ``a`` may be evaluated."""
    with on_cpu():
        if known.q is None or known.z is None:
            return pinv_value(a, known.right, product=evaluated_times if visible else times)
        return known.z @ known.q.mT


def solve_value(a: Matrix, b: Matrix, w, f: RightFactor, left: mx.array | None = None) -> mx.array:
    """The solution ``pinv(diag(sqrt(w)) a) diag(sqrt(w)) b``, stacked, with the factor ``f`` of the weighted matrix."""
    with on_cpu():
        if left is None:
            return inverse_value(f, cross(a, b, w)) * f.r * f.r
        b = in_float64(b) if w is None else mx.sqrt(w.astype(mx.float64))[..., None] * in_float64(b)
        return scaled_vectors(f, 1) @ (left.mT @ b) * f.r


def full_rank_solve_value(a: Matrix, b: Matrix, w, known: Certified) -> mx.array:
    """:func:`solve_value` at full rank."""
    with on_cpu():
        if known.q is not None:
            return refined(known.q, known.z, a, b, w)
        f, rhs = known.right, known.rhs
        return inverse_value(f, cross(a, b, w) if rhs is None else rhs) * f.r * f.r


def refined(q, z, a, b, w, penalty=None) -> mx.array:
    """``Z Q^T D b`` (see :class:`Certified`) with a step of iterative refinement; for ridge ``penalty(x)`` is R L x."""

    def solve(rest):
        return z @ (q.mT @ (rest if w is None else w[..., None] * rest))

    x = solve(b)
    better = x + solve(b - a @ x)
    return better if penalty is None else better - penalty(x)


def square_value(a: mx.array, b: mx.array, inverse: mx.array) -> mx.array:
    """``a^-1 b`` in float64 by the float64 ``inverse``; with a step of iterative refinement if ``a`` is float64."""
    with on_cpu():
        x = inverse @ b.astype(mx.float64)
        return x + inverse @ (b - a @ x) if a.dtype == mx.float64 else x


def adjoint_value(a: mx.array, x: mx.array, f: RightFactor, left: mx.array | None = None) -> mx.array:
    """``pinv(a)^H x`` (..., m, k) of tall ``a`` from its factor: the solution of the wide problem a^H y = x."""
    with on_cpu():
        if left is not None:
            return (left @ (scaled_vectors(f, 1).mT @ x) * f.r).astype(a.dtype)
        return times(a, inverse_value(f, stack(x)) * f.r * f.r)


def full_rank_adjoint_value(a: mx.array, x: mx.array, known: Certified) -> mx.array:
    """:func:`adjoint_value` at full rank."""
    with on_cpu():
        q, z = known.q, known.z
        if q is None or z is None:
            return adjoint_value(a, x, known.right)
        y = q @ (z.mT @ x)
        return y + q @ (z.mT @ (x - a.mT @ y))
