"""One factorization for many solves."""

import mlx.core as mx

from ._factor.ridge_inverse import penalty_matrix
from ._factorizations import Cutoffs
from ._factorizations import Factorization as _Factorization
from ._methods import check_method, check_ridge_method, factor_problem, factor_ridge
from ._mlx import checks, dtypes
from ._mlx.complex import stack, unstack
from ._mlx.linear_problem import without_unweighted
from ._mlx.numbers import refuse_inexact_integers, weights_array
from ._mlx.place import astype, large, on_cpu
from ._rules.products import real_dot
from ._types import ArrayLike, Method, Penalty, RidgeMethod, Tolerance


class Factorization:
    r"""A factored least-squares or ridge problem: what :func:`pinvnn.factorize` returns.

    Everything is lazy, and differentiable at every order in the ``a``, ``weights`` and ``l2`` that were factored, if
    :func:`pinvnn.factorize` is called inside the function that is differentiated.

    Shape:
        ``a`` is ``(..., m, n)``, with the batch shape of ``a``, ``weights`` and ``l2`` together.
    """

    def __init__(
        self,
        a: mx.array,
        weights: mx.array | None,
        l2: mx.array | None,
        cutoffs: Cutoffs,
        method: Method | RidgeMethod,
        out: mx.Dtype,
    ):
        """Of checked arguments; use :func:`pinvnn.factorize`."""
        self._a, self._weights, self._l2, self._out = a, weights, l2, out
        self._parts: _Factorization | None = None
        if a.size == 0:
            return
        with large(a.dtype):
            if l2 is None:
                self._parts = factor_problem(a, weights, *cutoffs, method)
            else:
                self._parts = factor_ridge(a, weights, l2, method, cutoffs=cutoffs)

    def solve(self, b: ArrayLike) -> mx.array:
        """The solution for right-hand sides, as :func:`pinvnn.lstsq` or, with a penalty, :func:`pinvnn.ridge`.

        Args:
            b: ``(m,)`` or ``(..., m, k)``: only a 1-D ``b`` is a vector. Differentiable.

        Returns:
            ``(n,)`` or ``(..., n, k)``.

        Raises:
            ValueError: If the shape of ``b`` does not match, or its dtype is wider than that of ``a``.
            TypeError: If ``b`` is not array-like.
        """
        name, a = "factorize", self._a
        b = checks.array(name, "b", b, 1)
        checks.rows(name, a, b)
        if b.dtype in (mx.float64, mx.complex64) and b.dtype != a.dtype:
            checks.fail(name, f"b must not be wider than a, of dtype {a.dtype}", f"{b.dtype}", "Convert a before.")
        vector = b.ndim == 1
        out = self._out if b.dtype == self._out else a.dtype
        with large(a.dtype):
            b = astype(b[:, None] if vector else b, a.dtype)
            whole = checks.batch_shape(name, ("a", a.shape[:-2]), ("b", b.shape[:-2]))
            shape, parts = (*whole, a.shape[-1], b.shape[-1]), self._parts
            if parts is None or 0 in shape:
                x = self._without_data(shape)
            else:
                if self._weights is not None:
                    weights = mx.broadcast_to(self._weights, (*whole, a.shape[-2]))
                    (b,), used = without_unweighted([b], weights)
                    parts = parts if used is weights else parts.with_weights(used)
                x = unstack(stack(parts.solve(b)), a.dtype)
            x = x.astype(out)
            return x.squeeze(-1) if vector else x

    def pinv(self) -> mx.array:
        """The matrix P with ``solve(b) == P @ b``, ``(..., n, m)``: the pseudo-inverse if there are no weights."""
        a = self._a
        with large(a.dtype):
            if self._parts is None:
                return mx.zeros((*a.shape[:-2], a.shape[-1], a.shape[-2]), self._out)
            return self._parts.pinv().astype(self._out)

    @property
    def rank(self) -> mx.array:
        """Number of singular values kept of ``diag(sqrt(weights)) a``, ``(...)`` int32. No gradient."""
        return mx.zeros(self._a.shape[:-2], mx.int32) if self._parts is None else self._parts.rank

    @property
    def singular_values(self) -> mx.array:
        """Of ``diag(sqrt(weights)) a``, descending, ``(..., min(m, n))``; the penalty has no part in them."""
        a = self._a
        if self._parts is None:
            return mx.zeros((*a.shape[:-2], min(a.shape[-2:])), dtypes.real(a.dtype))
        return self._parts.singular_values

    def leverages(self) -> mx.array:
        """Diagonal of the hat matrix ``a @ pinv()``, ``(..., m)``: the derivative of each fitted value by its target.

        Their sum is the rank or, with a penalty, the effective number of degrees of freedom.
        """
        a = self._a
        with large(a.dtype):
            if self._parts is None:
                return mx.zeros(a.shape[:-1], dtypes.real(a.dtype))
            return real_dot(mx.conjugate(a) if a.dtype == mx.complex64 else a, self._parts.pinv().mT)

    def logdet(self) -> mx.array:
        """``log det(a^H diag(weights) a + diag(l2))``, ``(...)``; -inf where that is singular.

        Its derivative is the trace with the inverse: ``tr((K + L)^-1 (dK + dL))``.
        """
        a = self._a
        if self._parts is not None:
            return astype(self._parts.logdet(), dtypes.real(a.dtype))
        with on_cpu():
            shape = (*a.shape[:-2], a.shape[-1], 1)
            l2 = mx.zeros(shape, mx.float64) if self._l2 is None else mx.broadcast_to(self._l2, shape)
            return mx.sum(mx.log(l2), axis=(-2, -1)).astype(dtypes.real(a.dtype))

    def _without_data(self, shape) -> mx.array:
        with on_cpu():
            zero = mx.zeros(shape, mx.float64)
            if self._l2 is not None:  # NaN where any solution would do
                zero = mx.where(self._l2 > 0, zero, mx.array(float("nan"), mx.float64))
            return zero.astype(self._a.dtype)


def factorize(
    a: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    l2: Penalty | None = None,
    rtol: Tolerance = None,
    atol: Tolerance = None,
    method: Method | RidgeMethod = "auto",
) -> Factorization:
    r"""Factor a matrix once for many solves, its pseudo-inverse, leverages and log determinant.

    Without a penalty ``factorize(a).solve(b)`` is the solution of :func:`pinvnn.lstsq`, with one that of
    :func:`pinvnn.ridge`. All results are differentiable at every order in ``a``, ``weights``, ``l2`` and ``b``.

    Args:
        a: ``(..., m, n)``, of a dtype that :func:`pinvnn.pinv` takes.
        weights: ``(..., m)``, non-negative; weight 2 equals the row given twice. A row of weight 0 takes no part,
            whatever it holds, NaN included. A negative weight gives NaN.
        l2: Penalty of the squared solution: a number or ``(..., n, 1)`` per feature, the same for all right-hand sides.
            A negative value inside an array gives NaN. None for no penalty and the solution of minimum norm; 0 gives
            NaN if ``a`` is rank deficient.
        rtol: Relative cutoff: a number or an array that broadcasts to the batch shape. Default ``min(m, n) * eps`` of
            the dtype, or 0 if ``atol`` is given. No gradient.
        atol: Absolute cutoff, of the same shapes. Default 0. No gradient.
        method: As in :func:`pinvnn.lstsq` or, with a penalty, as in :func:`pinvnn.ridge`.

    Returns:
        A :class:`Factorization`.

    Raises:
        ValueError: If shapes do not match, a number is negative, the method does not
            apply, or integers are beyond float32 (where values can be evaluated).
        TypeError: If an argument is not array-like.

    References:
        G. H. Golub and V. Pereyra, SIAM J. Numer. Anal. 10 (1973), Eq. 4.12, doi 10.1137/0710036. The derivatives:
        docs/math.md.

    Example:
        >>> import mlx.core as mx
        >>> import pinvnn
        >>> f = pinvnn.factorize(mx.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]))
        >>> [round(float(x), 4) for x in f.solve(mx.array([1.0, 3.0, 5.0]))]
        [1.0, 2.0]
        >>> [round(float(h), 3) for h in f.leverages()]
        [0.833, 0.333, 0.833]
        >>> mx.grad(lambda a: pinvnn.factorize(a).logdet())(mx.array([[2.0]]))
        array([[1]], dtype=float32)
    """
    name = "factorize"
    a = checks.array(name, "a", a, 2)
    out, work = dtypes.result(a), dtypes.working(a)
    refuse_inexact_integers(name, "a", a, work)
    batch = [("a", a.shape[:-2])]
    if weights is not None:
        weights = weights_array(name, "weights", weights, work)
        checks.row_weights(name, a, weights)
        batch.append(("weights", weights.shape[:-1]))
    if l2 is None:
        check_method(name, method, a, work, weights is not None)
    else:
        l2 = penalty_matrix(checks.penalty(name, l2, a.shape[-1], 1, False))
        check_ridge_method(name, method, l2)
        batch.append(("l2", l2.shape[:-2]))
    whole = checks.batch_shape(name, *batch)
    cutoffs = checks.tolerance(name, "rtol", rtol, whole), checks.tolerance(name, "atol", atol, whole)
    with large(work):
        a = astype(a, work)
        if weights is not None:
            (a,), weights = without_unweighted([a], weights)
        a = mx.broadcast_to(a, (*whole, *a.shape[-2:]))
        if weights is not None:
            weights = mx.broadcast_to(weights, (*whole, a.shape[-2]))
    return Factorization(a, weights, l2, cutoffs, method, out)
