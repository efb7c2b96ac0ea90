"""Logistic regression as a layer: fitted in the forward pass, with the gradient of the exact minimizer."""

from typing import TYPE_CHECKING, Literal

import mlx.core as mx
import numpy as np

from .._mlx import astype, checks, dtypes, on_cpu
from .._rules import logistic
from .._types import ArrayLike, Penalty
from ._balance import of_own_class, without_each, without_one_of_a_class
from ._labels import LabelReadout
from ._logistic_rows import Rows, fit, nan_where_alone, one_step, predicted, uncentred, worst_refitted
from ._problem import features

if TYPE_CHECKING:
    from typing_extensions import Self

# Largest (n + 1) c for leave-one-out, which forms and inverts the Hessian.
_LARGEST_HESSIAN = 5000


class LogisticReadout(LabelReadout):
    r"""Multinomial logistic regression in closed loop: a linear classifier that is fitted in the forward pass.

    .. math::
        \min_{W, c} \sum_i w_i\,\mathrm{CE}(y_i, \mathrm{softmax}(W x_i + c)) + \tfrac12 \sum_{t,j} l_{tj}\,W_{tj}^2

    A sum and not a mean; the intercept ``c`` is never penalised. This is scikit-learn's ``LogisticRegression`` with
    ``C = 1 / l2`` (for two classes, which it writes with one vector w where the softmax has +w/2 and -w/2,
    ``C = 2 / l2``). Where no penalty decides, weights and intercepts sum to 0 over the classes.

    Newton's method finds the minimizer, in float64 on the CPU whatever the dtype and the default device. The gradient
    is that of the minimizer itself, by the implicit function theorem: right at every order, at the cost of one Newton
    step, whatever the number of steps. Outside of ``mx.compile`` and ``mx.vmap`` as many steps are taken as are needed,
    inside of them 24. Both sufficed for separable classes down to ``l2=1e-12`` where they were 10 to 100 spreads apart
    in trials, and down to 1e-10 where it was 2. What does not converge is NaN. Up to (n + 1) c = 1200 the Hessian is
    factored; beyond, conjugate gradients solve with it, preconditioned by the Hessian that the rows have in the mean
    (or, where penalties differ, Boehning's bound), and memory stays of the order of the data. Large problems with
    visible values begin with quasi-Newton steps, and where all features share one penalty, the products of both are of
    float32; the gradient that is brought to 0 is always of float64. With a penalty on all features g^T L^-1 g bounds
    the decrement: where that is small, no Newton step follows. With fewer rows than features, and one penalty for
    all of these, the problem is solved in the space of the rows: episodes of few shots cost milliseconds.

    There are the same ways to use it as with :class:`LeastSquaresReadout`: :meth:`fit` stores the weights;
    :meth:`adapt`, :meth:`projected_loss` and :meth:`loo_loss` differentiate through the fit.

    Args:
        input_dims (int): Number of input features n.
        num_classes (int): Number of classes c, at least 2.
        l2 (float or array, optional): Penalty: a number, ``(c,)`` per class, ``(n, 1)`` per feature, or ``(n, c)``.
            Default: ``1.0``.
        bias (bool, optional): Whether there is an intercept. Default: ``True``.
        learn_l2 (bool, optional): Make ``l2`` a trainable parameter by its logarithm, ``log_l2``. Default: ``False``.
        class_weights (array or str, optional): As in :class:`RidgeClassifier`. Default: ``None``.

    Shape:
        - x: ``(..., m, n)``. Leading dimensions are separate problems (episodes), except for :meth:`fit` and
          ``__call__``; :func:`mlx.core.vmap` serves as well.
        - labels: ``(..., m)`` integers from 0 to c - 1; others give NaN.
        - weights: ``(..., m)``, non-negative; multiplied by those of the classes. A row of weight 0 takes no part.
        - weight: ``(..., c, n)`` and bias: ``(..., c)``, as in ``nn.Linear``.

    There is no minimizer, or more than one, and NaN, where a class has no row (its intercept goes to minus infinity;
    not with ``bias=False``), and where features with ``l2 = 0`` are collinear, separate the classes, or separate some
    from others that overlap. The last is told from a minimum by the Hessian, up to 1200 such features times classes.
    Beyond, and inside of ``mx.compile`` and ``mx.vmap`` if it is several classes, large weights may pass for a
    minimizer.

    Raises:
        ValueError: If shapes do not fit, ``l2`` is negative, or a learnable ``l2`` is not positive.
        TypeError: If labels are not integers, or an argument is not array-like.

    Examples:
        >>> import mlx.core as mx
        >>> from pinvnn.nn import LogisticReadout
        >>> x, labels = mx.array([[-2.0], [-1.0], [1.0], [2.0]]), mx.array([0, 0, 1, 1])
        >>> readout = LogisticReadout(1, 2).fit(x, labels)
        >>> readout.predict(mx.array([[-1.5], [0.5]]))
        array([0, 1], dtype=uint32)

    References:
        D. Boehning, Multinomial logistic regression algorithm, Ann. Inst. Statist. Math. 44 (1992), 197-200, doi
        10.1007/BF00048682. The derivatives: docs/math.md.
    """

    def __init__(
        self,
        input_dims: int,
        num_classes: int,
        l2: Penalty = 1.0,
        bias: bool = True,
        learn_l2: bool = False,
        class_weights: ArrayLike | Literal["balanced"] | None = None,
    ) -> None:
        super().__init__(input_dims, num_classes, l2, bias, learn_l2)
        self._class_weights = self._checked_class_weights(class_weights, self._dims[1])
        if self._dims[1] < 2:
            self._fail("num_classes must be at least 2", f"{num_classes}", "One class needs no classifier.")
        self._steps, self._reason = 0, "not fitted"

    @property
    def steps(self) -> int:
        """Newton steps of the last :meth:`fit`. A large problem starts with quasi-Newton steps; they do not count."""
        return self._steps

    @property
    def reason(self) -> str:
        """What ended the last :meth:`fit`, in words."""
        return self._reason

    def _problem(self, method: str, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None) -> Rows:
        x, hot, weights = self._labelled_rows(f"{type(self).__name__}.{method}", x, y, weights)
        return self._posed(x, hot, self._weighed(hot, weights, mx.float64))

    def _posed(self, x: mx.array, hot: mx.array, w: mx.array | None) -> Rows:
        """The problem of rows, one-hot labels and weights that have been checked; class weights count no more."""
        out = dtypes.working(x)
        with on_cpu():
            weighted, x, known = w is not None, astype(x, mx.float64), mx.any(hot, axis=-1, keepdims=True)
            w = mx.ones((x.shape[-2],), mx.float64) if w is None else astype(w, mx.float64)
            if weighted:
                unused = (w == 0)[..., None]
                known = mx.logical_or(known, unused)
                x = mx.where(unused, mx.zeros_like(x), x)  # whatever it holds, NaN included
            y = mx.where(known, hot.astype(mx.float64), mx.array(float("nan"), mx.float64))
            w = mx.where(w < 0, mx.array(float("nan"), mx.float64), w)
            l2 = self._penalty()
            l2 = mx.zeros((1, 1), mx.float64) if l2 is None else l2
            l2 = mx.where(l2 < 0, mx.array(float("nan"), mx.float64), l2)
            mean = None
            if "bias" in self:
                mean = mx.stop_gradient(_mean(x, w) if weighted else mx.mean(x, axis=-2, keepdims=True))
                x = mx.concatenate([x - mean, mx.ones_like(x[..., :1])], axis=-1)
                l2 = mx.concatenate([l2, mx.zeros_like(l2[:1])], axis=0)
                w = mx.where(_every_class_is_present(y, w), w, mx.array(float("nan"), mx.float64))
            batch = mx.broadcast_shapes(x.shape[:-2], y.shape[:-2], w.shape[:-1])
            x, y = (mx.broadcast_to(v, (*batch, *v.shape[-2:])) for v in (x, y))
            w = mx.broadcast_to(w, (*batch, w.shape[-1]))
        return Rows(x, y, w, l2, mean, out)

    def fit(self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> "Self":
        """Solve for ``weight`` and ``bias``, store them, and return the layer. Eager: not for use in a transformation.

        :attr:`steps` and :attr:`reason` tell how Newton's method ended.

        Raises:
            ValueError: If ``x`` has more than two dimensions, a value is not finite, a weight is negative, a label is
                not one of the classes, a class has no row, or there is no minimizer since features with ``l2 = 0``
                separate classes or are collinear.
        """
        self._check_fit(x, y, weights)
        p = self._problem("fit", x, y, weights)
        if "bias" in self:
            with on_cpu():
                used = mx.where(p.w != 0, mx.ones_like(p.w), mx.zeros_like(p.w))
                counts = np.array(mx.sum(used[:, None] * p.y, axis=0))
            empty = np.flatnonzero(counts == 0)
            if len(empty):
                self._fail("every class must have a row", f"none of class {empty[0]}", "Drop it, or bias=False.", "fit")
        with on_cpu():
            found = logistic.fitted(p.a, p.y, p.w, p.l2, p.accuracy)
        self._steps = found.steps
        with on_cpu():
            t = mx.array(found.t, dtype=mx.float64)
            if not bool(mx.all(mx.isfinite(t)).item()):
                got, remedy = f"none after {found.steps} Newton steps with l2={self.l2}", "Pass l2 > 0."
                rule = "there must be a minimizer (are the classes separable, or features collinear?)"
                self._fail(rule, got, remedy, "fit")
        self._reason = f"converged: the Newton decrement fell to {float(found.decrement):.1e} of the objective"
        weight, bias = self._split(p, t)
        self._store(weight, bias)
        return self

    def _split(self, p: Rows, t: mx.array) -> tuple[mx.array, mx.array | None]:
        """``(weight, bias)`` of the minimizer ``t``."""
        with on_cpu():
            if p.mean is None:
                return t.mT.astype(p.out), None
            solution, intercept = uncentred(p, t)
            return solution.mT.astype(p.out), intercept[..., 0, :].astype(p.out)

    def solve(self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> tuple[mx.array, mx.array | None]:
        """The fit as ``(weight, bias)``, differentiable and without state; bias is None if the layer has none.

        Args:
            x: ``(..., m, n)``.
            y: Labels ``(..., m)``.
            weights: ``(..., m)`` or None.

        Returns:
            ``(..., c, n)`` and ``(..., c)``, float32 for half input; NaN where there is no minimizer.
        """
        p = self._problem("solve", x, y, weights)
        return self._split(p, p.minimizer())

    def adapt(self, x: ArrayLike, y: ArrayLike, x_query: ArrayLike, weights: ArrayLike | None = None) -> mx.array:
        """Fit on ``(x, labels)`` and return logits for ``x_query``, differentiable from end to end and without state.

        Args:
            x: Support ``(..., m, n)``.
            y: Its labels ``(..., m)``.
            x_query: ``(..., q, n)``.
            weights: ``(..., m)`` or None.

        Returns:
            ``(..., q, c)``, float32 for half input.
        """
        p = self._problem("adapt", x, y, weights)
        x_query = features(f"{type(self).__name__}.adapt", "x_query", x_query, self._dims[0])
        t = p.minimizer()
        with on_cpu():
            return predicted(p, t, astype(x_query, mx.float64)).astype(p.out)

    def projected_loss(self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> mx.array:
        """The objective, penalty included, at its minimum over weight and bias, divided by m: ``(...)``.

        Its gradient is that of the objective at the minimizer, and nothing is solved for it (the envelope theorem). It
        is right at every order.

        Args:
            x: ``(..., m, n)``.
            y: Labels ``(..., m)``.
            weights: ``(..., m)`` or None.
        """
        p = self._problem("projected_loss", x, y, weights)
        with on_cpu():
            return (logistic.smallest_objective(p.a, p.y, p.w, p.l2, p.accuracy) / p.a.shape[-2]).astype(p.out)

    def loo_predictions(
        self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None, *, refits: int = 32
    ) -> mx.array:
        """Logits for each row by the fit to all other rows: one Newton step without it, and refits where it counts.

        The ``refits`` rows whose cross-entropies, times their weights, are largest after the step are fitted again
        without them, all together: from the fit to all rows, by at most 10 Newton steps, whose conjugate gradients the
        inverse Hessian of that fit preconditions. The rest keeps the step. It errs where one row decides on much of the
        fit, and there rows have large cross-entropies. A row without which there is no minimizer, or none was found,
        keeps its step, too. The same is done inside of ``mx.compile`` and ``mx.vmap``. Differentiable at every order in
        ``x``, ``weights`` and ``l2``: a refit by its implicit derivative.

        How near it is to refits of all: on 200 digits, the mean cross-entropy over theirs, without refits and with 32,

        ===============  ============  ============  ============  ============  ============
        64 pixels        ``l2=0.01``   0.1           1             10            100
        ===============  ============  ============  ============  ============  ============
        standardised     1.003, 1.001  0.982, 1.003  0.978, 1.002  0.992, 1.000  0.999, 0.999
        from 0 to 1      1.044, 1.003  1.003, 1.003  0.996, 1.001  0.999, 1.000  1.000, 1.000
        from 0 to 16     1.195, 1.001  1.131, 1.001  1.067, 1.002  1.016, 1.003  0.996, 1.002
        ===============  ============  ============  ============  ============  ============

        The 32 refits took 0.4 to 1.9 times the time of the rest there, and all 200, which are exact, 3 to 14 times. A
        graph holds all of their steps, needed or not: a compiled step of training, of 60 rows, took 0.15 s instead of
        0.03. With ``refits=0`` it is as fast as without them.

        With ``class_weights="balanced"`` the other rows are balanced anew: the step is one from the fit with the
        weights that they have without a row of its class, one fit for each class; with ``weights`` as well, all rows
        are refitted.

        Args:
            x: ``(..., m, n)``, with (n + 1) c at most 5000: the Hessian is formed and inverted.
            y: Labels ``(..., m)``.
            weights: ``(..., m)`` or None. Rows of weight 0 take no part in any fit, but have predictions.
            refits: How many rows are refitted: 0 for the step alone, m for exact figures.

        Returns:
            ``(..., m, c)``, float32 for half input; with an intercept they sum to 0 over the classes. NaN for the only
            row of its class: without it there is no fit (unless ``bias=False``).

        Raises:
            ValueError: If (n + 1) c is too large, or ``refits`` is negative.
            TypeError: If ``refits`` is not an integer.

        References:
            K. R. Rad and A. Maleki, A scalable estimate of the out-of-sample prediction error via approximate
            leave-one-out cross-validation, J. R. Stat. Soc. B 82 (2020), Eq. 7, arXiv 1801.10243.
        """
        logits = self._left_out("loo_predictions", x, y, weights, refits)
        return astype(logits, dtypes.working(checks.array(type(self).__name__, "x", x)))

    def _left_out(self, method: str, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None, refits: int) -> mx.array:
        """Leave-one-out logits in float64."""
        x, hot, weights = self._labelled_rows(f"{type(self).__name__}.{method}", x, y, weights)
        unknowns, classes = x.shape[-1] + ("bias" in self), self._dims[1]
        if unknowns * classes > _LARGEST_HESSIAN:
            rule = f"unknowns per class times classes must be at most {_LARGEST_HESSIAN}"
            remedy = "Use a validation split, or RidgeClassifier."
            self._fail(rule, f"{unknowns} and {classes}", remedy, method)
        if not isinstance(refits, int):
            name, got = f"{type(self).__name__}.{method}", f"{refits!r}"
            checks.fail(name, "refits must be an integer", got, "Pass a number of rows.", TypeError)
        if refits < 0:
            self._fail("refits must be 0 or more", f"{refits}", "Pass 0 for one Newton step alone.", method)
        p = self._posed(x, hot, self._weighed(hot, weights, mx.float64))
        at, balanced = fit(p), self._balanced
        kept = without_each(hot, weights) if balanced and (refits or weights is not None) else None
        if not balanced:
            logits = one_step(p, at)
        elif weights is None:
            q = self._posed(x[..., None, :, :], hot[..., None, :, :], without_one_of_a_class(hot))
            logits = of_own_class(nan_where_alone(q, one_step(q, fit(q))), hot)
        else:
            refits = x.shape[-2]
            with on_cpu():
                logits = mx.full(p.y.shape, float("nan"), mx.float64)
        logits = worst_refitted(p, at, logits, refits, kept)
        with on_cpu():
            if weights is not None or self._class_weights is not None:  # a row of weight 0 is in no fit
                x = astype(x, mx.float64)
                finite = mx.isfinite(mx.sum(x, axis=-1, keepdims=True))  # or its derivatives would be NaN
                of_all = predicted(p, at.t, mx.where(finite, x, mx.zeros_like(x)))
                of_all = mx.where(finite, of_all, mx.array(float("nan"), mx.float64))
                logits = mx.where((p.w == 0)[..., None], of_all, logits)
            if p.mean is None:
                return logits
            # An intercept leaves a number open that is common to all classes. It would hang on the mean of the rows.
            return logits - mx.mean(logits, axis=-1, keepdims=True)

    def loo_loss(
        self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None, *, refits: int = 32
    ) -> mx.array:
        """Weighted mean cross-entropy of :meth:`loo_predictions`, ``(...)``. Class weights count.

        Args:
            x: ``(..., m, n)``, with (n + 1) c at most 5000.
            y: Labels ``(..., m)``.
            weights: ``(..., m)`` or None.
            refits: How many rows are refitted: 0 for one Newton step alone, m for exact figures.
        """
        p, logits = self._problem("loo_loss", x, y, weights), self._left_out("loo_loss", x, y, weights, refits)
        return astype(logistic.mean_cross_entropy(logits, p.y, p.w), p.out)


def _mean(x, w):
    total = mx.sum(w, axis=-1)[..., None, None]
    return mx.sum(w[..., None] * x, axis=-2, keepdims=True) / mx.where(total == 0, mx.ones_like(total), total)


def _every_class_is_present(y, w):
    """``(..., 1)``; also where labels or weights are NaN, which show by themselves."""
    return mx.all(~(mx.sum(w[..., None] * y, axis=-2) == 0), axis=-1)[..., None]
