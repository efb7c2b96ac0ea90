"""A linear layer whose weights are a least-squares fit."""

from typing import TYPE_CHECKING, Literal, TypeAlias

import mlx.core as mx

from .._mlx import astype, checks, dtypes, large, matmul, on_cpu
from .._types import ArrayLike, Bounds, Penalty, ReadoutMethod
from ._base import Readout, all_true
from ._bounds import checked as checked_bounds
from ._evidence import check_variance, log_evidence
from ._leave_one_out import errors, nan_for_other_rows, predictions, validation_score
from ._problem import ReadoutProblem, centred, check_rows, features
from ._solution import predict, rank_and_condition, smallest_objectives, solve
from ._targets import Part, Problems, check_mask, columns_of_bounds, masked, parts_of
from ._uncertainty import Uncertainty, uncertainty

if TYPE_CHECKING:
    from typing_extensions import Self


#: What leaving a row out takes away: the whole row, or weight 1 of it.
Removed: TypeAlias = Literal["row", "unit"]


#: What a weight of :meth:`LeastSquaresReadout.uncertainty` says about its row.
WeightsAre: TypeAlias = Literal["counts", "precisions", "inverse variances"]


class LeastSquaresReadout(Readout):
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

    Some traps:

    - Weight decay (``optim.AdamW``) pulls ``log_l2`` to 0, that is a learned ``l2`` to 1. Train ``log_l2`` without it:
      by ``optim.Adam``, or in a group of its own of ``optim.MultiOptimizer``.
    - ``save_weights`` writes parameters: ``weight``, ``bias`` and a learned ``log_l2``. A fixed ``l2`` is an argument,
      like ``input_dims``: pass it again to the layer that loads them.
    - Weights many orders of magnitude apart, 1e18 beside ones, leave the other rows below the rounding error of the
      largest one, without an error. :attr:`rank` after :meth:`fit` then is less than the number of features.
    - On Linux the first call of a compiled step translates its kernels by the C++ compiler, up to a minute, and does
      not hang. Later calls take milliseconds.

    Args:
        input_dims (int): Number of input features n.
        output_dims (int): Number of targets k.
        l2 (float or array, optional): Penalty: a number, ``(k,)`` per target, ``(n, 1)`` per feature, or ``(n, k)``.
            The number 0 means the solution of minimum norm; where an array holds 0 a singular problem gives NaN.
            Default: ``0.0``.
        bias (bool, optional): Whether there is an intercept. Default: ``True``.
        learn_l2 (bool, optional): Make ``l2`` a trainable parameter by its logarithm, ``log_l2``. Default: ``False``.
        method (str, optional): ``"cholesky"`` promises that the (centred, weighted) features have full rank, or a
            penalty: no singular vectors are taken, in a compiled step neither, which is several times faster there.
            NaN where the promise cannot be verified, or where leave-one-out would have too few digits. ``"auto"``
            evaluates its arguments to decide; where it cannot, inside ``mx.compile`` and ``mx.vmap``, it needs no
            promise for float32 rows with one positive ``l2``. Default: ``"auto"``.
        bounds (tuple, optional): ``(lower, upper)`` of the weights, as in :func:`pinvnn.lsq_linear`: each a number,
            None, or an array of a shape that ``l2`` may have; ``(0, None)`` for weights that are not negative. The
            intercept is free. Without a penalty a solution of minimum norm is not promised. Leave-one-out figures are
            those of refits of the weights that are free in the fit to all rows: the others stay on their bounds, which
            is exact if without the row the same ones would be there. :meth:`gcv`, :meth:`uncertainty` and
            :meth:`log_evidence` know no bounds. Default: ``None``.

    Shape:
        - x: ``(..., m, n)``. Leading dimensions are separate problems (episodes), except for :meth:`fit` and
          ``__call__``; :func:`mlx.core.vmap` serves as well.
        - y: ``(..., m, k)``; or ``(m,)`` if k is 1, and predictions for it are then vectors, too.
        - weights: ``(..., m)``, non-negative; weight 2 equals the row given twice. A row of weight 0 takes no part in
          any fit, loss or score, whatever it holds, NaN included. Rows whose weights sum to 0 give zeros, as no rows
          do.
        - mask: ``(..., m, k)`` boolean, False where a target is not known: each target is fitted to the rows where it
          is. The targets that are not known may hold anything.
        - Integers become float32; those beyond 2^24 that it cannot hold are refused where values can be evaluated.
        - Solutions and predictions of half input are of its dtype; losses, scores and variances are float32.
        - weight: ``(..., k, n)`` and bias: ``(..., k)``, as in ``nn.Linear``.

    Attributes:
        weight (array): ``(k, n)``, set by :meth:`fit`.
        bias (array): ``(k,)``; there is none with ``bias=False``.
        learn_l2 (bool): Whether ``l2`` is learned.
        log_l2 (array): Logarithm of the penalty, a trainable parameter; there is none with ``learn_l2=False``.

    Raises:
        ValueError: If shapes do not fit, ``l2`` is negative, a learnable ``l2`` is not positive, or ``"cholesky"``
            without a penalty meets fewer rows than unknowns, or bounds leave no room.
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

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        l2: Penalty = 0.0,
        bias: bool = True,
        learn_l2: bool = False,
        method: ReadoutMethod = "auto",
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__(input_dims, output_dims, l2, bias, learn_l2)
        if method not in ("auto", "cholesky"):
            self._fail("method must be 'auto' or 'cholesky'", f"{method!r}", "Use 'auto'.")
        self._method: ReadoutMethod = method
        self._bounds = checked_bounds(type(self).__name__, bounds, *self._dims)
        if bounds is not None and method != "auto":
            self._fail("with bounds method must be 'auto'", f"{method!r}", "Use 'auto', or no bounds.")
        self._fitted: tuple[int, float] | None = None

    def _extra_repr(self) -> str:
        found = "" if self.rank is None else f", rank={self.rank}, cond={self.cond:.3g}"
        within = "" if self._bounds is None else f", bounds={tuple(_shown(bound) for bound in self._bounds)}"
        return super()._extra_repr() + within + found

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
        l2, bias = self._checked_penalty(method, x), "bias" in self
        double = exact and x.shape[-2] <= 2 * x.shape[-1]
        p = centred(x, y, weights, l2, bias, double, self._method)
        return p._replace(bounds=self._bounds), vector

    def _refuse_bounds(self, method: str) -> None:
        if self._bounds is not None:
            remedy = "Use loo_loss, or a readout without bounds."
            self._fail(f"{method} is for readouts without bounds", f"bounds={self._bounds}", remedy, method)

    def _checked_penalty(self, method: str, x: mx.array) -> mx.array | None:
        """The penalty; raises where "cholesky" cannot do without one."""
        l2, least = self._penalty(), self._dims[0] + ("bias" in self)
        if l2 is None and self._method == "cholesky" and x.shape[-2] < least:
            rule = f"method 'cholesky' needs at least {least} rows without a penalty"
            self._fail(rule, f"{x.shape[-2]}", "Use 'auto', or a penalty.", method)
        return l2

    def _problems(
        self,
        method: str,
        x: ArrayLike,
        y: ArrayLike,
        weights: ArrayLike | None,
        mask: ArrayLike | None,
        exact: bool = False,
    ) -> Problems:
        """The centred problems of targets that are known for the same rows."""
        x, y, weights, vector = self._rows(method, x, y, weights)
        whole = x, y, weights, self._checked_penalty(method, x)
        double = exact and x.shape[-2] <= 2 * x.shape[-1]
        if mask is None:
            parts, rows = [Part(tuple(range(y.shape[-1])), mx.array(True))], [whole]
        else:
            known = check_mask(f"{type(self).__name__}.{method}", mask, y, vector)
            parts = parts_of(known)
            rows = [masked(part, *whole) for part in parts]

        def problem(i: int, double: bool, without: mx.array | None = None) -> ReadoutProblem:
            p = centred(*rows[i], "bias" in self, double, self._method, without)
            return p if self._bounds is None else p._replace(bounds=columns_of_bounds(self._bounds, parts[i]))

        return Problems(parts, [problem(i, double) for i in range(len(parts))], problem, vector)

    def fit(
        self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> "Self":
        """Solve for ``weight`` and ``bias``, store them, and return the layer. Eager: not for use in a transformation.

        The stored arrays are float64 if ``x`` or ``y`` is. Otherwise they are float32 whatever half precision the
        features have, unless the layer itself was cast to half precision (``set_dtype``): then they keep its dtype.
        Afterwards :attr:`rank` and :attr:`cond` tell whether the data determined the weights.

        Args:
            x: ``(m, n)``.
            y: ``(m, k)``, or ``(m,)`` if k is 1.
            weights: ``(m,)`` or None.
            mask: ``(m, k)``, False where a target is not known, or None.

        Raises:
            ValueError: If ``x`` has more than two dimensions, a row of positive weight is not finite, a weight is
                negative or their sum overflows, integers are beyond float32, there is no unique solution and none of
                minimum norm was asked for, or it is called inside of ``mx.compile`` or ``mx.vmap``.
        """
        checked, targets, w, vector = self._rows("fit", x, y, weights)
        if max(checked.ndim, targets.ndim, 2 if w is None else w.ndim + 1) > 2:
            got = f"shapes {checked.shape} and {targets.shape}"
            self._fail("x and y must have two dimensions", got, "Reshape to rows; solve takes batches.", "fit")
        self._check_eager(checked, targets, w)
        known = None if mask is None else check_mask(f"{type(self).__name__}.fit", mask, targets, vector)
        self._check_values(checked, targets, w, known)
        problems = self._problems("fit", x, y, weights, mask)
        weight, bias = self._solution(problems, self._stored_dtype(checked, targets))
        found = [rank_and_condition(p) for p in problems.centred]
        mx.eval(weight, bias)
        with on_cpu():
            if not all_true(mx.isfinite(weight)):
                rule, remedy = "the problem must have a unique solution", "Pass l2=0 for that of minimum norm."
                self._fail(rule, f"a singular one with l2={self.l2}", remedy, "fit")
        self._store(weight, bias)
        ranks, conditions = zip(*found, strict=True)
        self._fitted = min(ranks), max(conditions)
        return self

    def _check_values(self, x: mx.array, y: mx.array, w: mx.array | None, known: mx.array | None) -> None:
        """Raise at values that no fit can have: rows of weight 0 and unknown targets may hold anything."""
        with on_cpu():
            if w is not None:
                if not all_true(w >= 0):
                    self._fail("weights must be non-negative", "a negative one", "Remove rows by weight 0.", "fit")
                total = mx.sum(w)
                if not mx.isfinite(total).item():
                    remedy = "Divide them by the largest."
                    self._fail("weights must have a finite sum", f"{total.item()} in {w.dtype}", remedy, "fit")
            used = mx.ones((x.shape[0],), mx.bool_) if w is None else w > 0
            used = used[:, None] if known is None else mx.logical_and(used[:, None], known)
            for label, good in [
                ("x", mx.logical_or(mx.isfinite(x), ~mx.any(used, axis=-1, keepdims=True))),
                ("y", mx.logical_or(mx.isfinite(y), ~used)),
            ]:
                if not all_true(good):
                    remedy = "Remove those rows, or give them weight 0."
                    if label == "y":
                        remedy = "Remove those rows, give them weight 0, or pass a mask of the known targets."
                    self._fail(f"{label} must be finite", "NaN or Inf", remedy, "fit")

    def _stored_dtype(self, x: mx.array, y: mx.array) -> mx.Dtype:
        work = dtypes.working(x, y)
        return self.weight.dtype if work == mx.float32 and self.weight.dtype in (mx.float16, mx.bfloat16) else work

    @property
    def rank(self) -> int | None:
        """Rank of the features that :meth:`fit` saw, centred and weighted, by the cutoff of :func:`pinvnn.lstsq`.

        Less than the number of features: the data leave weights open, which minimum norm or the penalty decided. With a
        ``mask`` the smallest rank over the targets. None before the first fit.
        """
        return None if self._fitted is None else self._fitted[0]

    @property
    def cond(self) -> float | None:
        """Ratio of the largest to the smallest singular value that counts for :attr:`rank`. None before the first fit.

        With a ``mask`` the largest ratio over the targets.
        """
        return None if self._fitted is None else self._fitted[1]

    def solve(
        self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> tuple[mx.array, mx.array | None]:
        """The fit as ``(weight, bias)``, differentiable and without state; bias is None if the layer has none.

        Args:
            x: ``(..., m, n)``.
            y: ``(..., m, k)`` or ``(m,)``.
            weights: ``(..., m)`` or None.
            mask: ``(..., m, k)`` boolean, False where a target is not known, or None. Costs one factorization for each
                distinct column; inside of ``mx.compile`` and ``mx.vmap``, one for each column.

        Returns:
            ``(..., k, n)`` and ``(..., k)``; NaN where the problem is singular.
        """
        return self._solution(self._problems("solve", x, y, weights, mask))

    def _solution(
        self, problems: Problems, dtype: mx.Dtype | None = None
    ) -> tuple[mx.array, mx.array | None]:
        """Weight and bias in ``dtype``, by default that of the input."""
        weights, biases = [], []
        for p in problems.centred:
            with large(p.a.dtype):
                solution = solve(p)
                weights.append(solution)
                if p.means is not None:
                    x_mean, y_mean = p.means()
                    biases.append(y_mean - matmul(x_mean, solution))
        dtype = dtype or problems.centred[0].out_dtype
        weight = astype(problems.in_order(weights), dtype)
        bias = astype(problems.in_order(biases), dtype) if biases else None
        with large(dtype):
            return weight.mT, None if bias is None else bias[..., 0, :]

    def adapt(
        self,
        x: ArrayLike,
        y: ArrayLike,
        x_query: ArrayLike,
        weights: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> mx.array:
        """Fit on ``(x, y)`` and predict for ``x_query``, differentiable from end to end and without state.

        Args:
            x: Support ``(..., m, n)``.
            y: Its targets, ``(..., m, k)`` or ``(m,)``.
            x_query: ``(..., q, n)``.
            weights: ``(..., m)`` or None.
            mask: As in :meth:`solve`.

        Returns:
            ``(..., q, k)``, or ``(..., q)`` if ``y`` is a vector.
        """
        problems = self._problems("adapt", x, y, weights, mask)
        x_query = features(f"{type(self).__name__}.adapt", "x_query", x_query, self._dims[0])
        with large(dtypes.working(x_query)):
            query = x_query[..., None, :, :] if problems.stacked else x_query
        outputs = [predict(p, query) for p in problems.centred]
        out = astype(problems.in_order(outputs), problems.centred[0].out_dtype)
        with large(out.dtype):
            return out[..., 0] if problems.vector else out

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
        losses = smallest_objectives(p)
        with on_cpu():
            return (mx.sum(losses, axis=-1) / (p.b.shape[-2] * p.b.shape[-1])).astype(p.entry_dtype)

    def loo_predictions(
        self,
        x: ArrayLike,
        y: ArrayLike,
        weights: ArrayLike | None = None,
        removed: Removed = "row",
        mask: ArrayLike | None = None,
    ) -> mx.array:
        """What the fit to all other rows predicts for each row: exact leave-one-out, without a second fit.

        Differentiable at every order in ``x``, ``y``, ``weights`` and ``l2``. The intercept is theirs, too.

        A row that is much larger than all others leaves almost nothing of its weight. Where rounding would take the
        digits of its error, it is refitted without the row. That needs values: inside ``mx.compile`` and ``mx.vmap``
        such a row is NaN, from about 1e7 times the size of the others on. There, float32 rows that are more than twice
        as many as the features and have a penalty are NaN from about 1e3 times on, and their gradient is from 300 times
        on: pass float64, or call it outside of the transformation.

        Args:
            x: ``(..., m, n)``.
            y: ``(..., m, k)`` or ``(m,)``.
            weights: ``(..., m)`` or None. Rows of weight 0 take no part in any fit, but have predictions.
            removed: ``"row"`` leaves the whole row out; ``"unit"`` takes weight 1 from it, or all that it has if that
                is less: of a row of weight 2, one of two copies stays in the fit.
            mask: As in :meth:`solve`. Where a target is not known, the prediction is that of the fit to the known ones.

        Returns:
            Of the shape of ``y``. NaN for a row without which no fit is determined: the only one of positive weight,
            or, where an array ``l2`` holds zeros, the only one that carries a feature.

        References:
            D. M. Allen, The relationship between variable selection and data augmentation and a method for prediction,
            Technometrics 16 (1974), doi 10.1080/00401706.1974.10489157. The derivation: docs/math.md.
        """
        problems, errors_of = self._errors("loo_predictions", x, y, weights, removed, mask)
        # Targets that were centred in float32 have lost digits of their rows, if one is much larger than the others.
        exact = [
            p if p.b.dtype == mx.float64 else problems.centre(i, True, None) for i, p in enumerate(problems.centred)
        ]
        out = problems.in_order([predictions(*pair) for pair in zip(exact, errors_of, strict=True)])
        if weights is not None or mask is not None:
            out = nan_for_other_rows(out, checks.array(type(self).__name__, "x", x))
        with on_cpu():
            out = out.astype(problems.centred[0].out_dtype)
            return out[..., 0] if problems.vector else out

    def loo_loss(
        self,
        x: ArrayLike,
        y: ArrayLike,
        weights: ArrayLike | None = None,
        removed: Removed = "row",
        mask: ArrayLike | None = None,
    ) -> mx.array:
        """Mean squared error of :meth:`loo_predictions`, ``(...)``: ``sum(w * e**2) / (k * sum(w))``.

        With a mask it is the mean over the known targets, ``sum(w * mask * e**2) / sum(w * mask)``. float32 for half
        input, whose squares overflow. For rows that are much larger than all others see :meth:`loo_predictions`.
        """
        problems, errors_of = self._errors("loo_loss", x, y, weights, removed, mask)
        squares, weight = [], []
        for p, e in zip(problems.centred, errors_of, strict=True):
            with on_cpu():
                e = e * e if p.w is None else astype(p.w, mx.float64)[..., None] * e * e
                axes = (-3, -2, -1) if problems.stacked else (-2, -1)
                squares.append(mx.sum(e, axis=axes))
                total = p.total_weight * e.shape[-1]
                weight.append(mx.sum(total, axis=-1) if problems.stacked else total)
        with on_cpu():
            loss = sum(squares[1:], squares[0]) / sum(weight[1:], weight[0])
            return loss.astype(problems.centred[0].entry_dtype)

    def _errors(
        self,
        method: str,
        x: ArrayLike,
        y: ArrayLike,
        weights: ArrayLike | None,
        removed: str,
        mask: ArrayLike | None,
    ) -> tuple[Problems, list[mx.array]]:
        problems = self._problems(method, x, y, weights, mask, exact=True)
        part = self._part(method, weights, removed)
        if part is not None and problems.stacked:
            with on_cpu():
                part = part[..., None, :]
        return problems, [
            errors(p, part, lambda without, i=i: problems.centre(i, True, without))
            for i, p in enumerate(problems.centred)
        ]

    def _part(self, method: str, weights: ArrayLike | None, removed: str) -> mx.array | None:
        """The part of each row's weight that is left out, ``(..., m)`` in float64; None for all of it."""
        if removed not in ("row", "unit"):
            self._fail('removed must be "row" or "unit"', f"{removed!r}", 'Take "row".', method)
        if removed == "row" or weights is None:
            return None
        w = checks.real_array(f"{type(self).__name__}.{method}", "weights", weights, mx.float64)
        with on_cpu():
            return mx.minimum(w, 1) / mx.where(w > 0, w, 1)

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
        self._refuse_bounds("gcv")
        p, _ = self._problem("gcv", x, y, weights, exact=True)
        score = validation_score(p)
        with on_cpu():
            return score.astype(p.entry_dtype)

    def log_evidence(
        self,
        x: ArrayLike,
        y: ArrayLike,
        weights: ArrayLike | None = None,
        *,
        noise_variance: ArrayLike | None = None,
    ) -> mx.array:
        r"""Log marginal likelihood of Bayesian ridge regression, summed over the targets, ``(...)``; larger is better.

        The probability density of the targets when the weights are not fitted but integrated out:

        .. math::
            y_{it} \sim N(W_t x_i + c_t,\ \sigma_t^2), \qquad W_{tj} \sim N(0,\ \sigma_t^2 / l_{tj})

        with flat priors on the intercepts. It grows with the fit and falls with the number of directions in feature
        space that the penalty leaves free, so that its maximum chooses ``l2``, and features, by the training rows
        alone: beside :meth:`loo_loss` the other loss without a validation split. Divide by m k for a mean.

        The noise variance is integrated out, too, with its scale-invariant prior :math:`1 / \sigma_t^2`: the result is
        then the density of a multivariate Student distribution, and depends on the units of ``y`` by a constant only.
        (To put in the variance that maximizes it would treat as known what the same rows have to tell.) A given
        ``noise_variance`` makes it the normal density that scikit-learn's ``BayesianRidge`` reports, whose ``alpha_``
        is :math:`1 / \sigma^2` and whose ``lambda_`` is :math:`l / \sigma^2`; but for the intercept, which is
        integrated out here and set to its estimate there.

        Differentiable at every order in ``x``, ``y``, ``weights``, ``l2`` and ``noise_variance``.

        Args:
            x: ``(..., m, n)``.
            y: ``(..., m, k)`` or ``(m,)``.
            weights: ``(..., m)`` or None. Weight 2 is the row given twice.
            noise_variance: :math:`\sigma^2`: a number, or ``(..., k)`` per target; None to integrate it out.

        Returns:
            ``(...)``, float32 for half input. -inf where an array ``l2`` holds 0: a flat prior expects no data at all.
            NaN where the penalty is below the rounding error of a singular problem; and, where the noise variance is
            integrated out, unless the weights sum to more than 1 (0 without an intercept).

        Raises:
            ValueError: If ``l2`` is the number 0, or ``noise_variance`` is a number that is not positive.

        References:
            D. J. C. MacKay, Bayesian interpolation, Neural Computation 4 (1992), doi 10.1162/neco.1992.4.3.415.
            C. M. Bishop, Pattern recognition and machine learning, Springer 2006, Eq. 3.86. The derivation:
            docs/math.md.
        """
        if self._penalty() is None:
            remedy = "Pass a positive one; a small one is a wide prior."
            self._fail("l2 must be positive, since it is the prior", f"{self.l2}", remedy, "log_evidence")
        variance = check_variance(f"{type(self).__name__}.log_evidence", noise_variance, self._dims[1])
        self._refuse_bounds("log_evidence")
        p, _ = self._problem("log_evidence", x, y, weights, exact=True)
        evidence = log_evidence(p, variance)
        with on_cpu():
            return evidence.astype(p.entry_dtype)

    def uncertainty(
        self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None, *, weights_are: WeightsAre = "counts"
    ) -> Uncertainty:
        r"""How sure the fit to ``(x, y)`` is of its weights and predictions, differentiable and without state.

        The same weights give the same fit but different standard errors, according to what is known about them:

        ========================  =================================================  ================================
        ``weights_are``           Weight 2 says                                      Residual variance
        ========================  =================================================  ================================
        ``"counts"``              the row was observed twice                         RSS / (sum of weights - df)
        ``"precisions"``          half the variance of a row of weight 1             RSS / (number of rows - df)
        ``"inverse variances"``   the variance is 1/2: weights are 1 / sigma^2       1
        ========================  =================================================  ================================

        with RSS the weighted sum of squared residuals and df the degrees of freedom that the fit has used. statsmodels
        calls the second ``WLS``, SciPy's ``curve_fit`` the last two ``absolute_sigma=False`` and ``True``;
        :func:`pinvnn.varpro.varpro` takes the same argument.

        Args:
            x: ``(..., m, n)``. Problems with m < n cost O(n^3), too.
            y: ``(..., m, k)`` or ``(m,)``.
            weights: ``(..., m)`` or None. Rows of weight 0 are no rows.
            weights_are: What the weights are, see above.

        Returns:
            An :class:`Uncertainty`, in float32 for half input. NaN where the residual variance is estimated and no
            degree of freedom is left.

        Raises:
            ValueError: If ``weights_are`` is something else.
        """
        if weights_are not in ("counts", "precisions", "inverse variances"):
            rule = 'weights_are must be "counts", "precisions" or "inverse variances"'
            remedy = 'Take "precisions" for weights 1 / sigma^2 up to a factor.'
            self._fail(rule, f"{weights_are!r}", remedy, "uncertainty")
        self._refuse_bounds("uncertainty")
        p, _ = self._problem("uncertainty", x, y, weights, exact=True)
        return uncertainty(p, weights_are)


def _shown(bound) -> object:
    return f"array{bound.shape}" if isinstance(bound, mx.array) else bound
