"""A readout problem, checked and centred: what solving, leave-one-out and uncertainty have in common."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from .._mlx import (
    Centred,
    Matrix,
    astype,
    checks,
    dtypes,
    evaluated_crosses,
    large,
    on_cpu,
    on_gpu,
    refuse_inexact_integers,
    weights_array,
    without_unweighted,
)
from .._rules import divisor, weighted_mean, with_derivative_of_deviations
from .._types import ArrayLike, ReadoutMethod


class ReadoutProblem(NamedTuple):
    """Features and targets less their weighted means: the intercept is then no unknown of the problem.

    Attributes:
        a: Centred features, ``(..., m, n)``.
        b: Centred targets, ``(..., m, k)``.
        w: Weights, ``(..., m)``, or None.
        l2: Penalty in float64, ``(1 or n, 1 or k)``; None for the solution of minimum norm.
        total_weight: Sum of the weights, or the number of rows, ``(...)`` in float64.
        means: Gives those of the features, ``(..., 1, n)``, and of the targets, ``(..., 1, k)``, differentiable; None
            without an intercept.
        out_dtype: The dtype of results.
        entry_dtype: The dtype in which features and targets were given, which decides on rank and accuracy; ``a`` may
            be a float64 copy of float32 entries.
        method: "cholesky" says that no singular vectors shall be taken, see :class:`LeastSquaresReadout`.
        bounds: Of the solution, as :func:`pinvnn.lsq_linear` takes them; None if there are none.
    """

    a: Matrix
    b: Matrix
    w: mx.array | None
    l2: mx.array | None
    total_weight: mx.array
    means: Callable[[], tuple[mx.array, mx.array]] | None
    out_dtype: mx.Dtype
    entry_dtype: mx.Dtype
    method: ReadoutMethod = "auto"
    bounds: tuple[float | mx.array | None, float | mx.array | None] | None = None

    @property
    def dual_is_smaller(self) -> bool:
        """Whether the m x m form is smaller than the n x n one and applies: one penalty for all features."""
        by_feature = self.l2 is not None and self.l2.shape[-2] > 1
        return self.a.shape[-2] < self.a.shape[-1] and self.w is None and not by_feature


def check_rows(
    name: str, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None, dims: tuple[int, int]
) -> tuple[mx.array, mx.array, mx.array | None, bool]:
    """Arrays ``x`` (..., m, n), ``y`` (..., m, k), ``weights`` (..., m) or None, and whether ``y`` was a vector."""
    n, k = dims
    x = features(name, "x", x, n, 2)
    y = checks.array(name, "y", y, 1)
    if any(v.dtype == mx.complex64 for v in (x, y)):
        checks.fail(name, "x and y must be real", "complex64", "Use pinvnn.lstsq or pinvnn.ridge.", TypeError)
    vector = y.ndim == 1
    if vector and k == 1:
        y = y[:, None]
    if y.ndim < 2 or y.shape[-1] != k:
        checks.fail(name, f"y must have the shape (..., m, {k})", f"{y.shape}", "Reshape y, or change output_dims.")
    if x.shape[-2] != y.shape[-2]:
        got = f"{x.shape[-2]} and {y.shape[-2]}"
        checks.fail(name, "x and y must have the same number of rows", got, "Pass one row of y for each row of x.")
    batch = [("x", x.shape[:-2]), ("y", y.shape[:-2])]
    if weights is not None:
        weights = weights_array(name, "weights", weights, dtypes.working(x, y))
        checks.rows(name, x, x, weights)
        batch.append(("weights", weights.shape[:-1]))
    checks.batch_shape(name, *batch)
    refuse_inexact_integers(name, "y", y)
    return x, y, weights, vector


def features(name: str, label: str, x: ArrayLike, n: int, ndim: int = 1) -> mx.array:
    """An array whose last dimension is ``n``."""
    x = checks.array(name, label, x, ndim)
    if x.shape[-1] != n:
        checks.fail(name, f"{label} must have {n} features", f"shape {x.shape}", "Change input_dims or the features.")
    refuse_inexact_integers(name, label, x)
    return x


def centred(
    x: mx.array,
    y: mx.array,
    weights: mx.array | None,
    l2: mx.array | None,
    bias: bool,
    double: bool = False,
    method: ReadoutMethod = "auto",
    without: mx.array | None = None,
) -> ReadoutProblem:
    """The :class:`ReadoutProblem` of arrays that have been checked, converted to float64 if ``double``.

    With indices ``without`` (t,) it is a batch of t problems, ``(t, ..., m, n)``, each without one of the rows: its
    weight is 0, and the row itself remains.
    """
    out, entries = dtypes.result(x, y), dtypes.working(x, y)
    work = mx.float64 if double else entries
    with large(work):
        x, y = astype(x, work), astype(y, work)
        w = None if weights is None else astype(weights, work)
        if w is not None:
            (x, y), w = without_unweighted([x, y], w)
        if without is not None:
            batch = max(x.ndim - 2, y.ndim - 2, 0 if w is None else w.ndim - 1)
            others = (without.reshape(-1, *(1,) * (batch + 1)) != mx.arange(x.shape[-2])).astype(work)
            w = others if w is None else others * w
    with on_cpu():
        total = mx.array(x.shape[-2], mx.float64) if w is None else mx.sum(astype(w, mx.float64), axis=-1)
    if bias and work == mx.float32 and x.size and (l2 is not None or x.shape[-2] > x.shape[-1]):
        (a, a_moves), (b, b_moves) = _exactly_centred(x, y, w, total, l2 is None)

        def means():
            if on_gpu(work):  # Summed anew in float32: nothing has to cross for it.
                return _centre(x, w)[1], _centre(y, w)[1]
            return a_moves + astype(a.mean, work), b_moves + astype(b.mean, work)

        return ReadoutProblem(a, b, w, l2, total, means, out, entries, method)
    if not bias:
        return ReadoutProblem(x, y, w, l2, total, None, out, entries, method)
    with large(work):
        (x, x_mean), (y, y_mean) = _centre(x, w), _centre(y, w)
        if l2 is None and x.size:
            x = _without_noise(x, x_mean, entries)
    return ReadoutProblem(x, y, w, l2, total, lambda: (x_mean, y_mean), out, entries, method)


def _exactly_centred(
    x: mx.array, y: mx.array, w: mx.array | None, total: mx.array, twice: bool
) -> list[tuple[Centred, mx.array]]:
    """float32 ``x`` and ``y`` less their weighted means, and zeros with the derivative of each mean.

    Without weights the sum of a constant feature is exact, and 0 is left of it; with weights if the mean is taken
    ``twice``.
    """
    rows, moves = with_derivative_of_deviations(x, w)
    with large(y.dtype):  # Narrow: MLX's own derivative takes less time than a rule in Python.
        share = 1 / y.shape[-2] if w is None else (w / divisor(mx.sum(w, axis=-1, keepdims=True)))[..., None]
        mean = mx.sum(share * y, axis=-2, keepdims=True)  # not the sum itself, which may overflow
        y_moves = mean - mx.stop_gradient(mean)
        # An array of its own: stopped copies of what is element by element make mx.compile fail, see `attach`.
        rows, moves = [rows, mx.contiguous(y - y_moves)], [moves, y_moves]
    with on_cpu():
        fixed = [mx.stop_gradient(x) for x in rows]
        if w is None:
            m = fixed[0].shape[-2]
            weights, whole = mx.broadcast_to(mx.array(1.0, mx.float64), (m, 1)), m
        else:
            weights = mx.stop_gradient(astype(w, mx.float64))[..., None]
            whole = mx.stop_gradient(divisor(total))[..., None, None]
        means = [sums / whole for sums in evaluated_crosses(weights, fixed)]
        if twice and w is not None:
            rest = evaluated_crosses(weights, [Centred(x, mean) for x, mean in zip(fixed, means, strict=True)])
            means = [mean + sums / whole for mean, sums in zip(means, rest, strict=True)]
        return [(Centred(x, mean), move) for x, mean, move in zip(rows, means, moves, strict=True)]


def _centre(x, w):
    """``x`` less its weighted mean, and the mean.

    The mean is taken twice: the first one of rows far from 0 is wrong by its rounding. It is a constant for
    differentiation, since a shift of all rows does not change what the second step returns.
    """
    shift = mx.stop_gradient(weighted_mean(x, w))
    x = x - shift
    rest = weighted_mean(x, w)
    return x - rest, shift + rest


def _without_noise(x, mean, dtype):
    """``x`` with exact zeros in features that are constant up to rounding.

    If no feature varies, this noise would be the largest singular value, and count for the rank.
    """
    noise = mx.max(mx.abs(x), axis=-2, keepdims=True) <= dtypes.eps(dtype) / 4 * mx.abs(mean)
    return x - mx.stop_gradient(mx.where(noise, x, mx.zeros_like(x)))
