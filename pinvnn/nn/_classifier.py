"""Ridge regression on labels, with calibrated probabilities."""

from typing import Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .._mlx import astype, dtypes, large, on_cpu
from .._rules import logistic
from .._types import ArrayLike, Penalty, ReadoutMethod
from ._calibration import calibrated
from ._labels import LabelReadout
from ._leave_one_out import left_out_of_balanced, nan_for_other_rows
from ._readout import LeastSquaresReadout, Removed

# With weights, balanced classes are refitted without each row: to so many numbers fit calibrates by these refits, and
# by fits whose class weights stay as they are beyond, where one row among many hardly moves them.
_LARGEST_CALIBRATION = 2**26


class RidgeClassifier(LabelReadout, LeastSquaresReadout):
    r"""A classifier in closed form: ridge regression on targets of :math:`\pm 1`, scaled and shifted to logits.

    .. math::
        \mathrm{logits}(x) = s\,(W x + c) + b

    :meth:`fit` calibrates the probabilities on rows that the fit has not seen, without a validation split: it minimizes
    the cross-entropy of the leave-one-out predictions over :math:`s > 0` (``scale``), which changes no label. The label
    is then the argmax of the scores :math:`W x + c`, as with scikit-learn's ``RidgeClassifier``. Shifts :math:`b`
    (``shift``, one per class) do change labels; they differ from 0 only where the rows show beyond three standard
    errors that this lowers the cross-entropy, and where a single row hardly moves a logit: with some hundred rows or
    more. Where nothing can be learned, as from one row a class, the scale is 1.

    Both are trainable parameters, as in R2-D2; ``weight`` and ``bias`` are not. All methods are those of
    :class:`LeastSquaresReadout`, with labels for ``y``. Leave-one-out figures are those of refits without the row, with
    the stored scale and shift. Scores, logits, probabilities and losses of float16 and bfloat16 rows are float32.

    For N-way K-shot episodes, ``adapt(x, labels, x_query)`` gives logits in one differentiable step. Several episodes
    are batch dimensions, or :func:`mlx.core.vmap`. :meth:`loo_loss` is the cross-entropy of the leave-one-out logits.

    Args:
        input_dims (int): Number of input features n.
        num_classes (int): Number of classes c.
        l2 (float or array, optional): Penalty, as in :class:`LeastSquaresReadout`. Default: ``1.0``.
        bias (bool, optional): Whether there is an intercept. Default: ``True``.
        learn_l2 (bool, optional): Make ``l2`` a trainable parameter. Default: ``False``.
        class_weights (array or str, optional): Weights ``(c,)`` by which the rows of each class are multiplied, or
            ``"balanced"``, which gives the rows of every class the total weight m / c. Leave-one-out figures are then
            those of refits that balance the other rows anew: by one factorization for each class or, with ``weights``
            as well, by a refit without each row. Default: ``None``.
        method (str, optional): As in :class:`LeastSquaresReadout`. Default: ``"auto"``.

    Attributes:
        scale (array): Scale of the logits, ``()``; trainable.
        shift (array): Shift of the logits, ``(c,)``; trainable.

    Shape:
        - x: ``(..., m, n)``.
        - labels: ``(..., m)`` integers from 0 to c - 1; others give NaN.
        - weights: ``(..., m)``, non-negative; multiplied by those of the classes.

    Raises:
        ValueError: As :class:`LeastSquaresReadout`, or if class weights are negative or of another shape.
        TypeError: If labels are not integers.

    Examples:
        >>> import mlx.core as mx
        >>> from pinvnn.nn import RidgeClassifier
        >>> x, labels = mx.array([[-2.0], [-1.0], [1.0], [2.0]]), mx.array([0, 0, 1, 1])
        >>> classifier = RidgeClassifier(1, 2).fit(x, labels)
        >>> classifier.predict(mx.array([[-1.5], [0.5]]))
        array([0, 1], dtype=uint32)

    References:
        L. Bertinetto, J. F. Henriques, P. H. S. Torr and A. Vedaldi, Meta-learning with differentiable closed-form
        solvers, ICLR 2019, arXiv 1805.08136.
    """

    scale: mx.array
    shift: mx.array

    def __init__(
        self,
        input_dims: int,
        num_classes: int,
        l2: Penalty = 1.0,
        bias: bool = True,
        learn_l2: bool = False,
        class_weights: ArrayLike | Literal["balanced"] | None = None,
        method: ReadoutMethod = "auto",
    ):
        super().__init__(input_dims, num_classes, l2, bias, learn_l2, method)
        self.scale = mx.array(1.0)
        self.shift = mx.zeros((self._dims[1],))
        self._class_weights = self._checked_class_weights(class_weights, self._dims[1])

    def _labelled(self, name: str, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None):
        """Rows in their working dtype, one-hot labels, targets of +-1 (NaN where the label is no class), weights."""
        x, hot, weights = self._labelled_rows(name, x, y, weights)
        dtype = dtypes.working(x)
        with large(dtype):
            known = mx.where(mx.any(hot, axis=-1, keepdims=True), mx.array(1, dtype), mx.array(float("nan"), dtype))
            return astype(x, dtype), hot, mx.where(hot, known, -known), weights

    def _rows(self, method, x, y, weights):
        """Rows for the base class: weights are multiplied by those of the classes."""
        x, hot, targets, weights = self._labelled(f"{type(self).__name__}.{method}", x, y, weights)
        return x, targets, self._weighed(hot, weights, x.dtype), False

    def _logits(self, scores: mx.array) -> mx.array:
        """Scale and shift applied to ``scores`` (..., c)."""
        with large(scores.dtype):
            return astype(self.scale, scores.dtype) * scores + astype(self.shift, scores.dtype)

    def __call__(self, x: ArrayLike) -> mx.array:
        """Logits ``(..., c)`` for ``x`` ``(..., n)``, by the stored weights; float32 for half input."""
        return self._logits(super().__call__(x))

    def fit(self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> "RidgeClassifier":
        """Solve for ``weight`` and ``bias``, calibrate ``scale`` and ``shift``, and return the classifier. Eager.

        Args:
            x: ``(m, n)``.
            y: Labels ``(m,)``.
            weights: ``(m,)`` or None.

        Returns:
            The classifier.

        Raises:
            ValueError: As :meth:`LeastSquaresReadout.fit`, or if a label is not one of the classes.
        """
        rows, hot, given = self._labelled_rows(f"{type(self).__name__}.fit", x, y, weights)
        self._check_eager(rows, hot, given)
        w = self._weighed(hot, given, dtypes.working(rows))
        with on_cpu():
            w = mx.ones(hot.shape[:-1]) if w is None else w
            self._check_labels(y, hot, w != 0)
        super().fit(x, y, weights)
        many = given is not None and rows.shape[0] * rows.size > _LARGEST_CALIBRATION
        scores = super().loo_predictions(x, y, weights) if many else self._left_out("fit", x, y, weights)
        scores, labels, w = _in_numpy(scores), np.array(y).astype(int), _in_numpy(w)
        usable = np.isfinite(scores).all(axis=1) & (w > 0)
        scale, shift = calibrated(scores[usable], labels[usable], w[usable])
        self.scale, self.shift = mx.array(scale, self.scale.dtype), mx.array(shift, self.shift.dtype)
        return self

    def adapt(self, x: ArrayLike, y: ArrayLike, x_query: ArrayLike, weights: ArrayLike | None = None) -> mx.array:
        """Logits for ``x_query`` of a fit to ``(x, y)``, with the stored scale and shift. Differentiable, stateless.

        Args:
            x: Support ``(..., m, n)``.
            y: Its labels, ``(..., m)``.
            x_query: ``(..., q, n)``.
            weights: Weights of the support ``(..., m)``, or None.

        Returns:
            Logits ``(..., q, c)``.
        """
        return self._logits(super().adapt(x, y, x_query, weights))

    def loo_predictions(
        self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None, removed: Removed = "row"
    ) -> mx.array:
        """Leave-one-out logits ``(..., m, c)``. Arguments as in :meth:`LeastSquaresReadout.loo_predictions`."""
        return self._logits(self._left_out("loo_predictions", x, y, weights, removed))

    def _left_out(
        self, method: str, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None, removed: Removed = "row"
    ) -> mx.array:
        """Leave-one-out scores ``(..., m, c)``; of fits whose class weights are balanced anew, if they are balanced."""
        if not self._balanced:
            return super().loo_predictions(x, y, weights, removed)
        name = f"{type(self).__name__}.{method}"
        self._part(method, weights, removed)
        rows, hot, targets, weights = self._labelled(name, x, y, weights)
        l2, bias = self._checked_penalty(method, rows), "bias" in self
        scores = left_out_of_balanced(rows, hot, targets, weights, l2, bias, self._method, removed == "unit")
        return nan_for_other_rows(scores, rows)

    def loo_loss(
        self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None, removed: Removed = "row"
    ) -> mx.array:
        """Mean cross-entropy of :meth:`loo_predictions` ``(...)``, weighted by ``weights`` and the class weights."""
        logits = self.loo_predictions(x, y, weights, removed)
        rows, hot, weights = self._labelled_rows(f"{type(self).__name__}.loo_loss", x, y, weights)
        loss = logistic.mean_cross_entropy(logits, hot, self._weighed(hot, weights, dtypes.working(rows)))
        return astype(loss, logits.dtype)

    def to_linear(self) -> nn.Linear:
        """An ``nn.Linear`` whose output are the logits."""
        linear = super().to_linear()
        linear.weight = self.scale * linear.weight
        linear.bias = self.scale * linear.bias + self.shift if "bias" in linear else self.shift
        return linear


def _in_numpy(x: mx.array) -> np.ndarray:
    with on_cpu():
        return np.array(astype(x, mx.float64))
