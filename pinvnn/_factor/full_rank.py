"""Matrices of full rank: a Cholesky factor or an inverse in place of singular vectors, at a tenth of the work.

Singular vectors only tell which singular values to drop. Where a bound proves that none is dropped, any V with
V V^T = (A^T A)^-1 serves the rules as well (``RightFactor.full``). The bounds come with the factor: with K = A^T A,

    s_max^2 <= |K|_F,    s_min^2 >= 1 / tr K^-1 = 1 / |V|_F^2.

Forming K costs V the digits of cond(A)^2. How many is measured by sum_i K_ii (K^-1)_ii, a condition number that does
not change if columns are scaled (van der Sluis 1969, doi 10.1007/BF02165096).

float64 input takes a second step: A V is orthonormal to cond(A)^2 eps, its own Gram matrix is near I, and the Cholesky
factor of that corrects V to the accuracy of a QR (CholeskyQR2; Yamamoto, Nakatsukasa, Yanagisawa and Fukaya,
Electron. Trans. Numer. Anal. 44 (2015), 306-326).
"""

import math
from typing import NamedTuple

import mlx.core as mx

from .._mlx import dtypes
from .._mlx.blocks import crosses, in_basis
from .._mlx.centred import Matrix, in_float64
from .._mlx.eager import constants, evaluated_crosses, visible
from .._mlx.place import CPU, on_cpu
from .._mlx.shapes import diagonal
from .lapack import cholesky, svd, tri_inv
from .rank import cutoff
from .right_factor import RightFactor, embedded_gram, gram_scale, nan_where_negative, tolerance_or_nan

# Largest sum_i K_ii (K^-1)_ii that is accepted. For float32, singular vectors of the Gram matrix lose as much at
# condition 1e6. For float64, the second step makes up for it.
_LOSS = {mx.float32: 1e12, mx.float64: 1e11}
# Smallest diagonal entry of a Gram matrix that is accepted: products below 1e-308 underflow and lose digits.
_SMALLEST = 1e-290
# Largest condition number at which an inverse by LU is accepted.
_CONDITION = 1e8


class Cholesky(NamedTuple):
    """A Cholesky factor of r^2 K, and bounds on the singular values of r A, each ``(...)``.

    Attributes:
        right: A full :class:`RightFactor`.
        sound: Whether K is finite and positive definite to working precision; elsewhere V is meaningless.
        least: A lower bound on the smallest singular value squared.
        most: An upper bound on the largest singular value squared.
        trace: The sum of the squared singular values.
        loss: sum_i K_ii (K^-1)_ii; infinite where entries of K may have underflowed.
    """

    right: RightFactor
    sound: mx.array
    least: mx.array
    most: mx.array
    trace: mx.array
    loss: mx.array


class Certified(NamedTuple):
    """Constants of a matrix that is verified to be of full rank.

    Attributes:
        right: The full :class:`RightFactor`.
        squares: Diagonal of A^T D A, ``(..., n)``.
        rhs: A^H D b, stacked, or None.
        q: For float64 input, ``(..., m, n)``, and with it
        z: ``(..., n, n)``, so that Z Q^T D = (A^T D A)^-1 A^T D; both None for other dtypes.
    """

    right: RightFactor
    squares: mx.array
    rhs: mx.array | None = None
    q: mx.array | None = None
    z: mx.array | None = None


def cholesky_factor(gram: mx.array, dtype: mx.Dtype) -> Cholesky:
    """Factor a float64 Gram matrix ``(..., n, n)`` of a matrix of the given ``dtype``."""
    with on_cpu():
        n, gram = gram.shape[-1], mx.stop_gradient(gram)
        squares = diagonal(gram)
        normal = mx.min(squares, axis=-1) > _SMALLEST
        r = gram_scale(squares, dtype)
        gram = gram * (r * r)
        squares = diagonal(gram)
        # At a pivot that is not positive LAPACK stops, and MLX returns what is there without an error. Wrong pivots or
        # row norms of the factor reveal it; they reveal NaN and Inf, too.
        lower = cholesky(gram)
        rows = mx.sum(lower * lower, axis=-1)
        sound = mx.logical_and(diagonal(lower) > 0, mx.abs(rows - squares) <= 1e-8 * squares)
        sound = mx.all(sound, axis=-1)
        # MLX raises for an inverse with a pivot 0.
        v = tri_inv(mx.where(sound[..., None, None], lower, 1)).mT
        inverse = mx.sum(v * v, axis=-1)
        loss = mx.sum(squares * inverse, axis=-1)
        sound = mx.logical_and(sound, loss <= 1 / (n * dtypes.eps(mx.float64)))
        loss = mx.where(normal, loss, math.inf)
        most = mx.sqrt(mx.sum(gram * gram, axis=(-2, -1)))
        least, trace = 1 / mx.sum(inverse, axis=-1), mx.sum(squares, axis=-1)
        return Cholesky(full_rank_factor(v, r), sound, least, most, trace, loss)


def full_rank_factor(v: mx.array, r: mx.array) -> RightFactor:
    """The full :class:`RightFactor` of constants ``v`` (..., n, n) and ``r`` (..., 1, 1)."""
    none = mx.broadcast_to(mx.array([], mx.float64), (*v.shape[:-2], 0))
    return RightFactor(v, none, none, r)


def full_rank(
    a: Matrix,
    rtol: mx.array | float | None = None,
    atol: mx.array | float | None = None,
    w: mx.array | None = None,
    b: Matrix | None = None,
    method: str = "auto",
    entries: mx.Dtype | None = None,
) -> Certified | None:
    """The constants of a tall ``a`` whose singular values are all kept, or None where singular vectors are needed.

    Args:
        a: ``(..., m, n)`` with m >= n, not empty.
        rtol: Relative cutoff, a number or an array over the batch, or None.
        atol: Absolute cutoff, likewise.
        w: Weights ``(..., m)`` or None.
        b: Right-hand sides ``(..., m, k)`` or None.
        method: "auto" evaluates the arguments where it can, and returns None unless the whole batch is certified.
            "cholesky" evaluates nothing; matrices that are not certified get NaN. Any other returns None.
        entries: The dtype that the entries had, if ``a`` has been converted to a wider one.
    """
    entries = entries or a.dtype
    if method not in ("auto", "cholesky") or a.shape[-2] < a.shape[-1]:
        return None
    eager = method == "auto"
    with on_cpu():
        if eager and not visible(a, b, w, rtol, atol):
            return None
        w, rtol, atol = nan_where_negative(w), tolerance_or_nan(rtol), tolerance_or_nan(atol)
        exact = a.dtype == mx.float64
        gram, *rhs = (evaluated_crosses if eager else crosses)(a, [a] if b is None or exact else [a, b], w)
        gram = embedded_gram(gram)
        found = cholesky_factor(gram, a.dtype)
        f, squares = found.right, diagonal(gram)
        atol = None if atol is None else atol * f.r[..., 0, 0]
        good = certified(found, a.shape[-2:], entries, rtol, atol)
        if not eager:
            f = nan_unless(good, f)
        elif (f := evaluated_if(good, f)) is None:
            return None
        if not exact:
            return Certified(f, squares, rhs[0] if rhs else None)
        f, q, z = corrected(f, in_float64(a), w)
        return Certified(f, squares, q=q, z=z)


def nan_unless(good: mx.array, f: RightFactor) -> RightFactor:
    """``f`` with NaN for V where the mask ``good`` (...) is False."""
    return f._replace(v=mx.where(good[..., None, None], f.v, math.nan))


def evaluated_if(good: mx.array, f: RightFactor) -> RightFactor | None:
    """The full factor ``f`` without its graph, or None unless the mask ``good`` is True everywhere; one evaluation."""
    sure, v, r = constants(mx.all(good), f.v, f.r)
    return f._replace(v=v, r=r) if sure.item() else None


def factor_of_inverse(inverse: mx.array) -> RightFactor:
    """The full factor of a square matrix, given its float64 ``inverse`` (..., n, n): V V^T = A^-1 A^-T."""
    with on_cpu():
        return full_rank_factor(mx.stop_gradient(inverse), mx.ones((*inverse.shape[:-2], 1, 1), mx.float64))


def with_vectors(f: RightFactor) -> RightFactor:
    """The factor with singular vectors and values from a full, finite ``f``: by the SVD of its V."""
    with on_cpu():
        u, s, _ = svd(f.v)
        s = 1 / s[..., ::-1]
        return RightFactor(*map(mx.stop_gradient, (u[..., ::-1], s, mx.ones_like(s), f.r)))


def corrected(
    f: RightFactor, a: mx.array, w: mx.array | None, l2: mx.array | None = None
) -> tuple[RightFactor, mx.array, mx.array]:
    """The second step of CholeskyQR2: the full factor ``f`` with the digits that the Gram matrix has lost.

    Args:
        f: Of A^T D A + L.
        a: ``(..., m, n)``, float64.
        w: Weights ``(..., m)`` or None.
        l2: The diagonal of L, ``(..., n)``, or None.

    Returns:
        The factor, and Q and Z of :class:`Certified`, which are lazy.
    """
    with on_cpu():
        q, rest = in_basis(a, f.v * f.r, w)
        if l2 is not None:
            rest = rest + f.v.mT @ ((l2[..., None] * f.r * f.r) * f.v)
        turn = tri_inv(cholesky(rest)).mT
        v = f.v @ turn
        return f._replace(v=mx.stop_gradient(v)), q, v @ turn.mT * f.r


def inverse_by_lu(a: mx.array) -> mx.array | None:
    """The inverse, in float64, of real square ``a`` (..., n, n) that :func:`full_rank` has certified, else None.

    LU with partial pivoting loses no digit to the square of the condition number. Looks at values.
    """
    # LAPACK must not meet a singular matrix: after an exception inside an evaluation MLX 0.32 keeps a task that never
    # ends, and after some of them it waits forever.
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


def certified(found: Cholesky, shape, entries: mx.Dtype, rtol=None, atol=None) -> mx.array:
    """Whether V is accurate and the bounds prove every singular value to be above the cutoff, ``(...)``."""
    limit = cutoff(mx.sqrt(found.most), shape, entries, rtol, atol)
    above = found.least > 1.001 * limit * limit  # by more than the rounding of either
    return mx.logical_and(accurate(found, entries), above)


def accurate(found: Cholesky, entries: mx.Dtype) -> mx.array:
    """Whether V has the digits that ``entries`` need, whatever the cutoff, ``(...)``."""
    return mx.logical_and(found.sound, found.loss <= _LOSS[dtypes.real(entries)])
