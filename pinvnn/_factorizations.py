"""One class for each way to factor a problem: solutions, pseudo-inverse, rank and singular values, differentiable.

    class        serves                            solves by
    Square       real square A of full rank        the inverse by LU
    FullRank     full rank that is verified        a Cholesky factor of the Gram matrix, corrected in float64
    Truncated    everything without a penalty      singular vectors
    Penalized    a penalty                         (K + L)^-1 (``_factor/ridge_inverse.py``)
    Dual         one l2 for all features, m < n    (A A^H + l2 D^-1)^-1

Which of them serves a problem is decided in ``_methods.py``. A wide problem without weights or penalty is solved in its
tall form: ``tall`` is A^H then, and A otherwise.
"""

from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import mlx.core as mx

from ._factor.full_rank import Certified, factor_of_inverse, with_vectors
from ._factor.rank import default_rtol
from ._factor.ridge_inverse import inverse_of_ridge
from ._factor.ridge_values import RidgeInverse, Route, log_determinant, solution
from ._factor.right_factor import RightFactor, rank_of, right_factor
from ._factor.values import (
    adjoint_value,
    full_rank_adjoint_value,
    full_rank_pinv_value,
    full_rank_solve_value,
    left_vectors,
    pinv_value,
    solve_value,
    square_value,
)
from ._mlx import dtypes
from ._mlx.blocks import residual
from ._mlx.centred import Matrix, in_float64, rounded
from ._mlx.complex import embed, h, stack, unstack
from ._mlx.place import CPU, astype, large, on_cpu
from ._rules.dual import dual_solution
from ._rules.envelope import objective_at_minimum
from ._rules.logdet import logdet
from ._rules.pinv import attach_pinv, attach_pinv_by_vectors
from ._rules.products import gram_handle
from ._rules.residuals import exact_residual, sums_of_squares
from ._rules.ridge import penalized_inverse
from ._rules.solve import attach_adjoint, attach_solve
from ._rules.spectral import eigenvalues, inverse
from ._rules.square import attach_inverse, attach_square_solve
from ._rules.validation import with_value
from ._types import RidgeMethod

if TYPE_CHECKING:
    import numpy as np

#: Relative and absolute cutoff.
Cutoffs: TypeAlias = "tuple[mx.array | float | None, mx.array | float | None]"


class Factorization:
    """A factored problem without a penalty; subclasses say how.

    Attributes:
        a: ``(..., m, n)``, not empty, in a working dtype.
        w: Weights ``(..., m)`` in its real dtype, or None.
        tall: The matrix that was factored, weights apart.
    """

    def __init__(self, a: Matrix, w: mx.array | None, cutoffs: Cutoffs = (None, None)):
        self.a, self.w, self._cutoffs = a, w, cutoffs
        self.tall = a if w is not None or a.shape[-2] >= a.shape[-1] else h(rounded(a))

    def with_weights(self, w: mx.array) -> "Factorization":
        """The same factors for weights ``(..., m)`` of the same values, whose derivatives are others."""
        other = copy(self)
        other.w = w
        return other

    def solve(self, b: Matrix) -> mx.array:
        """The solution for ``b`` (..., m, k): ``(..., n, k)`` in the dtype of A, or stacked float64."""
        raise NotImplementedError

    def tall_pinv(self) -> mx.array:
        """The pseudo-inverse of ``tall`` without weights."""
        raise NotImplementedError

    @property
    def factor(self) -> RightFactor:
        """The right factor, full or with singular vectors, whichever costs less."""
        return self.vectors

    @cached_property
    def vectors(self) -> RightFactor:
        """The right factor with singular vectors."""
        return right_factor(self.tall, self.w, *self._cutoffs)[0]

    @property
    def rank(self) -> mx.array:
        """Of the weighted matrix, ``(...)`` int32."""
        return rank_of(self.a, self.vectors)

    def pinv(self) -> mx.array:
        """P ``(..., n, m)`` with x = P b: (D^(1/2) A)^+ D^(1/2)."""
        if self.w is None:
            p = self.tall_pinv()
            return p if self.tall is self.a else h(p)
        f = self.vectors
        with on_cpu():  # B A^H D
            right = stack(h(rounded(self.a)))
            return _times_weights(inverse(gram_handle(self.a, self.w, f), right, f), f.r, rounded(self.a), self.w)

    def residuals(self, b: Matrix, x: mx.array) -> mx.array:
        """Weighted sums of squared residuals ``(..., k)``, float64, of the stacked solution ``x`` for ``b``."""
        w = None if self.w is None else astype(self.w, mx.float64)
        return sums_of_squares(exact_residual(self.a, b, x), w, self.a.dtype)

    @property
    def singular_values(self) -> mx.array:
        """Of the weighted matrix, descending, ``(..., min(m, n))``: roots of the eigenvalues of the Gram matrix.

        Values at the level of rounding have gradient 0.
        """
        a, f, twins = self.tall, self.vectors, self.a.dtype == mx.complex64
        with on_cpu():
            values = eigenvalues(gram_handle(a, self.w, f), f, twins)
            s = f.s
            if twins:
                s, values = s[..., ::2], mx.mean(values.reshape(*values.shape[:-1], -1, 2), axis=-1)
            m, n = a.shape[-2:]
            real = s > default_rtol(m, n, a.dtype) * s[..., :1]
            root = mx.sqrt(mx.where(real, values, mx.ones_like(values)))
            s = (mx.where(real, root, s) / f.r[..., 0]).astype(dtypes.real(a.dtype))
            return s[..., : min(m, n)]

    def evaluated_spectrum(self) -> "tuple[np.ndarray, np.ndarray]":
        """Rank and singular values of real arrays that may be evaluated; no vectors are computed for them."""
        import numpy as np  # here, since it takes longer to import than all of MLX

        f = self.factor
        with np.errstate(all="ignore"):
            s = np.asarray(f.s) if not f.full else 1 / np.linalg.svd(np.asarray(f.v), compute_uv=False)[..., ::-1]
            return np.asarray(self.rank), s / np.asarray(f.r)[..., 0]

    def logdet(self) -> mx.array:
        """Logarithm of the determinant of A^H D A, ``(...)`` in float64; -inf where a singular value is dropped."""
        if self.tall is not self.a:
            with on_cpu():
                return mx.full(self.a.shape[:-2], -float("inf"), mx.float64)
        return logdet(self.a, self.w, None, self.vectors)


class Truncated(Factorization):
    """By singular vectors, for any rank."""

    def __init__(self, a, w, rtol=None, atol=None, method: str | None = None):
        super().__init__(a, w)
        self._f, self._left = right_factor(self.tall, w, rtol, atol, method)

    @cached_property
    def vectors(self):
        return self._f

    def solve(self, b):
        f, left = self._f, self._left
        if self.tall is self.a:
            return attach_solve(self.a, b, self.w, None, f, solve_value(self.a, b, self.w, f, left))
        a, b = rounded(self.tall), rounded(b)
        return attach_adjoint(a, b, f, adjoint_value(a, b, f, left))

    def tall_pinv(self):
        a, f, left = rounded(self.tall), self._f, self._left
        if a.dtype == mx.complex64 or a.shape[-2] >= 4 * a.shape[-1]:
            return attach_pinv(a, f, astype(pinv_value(a, f, left), a.dtype))
        # For nearly square A it pays to keep the left singular vectors: the gradient then needs no other n^3 product.
        left = mx.stop_gradient(left_vectors(a, f) if left is None else astype(left, a.dtype), stream=CPU)
        return attach_pinv_by_vectors(a, f, left, pinv_value(a, f, left))


class FullRank(Factorization):
    """By a Cholesky factor; what needs singular vectors computes them at its first use."""

    def __init__(self, a, w, known: Certified, rtol, atol, verified: bool, b=None):
        """``verified`` says that values showed the full rank; else it is NaN where it fails, and the rank is open."""
        super().__init__(a, w, (rtol, atol))
        self._known, self._b, self._verified = known, b, verified

    @property
    def factor(self) -> RightFactor:
        return self._known.right if self._verified else self.vectors

    @cached_property
    def vectors(self):
        return with_vectors(self.factor) if self._verified else super().vectors

    @property
    def rank(self):
        return mx.full(self.a.shape[:-2], min(self.a.shape[-2:]), mx.int32) if self._verified else super().rank

    def solve(self, b):
        known = self._known if b is self._b else self._known._replace(rhs=None)
        if self.tall is self.a:
            value = full_rank_solve_value(self.a, b, self.w, known)
            return attach_solve(self.a, b, self.w, None, known.right, value)
        a, b = rounded(self.tall), rounded(b)
        return attach_adjoint(a, b, known.right, full_rank_adjoint_value(a, b, known))

    def residuals(self, b, x):
        # The solution is a minimizer: nothing is solved for the gradient.
        if self.tall is not self.a or self.a.dtype == mx.complex64:
            return super().residuals(b, x)
        with on_cpu():
            v, s, kept, r = self._known.right
            right = RightFactor(v[..., None, :, :], s[..., None, :], kept[..., None, :], r[..., None, :, :])
            x, none = mx.stop_gradient(x), mx.zeros((1, 1), mx.float64)
            rest = residual(self.a, b, x, rounded=False)
            return objective_at_minimum(self.a, b, self.w, none, RidgeInverse(right, "feature"), x, rest)

    def tall_pinv(self):
        a = rounded(self.tall)
        return attach_pinv(a, self._known.right, full_rank_pinv_value(a, self._known, self._verified))

    def logdet(self):
        if self.tall is not self.a:
            return super().logdet()
        return logdet(self.a, self.w, None, self._known.right)


class Square(Factorization):
    """By the inverse of a verified matrix."""

    def __init__(self, a: mx.array, value: mx.array):
        super().__init__(a, None)
        self._square, self._inverse = a, value

    @cached_property
    def factor(self) -> RightFactor:
        return factor_of_inverse(self._inverse)

    @cached_property
    def vectors(self):
        return with_vectors(self.factor)

    @property
    def rank(self):
        return mx.full(self.a.shape[:-2], self.a.shape[-1], mx.int32)

    def solve(self, b):
        b = rounded(b)
        return attach_square_solve(self._square, b, self._inverse, square_value(self._square, b, self._inverse))

    def tall_pinv(self):
        return attach_inverse(self._square, self._inverse)


class Penalized(Factorization):
    """(K + L)^-1. Rank and singular values are those of the weighted matrix without the penalty."""

    def __init__(
        self, a, w, l2: mx.array, route: Route, method: RidgeMethod = "auto", b=None, cutoffs: Cutoffs = (None, None)
    ):
        """``l2`` is ``(..., 1 or n, 1 or k)``, with k = 1 for all but :meth:`solve`; ``route`` is not the dual one."""
        super().__init__(a, w, cutoffs)
        with on_cpu():  # a penalty by feature is that of the embedded Gram matrix
            twice = a.dtype == mx.complex64 and l2.shape[-2] > 1
            self._l2 = mx.concatenate([l2, l2], axis=-2) if twice else l2
        self._inverse, self._hints = inverse_of_ridge(a, w, self._l2, route, a.dtype, b, method)
        self._b = b

    def solve(self, b):
        hints = self._hints if b is self._b else self._hints._replace(rhs=None)
        value = solution(self._inverse, self.a, b, self.w, self._l2, hints)
        return attach_solve(self.a, b, self.w, self._l2, self._inverse, value)

    def pinv(self):
        """R A^H D."""
        f = self._inverse
        with on_cpu():
            k = gram_handle(self.a, self.w, f)
            return _times_weights(penalized_inverse(k, self._l2, stack(h(rounded(self.a))), f), f.scale, self.a, self.w)

    def logdet(self):
        """Logarithm of the determinant of A^H D A + L."""
        return logdet(self.a, self.w, self._l2, self._inverse)


class Dual(Factorization):
    """(A A^H + l2 D^-1)^-1, of few rows. Rank and singular values are those without the penalty."""

    def __init__(self, a, w, l2: mx.array, method: RidgeMethod = "auto", cutoffs: Cutoffs = (None, None)):
        """``l2`` is ``(..., 1, 1 or k)``, with k = 1 for all but :meth:`solve`."""
        super().__init__(a, w, cutoffs)
        self._l2 = l2
        with on_cpu():
            self._rows = embed(rounded(a)) if a.dtype == mx.complex64 else in_float64(a)
            self._inverse, _ = inverse_of_ridge(
                self._rows, self._row_weights, l2, "dual", dtypes.real(a.dtype), method=method
            )

    @property
    def _row_weights(self) -> mx.array | None:
        """Of the embedded rows, float64."""
        if self.w is None:
            return None
        w = astype(self.w, mx.float64)
        return mx.concatenate([w, w], axis=-1) if self.a.dtype == mx.complex64 else w

    def solve(self, b):
        with on_cpu():
            b = stack(rounded(b)) if b.dtype == mx.complex64 else in_float64(b)
            return dual_solution(self._rows, b, self._row_weights, self._l2, self._inverse.f)

    def pinv(self):
        """A^H (A A^H + l2 D^-1)^-1: the solutions for unit vectors."""
        with on_cpu():
            unit = mx.eye(self.a.shape[-2], dtype=dtypes.real(self.a.dtype)).astype(self.a.dtype)
            return unstack(self.solve(unit), self.a.dtype)

    def logdet(self):
        """Logarithm of the determinant of A^H D A + l2: that of the m x m matrix, and n - m times log(l2).

        Its derivative is that of the n x n form, of which the smallest eigenvalues would have no digits here.
        """
        (m, n), rows = self.a.shape[-2:], self._rows.shape[-2]
        primal = Penalized(self.a, self.w, self._l2, "feature").logdet()
        if m >= n:
            return primal
        with on_cpu():
            f, l2 = self._inverse.f, mx.stop_gradient(self._l2)
            value = log_determinant(f if f.full else RidgeInverse(f, "shared"), l2, rows) * (m / rows)
            return with_value(primal, mx.broadcast_to(value + (n - m) * mx.log(l2[..., 0, 0]), primal.shape), 0)


def _times_weights(p, r, a, w):
    """r^2 ``p`` D in the dtype of ``a``, from a stacked float64 ``p``."""
    p = unstack(p * r * r, a.dtype)
    with large(a.dtype):
        return p if w is None else p * w[..., None, :]
