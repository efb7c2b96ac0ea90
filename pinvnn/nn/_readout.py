"""A linear layer whose weights are a least-squares fit."""

import math
from collections.abc import Iterable
from numbers import Number
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

import mlx.core as mx
import mlx.nn as nn

from .._factor import penalty_matrix
from .._mlx import astype, checks, dtypes, large, matmul, on_cpu, size
from .._types import ArrayLike, Penalty
from ._leave_one_out import errors, validation_score
from ._problem import ReadoutProblem, centred, check_rows, features
from ._solution import smallest_objective, solve
from ._uncertainty import Uncertainty, uncertainty

if TYPE_CHECKING:
    from typing_extensions import Self


#: What leaving a row out takes away: the whole row, or weight 1 of it.
Removed: TypeAlias = Literal["row", "unit"]


class LeastSquaresReadout(nn.Module):
    r"""A linear layer whose weights are set by (ridge) least squares instead of by an optimizer.

    .. math::
        \min_{W, c} \sum_i w_i\,\|y_i - W x_i - c\|^2 + \sum_{t,j} l_{tj}\,W_{tj}^2

    A sum and not a mean: ``l2`` is scikit-learn's ``alpha``. The intercept ``c`` is never penalised. With ``l2 = 0``
    the solution of minimum norm is taken, as in :func:`pinvnn.lstsq`; otherwise that of :func:`pinvnn.ridge`.

    There are three ways to use it. :meth:`fit` stores the weights, and the layer is then an ``nn.Linear``. In training,
    :meth:`adapt` (fit on one part of a batch, loss on another) and :meth:`projected_loss` differentiate through the
    fit: the layers before the readout are trained for the readout that fits their output best. :meth:`loo_loss` does
    the same with the leave-one-out error in place of the training error, so that no validation split is needed.

    ``weight`` and ``bias`` are frozen, and stay so under ``unfreeze``: the closed form sets them. They are zero before
    the first fit. A compiled training step sets them by ``readout.weight, readout.bias = readout.solve(x, y)``.

    Args:
        input_dims (int): Number of input features n.
        output_dims (int): Number of targets k.
        l2 (float or array, optional): Penalty: a number, ``(k,)`` per target, ``(n, 1)`` per feature, or ``(n, k)``.
            The number 0 means the solution of minimum norm; where an array holds 0 a singular problem gives NaN.
            Default: ``0.0``.
        bias (bool, optional): Whether there is an intercept. Default: ``True``.
        learn_l2 (bool, optional): Make ``l2`` a trainable parameter by its logarithm, ``log_l2``. Default: ``False``.

    Shape:
        - x: ``(..., m, n)``. Leading dimensions are separate problems (episodes), except for :meth:`fit` and
          ``__call__``; :func:`mlx.core.vmap` serves as well.
        - y: ``(..., m, k)``; or ``(m,)`` if k is 1, and predictions for it are then vectors, too.
        - weights: ``(..., m)``, non-negative; weight 2 equals the row given twice. Rows whose weights sum to 0 give
          zeros, as no rows do.
        - weight: ``(..., k, n)`` and bias: ``(..., k)``, as in ``nn.Linear``.

    Attributes:
        weight (array): ``(k, n)``, set by :meth:`fit`.
        bias (array): ``(k,)``; there is none with ``bias=False``.
        learn_l2 (bool): Whether ``l2`` is learned.
        log_l2 (array): Logarithm of the penalty, a trainable parameter; there is none with ``learn_l2=False``.

    Raises:
        ValueError: If shapes do not fit, ``l2`` is negative, or a learnable ``l2`` is not positive.
        TypeError: If an argument is not array-like.

    Examples:
        >>> import mlx.core as mx
        >>> from pinvnn.nn import LeastSquaresReadout
        >>> x = mx.array([[0.0], [1.0], [2.0]])
        >>> readout = LeastSquaresReadout(1, 1).fit(x, 2 * x + 1)
        >>> readout(mx.array([[10.0]])).round(3)
        array([[21]], dtype=float32)

    References:
        L. Bertinetto, J. F. Henriques, P. H. S. Torr and A. Vedaldi, Meta-learning with differentiable closed-form
        solvers, ICLR 2019, arXiv 1805.08136.
    """

    weight: mx.array
    bias: mx.array
    log_l2: mx.array
    learn_l2: bool

    def __init__(
        self, input_dims: int, output_dims: int, l2: Penalty = 0.0, bias: bool = True, learn_l2: bool = False
    ) -> None:
        super().__init__()
        input_dims = size(type(self).__name__, "input_dims", input_dims, 1)
        output_dims = size(type(self).__name__, "output_dims", output_dims, 1)
        l2 = checks.penalty(type(self).__name__, l2, input_dims, output_dims, False)
        if isinstance(l2, mx.array) and l2.ndim > 2:
            self._fail("l2 must have at most 2 dimensions", f"shape {l2.shape}", "Use one readout for each penalty.")
        self.weight = mx.zeros((output_dims, input_dims))
        if bias:
            self.bias = mx.zeros((output_dims,))
        self.learn_l2 = bool(learn_l2)
        if learn_l2:
            with on_cpu():
                start = mx.array(l2).astype(mx.float32)
                if not all_true(start > 0):
                    self._fail("a learnable l2 must be positive", f"{l2}", "Start from a small number.")
                self.log_l2 = mx.log(start)
        else:
            self._l2 = l2  # An array would be a parameter of the module, were it not for the underscore.
        self._no_grad = _Frozen({"weight", "bias"} & set(self))

    def _fail(self, rule: str, got: str, remedy: str, method: str | None = None) -> NoReturn:
        name = type(self).__name__
        checks.fail(f"{name}.{method}" if method else name, rule, got, remedy)

    def _extra_repr(self) -> str:
        l2: Any = self.l2
        l2 = f"{l2.item():.4g}" if isinstance(l2, mx.array) and l2.ndim == 0 else getattr(l2, "shape", l2)
        return (
            f"input_dims={self.weight.shape[1]}, output_dims={self.weight.shape[0]}, l2={l2}, bias={'bias' in self}, "
            f"learn_l2={self.learn_l2}"
        )

    @property
    def l2(self) -> float | mx.array:
        """The penalty: a number or an array; if it is learned, the exponential of ``log_l2``."""
        if not self.learn_l2:
            return self._l2
        with on_cpu():  # A power of e, since MLX's float64 exp is right to 1e-7 only.
            return mx.power(mx.array(math.e, mx.float64), self.log_l2.astype(mx.float64))

    def _penalty(self) -> mx.array | None:
        """The penalty as a two-dimensional float64 array, None for the number 0."""
        l2 = self.l2
        return None if isinstance(l2, Number) and l2 == 0 else penalty_matrix(l2)

    @property
    def _dims(self) -> tuple[int, int]:
        return self.weight.shape[1], self.weight.shape[0]

    def _rows(
        self, method: str, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None
    ) -> tuple[mx.array, mx.array, mx.array | None, bool]:
        return check_rows(f"{type(self).__name__}.{method}", x, y, weights, self._dims)

    def _problem(
        self, method: str, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None, exact: bool = False
    ) -> tuple[ReadoutProblem, bool]:
        """The centred problem, and whether y was a vector.

        With few rows leverages come near to 1, and what is left of 1 has few digits: ``exact`` takes float64 there.
        """
        x, y, weights, vector = self._rows(method, x, y, weights)
        double = exact and x.shape[-2] <= 2 * x.shape[-1]
        return centred(x, y, weights, self._penalty(), "bias" in self, double), vector

    def __call__(self, x: ArrayLike) -> mx.array:
        """Predictions ``(..., k)`` for ``x`` (..., n) with the stored weights."""
        x = features(type(self).__name__, "x", x, self._dims[0])
        with large(dtypes.working(x, self.weight)):
            return mx.addmm(self.bias, x, self.weight.T) if "bias" in self else x @ self.weight.T

    def fit(self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> "Self":
        """Solve for ``weight`` and ``bias``, store them, and return the layer. Eager: not for use in a transformation.

        Raises:
            ValueError: Besides shapes: ``x`` has more than two dimensions, a value is not finite, a weight is negative,
                or there is no unique solution and none of minimum norm was asked for.
        """
        checked, y_checked, w, _ = self._rows("fit", x, y, weights)
        if max(checked.ndim, y_checked.ndim, 2 if w is None else w.ndim + 1) > 2:
            got = f"shapes {checked.shape} and {y_checked.shape}"
            self._fail("x and y must have two dimensions", got, "Reshape to rows; solve takes batches.", "fit")
        with on_cpu():
            for label, values in [("x", checked), ("y", y_checked), ("weights", w)]:
                if values is not None and not all_true(mx.isfinite(values)):
                    self._fail(f"{label} must be finite", "NaN or Inf", "Remove those rows.", "fit")
            if w is not None and not all_true(w >= 0):
                self._fail("weights must be non-negative", "a negative one", "Remove rows by weight 0.", "fit")
        weight, bias = self.solve(x, y, weights)
        mx.eval(weight, bias)
        with on_cpu():
            if not all_true(mx.isfinite(weight)):
                rule, remedy = "the problem must have a unique solution", "Pass l2=0 for that of minimum norm."
                self._fail(rule, f"a singular one with l2={self.l2}", remedy, "fit")
        with on_cpu():  # As if read from a file: the last bit of a product depends on that.
            self.weight = mx.contiguous(weight)
            mx.eval(self.weight)
        if bias is not None:
            self.bias = bias
        return self

    def solve(
        self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None
    ) -> tuple[mx.array, mx.array | None]:
        """The fit as ``(weight, bias)``, differentiable and without state; bias is None if the layer has none.

        Args:
            x: ``(..., m, n)``.
            y: ``(..., m, k)`` or ``(m,)``.
            weights: ``(..., m)`` or None.

        Returns:
            ``(..., k, n)`` and ``(..., k)``; NaN where the problem is singular.
        """
        p, _ = self._problem("solve", x, y, weights)
        with large(p.a.dtype):
            solution = solve(p)
            weight = solution.mT.astype(p.out_dtype)
            if p.means is None:
                return weight, None
            x_mean, y_mean = p.means
            return weight, (y_mean - matmul(x_mean, solution))[..., 0, :].astype(p.out_dtype)

    def adapt(
        self, x: ArrayLike, y: ArrayLike, x_query: ArrayLike, weights: ArrayLike | None = None
    ) -> mx.array:
        """FactoredProblem on ``(x, y)`` and predict for ``x_query``, differentiable from end to end and without state.

        Args:
            x: Support ``(..., m, n)``.
            y: Its targets, ``(..., m, k)`` or ``(m,)``.
            x_query: ``(..., q, n)``.
            weights: ``(..., m)`` or None.

        Returns:
            ``(..., q, k)``, or ``(..., q)`` if ``y`` is a vector.
        """
        p, vector = self._problem("adapt", x, y, weights)
        x_query = features(f"{type(self).__name__}.adapt", "x_query", x_query, self._dims[0])
        with large(p.a.dtype):
            x_query = x_query.astype(p.a.dtype)
            solution = solve(p)
            x_mean, y_mean = p.means or (0, 0)
            out = (matmul(x_query - x_mean, solution) + y_mean).astype(p.out_dtype)
            return out[..., 0] if vector else out

    def projected_loss(self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> mx.array:
        """The objective, penalty included, at its minimum over weight and bias, divided by m k: ``(...)``.

        The loss of variable projection: what is trained by it sees the best readout at every step. With a penalty its
        gradient is that of the objective at the solution, and nothing is solved for it (the envelope theorem). It is
        right at every order.

        Args:
            x: ``(..., m, n)``.
            y: ``(..., m, k)`` or ``(m,)``.
            weights: ``(..., m)`` or None.
        """
        p, _ = self._problem("projected_loss", x, y, weights)
        loss = smallest_objective(p)
        with large(loss.dtype):
            return (loss / (p.b.shape[-2] * p.b.shape[-1])).astype(p.out_dtype)

    def loo_predictions(
        self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None, removed: Removed = "row"
    ) -> mx.array:
        """What the fit to all other rows predicts for each row: exact leave-one-out, without a second fit.

        Differentiable at every order in ``x``, ``y``, ``weights`` and ``l2``. The intercept is theirs, too.

        Args:
            x: ``(..., m, n)``.
            y: ``(..., m, k)`` or ``(m,)``.
            weights: ``(..., m)`` or None. Rows of weight 0 take no part in any fit, but have predictions.
            removed: ``"row"`` leaves the whole row out; ``"unit"`` takes weight 1 from it, or all that it has if that
                is less: of a row of weight 2, one of two copies stays in the fit.

        Returns:
            Of the shape of ``y``. NaN for a row without which no fit is determined: the only one of positive weight,
            or, where an array ``l2`` holds zeros, the only one that carries a feature.

        References:
            D. M. Allen, The relationship between variable selection and data augmentation and a method for prediction,
            Technometrics 16 (1974), doi 10.1080/00401706.1974.10489157. The derivation: docs/math.md.
        """
        p, e, vector = self._errors("loo_predictions", x, y, weights, removed)
        with on_cpu():
            target = astype(p.b, mx.float64) + (astype(p.means[1], mx.float64) if p.means else 0)
            out = (target - e).astype(p.out_dtype)
            return out[..., 0] if vector else out

    def loo_loss(
        self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None, removed: Removed = "row"
    ) -> mx.array:
        """Mean squared error of :meth:`loo_predictions`, ``(...)``: ``sum(w * e**2) / (k * sum(w))``."""
        p, e, _ = self._errors("loo_loss", x, y, weights, removed)
        with on_cpu():
            e = e * e if p.w is None else astype(p.w, mx.float64)[..., None] * e * e
            return (mx.sum(e, axis=(-2, -1)) / (e.shape[-1] * p.total_weight)).astype(p.out_dtype)

    def _errors(
        self, method: str, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None, removed: str
    ) -> tuple[ReadoutProblem, mx.array, bool]:
        if removed not in ("row", "unit"):
            self._fail('removed must be "row" or "unit"', f"{removed!r}", 'Take "row".', method)
        p, vector = self._problem(method, x, y, weights, exact=True)
        return p, errors(p, removed), vector

    def gcv(self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> mx.array:
        r"""Generalized cross validation score, ``(...)``; the smaller, the better ``l2``.

        .. math::
            \frac1k \sum_t \frac{M\,\mathrm{RSS}_t}{(M - \mathrm{df}_t)^2}, \qquad
            \mathrm{df}_t = \mathrm{tr}\,K (K + \mathrm{diag}\,l_t)^{-1} + [\text{intercept}]

        with M the sum of the weights (number of rows), K the Gram matrix of the centred rows, and RSS the weighted sums
        of squared residuals. NaN unless every df is below M. Differentiable as :meth:`loo_loss`.

        References:
            G. H. Golub, M. Heath and G. Wahba, Technometrics 21 (1979), Eq. 1.4, doi 10.1080/00401706.1979.10489751.
        """
        p, _ = self._problem("gcv", x, y, weights, exact=True)
        score = validation_score(p)
        with on_cpu():
            return score.astype(p.out_dtype)

    def uncertainty(self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> Uncertainty:
        """How sure the fit to ``(x, y)`` is of its weights and predictions, differentiable and without state.

        Args:
            x: ``(..., m, n)``. Problems with m < n cost O(n^3), too.
            y: ``(..., m, k)`` or ``(m,)``.
            weights: ``(..., m)`` or None. They count rows: degrees of freedom are sums of weights.

        Returns:
            An :class:`Uncertainty`. NaN where no degree of freedom is left.
        """
        p, _ = self._problem("uncertainty", x, y, weights, exact=True)
        return uncertainty(p)

    def to_linear(self) -> nn.Linear:
        """An ``nn.Linear`` with the stored weights."""
        linear = nn.Linear(*self._dims, bias="bias" in self)
        linear.weight = self.weight
        if "bias" in self:
            linear.bias = self.bias
        return linear


class _Frozen(set):
    """The frozen parameters of a module, of which the first ones stay frozen.

    An override of ``unfreeze`` would not do: that of a parent module reaches into this set.
    """

    def __init__(self, names: set[str]) -> None:
        super().__init__(names)
        self.always = frozenset(names)

    def clear(self) -> None:
        self.intersection_update(self.always)

    def difference_update(self, *others: Iterable[Any]) -> None:
        super().difference_update(*others)
        self.update(self.always)


def all_true(condition: mx.array) -> bool:
    """Whether every entry is true. Evaluates."""
    return bool(mx.all(condition, stream=mx.cpu).item())
