"""Matrices of full rank: a Cholesky factor or an inverse in place of singular vectors, at a tenth of the work.

Singular vectors are needed only to tell which singular values to drop, and where a bound proves that there are none any
V with V V^T = (A^T A)^-1 serves the rules as well (``Factor.full``). The bounds come with the factor: with K = A^T A,

    s_max^2 <= |K|_F,    s_min^2 >= 1 / tr K^-1 = 1 / |V|_F^2,

and the digits that V has lost to the Gram matrix are those of sum_i K_ii (K^-1)_ii, a condition number that no scaling
of columns changes (van der Sluis 1969, doi 10.1007/BF02165096).

float64 input takes a second step: A V is orthonormal to cond(A)^2 eps, its own Gram matrix is near I, and the Cholesky
factor of that corrects V to the accuracy of a QR (CholeskyQR2; Yamamoto, Nakatsukasa, Yanagisawa and Fukaya,
Electron. Trans. Numer. Anal. 44 (2015), 306-326).
"""

from typing import NamedTuple

import mlx.core as mx

from .._mlx import dtypes
from .._mlx.blocks import crosses, in_basis
from .._mlx.eager import evaluated_crosses, visible
from .._mlx.place import CPU, on_cpu
from .lapack import cholesky, svd, tri_inv
from .rank import cutoff
from .right_factor import Factor, gram_scale, non_negative, tolerance, whole

# Largest loss to the Gram matrix, sum_i K_ii (K^-1)_ii, that is taken: what singular vectors lose, too, at condition
# 1e6 from float32 (and nobody asks for more digits of such data); what a second step makes up for in float64.
_LOSS = {mx.float32: 1e12, mx.float64: 1e11}
# What a diagonal entry of a Gram matrix must exceed: below 1e-308 its products have fewer digits, or none.
_SMALLEST = 1e-290
# Largest condition number up to which an inverse by LU is taken.
_CONDITION = 1e8


class Cholesky(NamedTuple):
    """A Cholesky factor of r^2 K, and what it says about the singular values of r A, each ``(...)``.

    Attributes:
        factor: A full :class:`Factor`.
        sound: Whether K is positive definite, to working precision and finite; elsewhere V is meaningless.
        least: At most the smallest singular value squared.
        most: At least the largest one squared.
        trace: Their sum of squares.
        loss: sum_i K_ii (K^-1)_ii; infinite where entries of K may have underflowed.
    """

    factor: Factor
    sound: mx.array
    least: mx.array
    most: mx.array
    trace: mx.array
    loss: mx.array


class Certified(NamedTuple):
    """A full factor, and what else is known then.

    Attributes:
        factor: The full :class:`Factor`.
        rhs: A^H D b, stacked, or None.
        pair: In float64 Q, ``(..., m, n)``, and X, ``(..., n, n)``, with X Q^T D = (A^T D A)^-1 A^T D; else None.
    """

    factor: Factor
    rhs: mx.array | None
    pair: tuple[mx.array, mx.array] | None


def cholesky_factor(gram, dtype) -> Cholesky:
    """Factor a float64 Gram matrix ``(..., n, n)`` of a matrix of the given ``dtype``."""
    with on_cpu():
        n, eye = gram.shape[-1], mx.eye(gram.shape[-1], dtype=mx.float64)
        diagonal = mx.diagonal(gram, axis1=-2, axis2=-1)
        normal = mx.min(diagonal, axis=-1) > _SMALLEST
        r = gram_scale(diagonal, dtype)
        diagonal = diagonal * (r * r)[..., 0]
        # LAPACK stops at the first pivot that is not positive and leaves garbage behind it, without an error from MLX:
        # it shows in the pivots or in the norms of the rows. NaN and Inf show there, too.
        gram = gram * (r * r)
        lower = cholesky(gram)
        pivots = mx.diagonal(lower, axis1=-2, axis2=-1)
        rows = mx.sum(lower * lower, axis=-1)
        # An inverse with a pivot 0 would raise.
        v = tri_inv(lower + eye * (pivots == 0)[..., None]).mT
        inverse = mx.sum(v * v, axis=-1)
        loss = mx.sum(diagonal * inverse, axis=-1)
        sound = mx.all((pivots > 0) & (mx.abs(rows - diagonal) <= 1e-8 * diagonal), axis=-1)
        sound = sound & (loss <= 1 / (n * dtypes.eps(mx.float64)))
        loss = mx.where(normal, loss, mx.array(float("inf"), mx.float64))
        most = mx.sqrt(mx.sum(gram * gram, axis=(-2, -1)))
        bounds = (sound, 1 / mx.sum(inverse, axis=-1), most, mx.sum(diagonal, axis=-1), loss)
        return Cholesky(full_factor(v, r), *map(mx.stop_gradient, bounds))


def full_factor(v, r):
    """The full :class:`Factor` of ``v`` (..., n, n) and ``r`` (..., 1, 1)."""
    none = mx.zeros((*v.shape[:-2], 0), mx.float64)
    return Factor(mx.stop_gradient(v), none, none, mx.stop_gradient(r))


def full_rank(a, rtol=None, atol=None, w=None, b=None, method="auto") -> "Certified | None":
    """A full factor of the tall ``a`` that keeps every singular value, or None where singular vectors are needed.

    Args:
        a: ``(..., m, n)`` with m >= n, not empty.
        rtol: Relative cutoff, a number or an array over the batch, or None.
        atol: Absolute cutoff, likewise.
        w: Weights ``(..., m)`` or None.
        b: Right-hand sides ``(..., m, k)`` or None.
        method: "auto" looks at the values, where it may; "cholesky" does not, and its factor is NaN for a matrix for
            which nothing is proved. Others get None.
    """
    if method not in ("auto", "cholesky") or a.shape[-2] < a.shape[-1]:
        return None
    eager = method == "auto"
    with on_cpu():
        if eager and not visible(a, b, w, rtol, atol):
            return None
        w, rtol, atol = non_negative(w), tolerance(rtol), tolerance(atol)
        exact = a.dtype == mx.float64
        gram, *rhs = (evaluated_crosses if eager else crosses)(a, [a] if b is None or exact else [a, b], w)
        found = cholesky_factor(whole(gram), a.dtype)
        f = found.factor
        atol = None if atol is None else atol * f.r[..., 0, 0]
        good = certain(found, a.shape[-2:], a.dtype, rtol, atol)
        if not eager:
            f = nan_unless(good, f)
        elif not mx.all(good).item():
            return None
        if not exact:
            return Certified(f, rhs[0] if rhs else None, None)
        f, q, x = corrected(f, a, w)
        return Certified(f, None, (q, x))


def nan_unless(good, f: Factor) -> Factor:
    """``f`` where it is ``good`` (...), NaN elsewhere."""
    return f._replace(v=mx.where(good[..., None, None], f.v, mx.array(float("nan"), mx.float64)))


def factor_of_inverse(inverse) -> Factor:
    """The full factor of the square matrix that has this float64 ``inverse``."""
    with on_cpu():
        return full_factor(inverse, mx.ones((*inverse.shape[:-2], 1, 1), mx.float64))


def with_vectors(f: Factor) -> Factor:
    """The factor by singular vectors from the full ``f``, finite: V S^-1 Z^T is the decomposition of its V."""
    with on_cpu():
        u, s, _ = svd(f.v)
        s = 1 / s[..., ::-1]
        return Factor(*map(mx.stop_gradient, (u[..., ::-1], s, mx.ones_like(s), f.r)))


def corrected(f: Factor, a, w, l2=None):
    """The full factor ``f`` of a float64 problem with the digits that its Gram matrix has lost.

    Args:
        f: Of A^T D A + L.
        a: ``(..., m, n)``, float64.
        w: Weights ``(..., m)`` or None.
        l2: The diagonal of L, ``(..., n)``, or None.

    Returns:
        The factor, and the two of A^+ (see :class:`Certified`), which need not be used.
    """
    with on_cpu():
        q, rest = in_basis(a, f.v * f.r, w)
        if l2 is not None:
            rest = rest + f.v.mT @ ((l2[..., None] * f.r * f.r) * f.v)
        turn = tri_inv(cholesky(rest)).mT
        v = f.v @ turn
        return f._replace(v=mx.stop_gradient(v)), q, v @ turn.mT * f.r


def inverse_by_lu(a) -> mx.array | None:
    """The inverse, in float64, of real square ``a`` (..., n, n) that :func:`full_rank` has certified, else None.

    LU with partial pivoting loses no digit to the square of the condition number. Looks at values.
    """
    # LAPACK must not meet a singular matrix: an exception inside an evaluation leaves MLX 0.32 with a task that is
    # never done, and after some of them it waits forever.
    if a.shape[-2] != a.shape[-1] or a.dtype == mx.complex64:
        return None
    with on_cpu():
        wide = mx.stop_gradient(a).astype(mx.float64)
        inverse = mx.linalg.inv(wide, stream=CPU)
        if a.dtype == mx.float64:  # a step of Newton's iteration: LU leaves a few digits less than singular vectors
            inverse = inverse + inverse @ (mx.eye(a.shape[-1], dtype=mx.float64) - wide @ inverse)
        squares = [mx.sum(x * x, axis=(-2, -1)) for x in (wide, inverse)]
        good = squares[0] * squares[1] < _CONDITION**2
        return mx.stop_gradient(inverse) if mx.all(good).item() else None


def certain(found: Cholesky, shape, entries, rtol=None, atol=None):
    """Whether the bounds show that no singular value is at or below the cutoff, and V has the digits, ``(...)``."""
    limit = cutoff(mx.sqrt(found.most), shape, entries, rtol, atol)
    above = found.least > 1.001 * limit * limit  # by more than the rounding of either
    return precise(found, entries) & above


def precise(found: Cholesky, entries):
    """Whether V has the digits, whatever the cutoff, ``(...)``."""
    return found.sound & (found.loss <= _LOSS[dtypes.real(entries)])
