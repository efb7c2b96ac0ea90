"""What classifiers have in common: integer labels, weights of classes, probabilities."""

from typing import Literal

import mlx.core as mx

from .._mlx import astype, checks, dtypes, large, on_cpu, weights_array
from .._rules import logistic
from .._types import ArrayLike
from ._balance import balancing, row_factors
from ._base import Readout, all_true
from ._problem import features


class LabelReadout(Readout):
    """A readout of logits, one for each class."""

    _outputs = "num_classes"
    _class_weights: Literal["balanced"] | mx.array | None

    def _checked_class_weights(self, weights, classes):
        if weights is None or (isinstance(weights, str) and weights == "balanced"):
            return weights
        if isinstance(weights, str):
            self._fail('class_weights must be an array or "balanced"', f"{weights!r}", 'Pass "balanced".')
        weights = weights_array(type(self).__name__, "class_weights", weights, mx.float32)
        if weights.shape != (classes,):
            self._fail(f"class_weights must have the shape ({classes},)", f"{weights.shape}", "Pass one a class.")
        if not all_true(weights >= 0):
            self._fail("class_weights must be non-negative", f"{weights.tolist()}", "Pass 0 to ignore a class.")
        return weights

    def _extra_repr(self) -> str:
        kind = self._class_weights
        shown = kind if kind is None or isinstance(kind, str) else kind.shape
        return super()._extra_repr() + f", class_weights={shown}"

    def _labels(self, name: str, y: ArrayLike, rows: int) -> mx.array:
        """Labels ``(..., m)`` as an array of integers."""
        labels = checks.array(name, "labels", y, 1)
        if mx.issubdtype(labels.dtype, mx.inexact):
            checks.fail(name, "labels must be integers", f"{labels.dtype}", "Cast them, or use argmax.", TypeError)
        if labels.ndim > 1 and labels.shape[-2] == rows != labels.shape[-1]:
            rule, got = "labels must be one integer for each row, shape (..., m)", f"shape {labels.shape}"
            remedy = "Pass labels[..., 0]." if labels.shape[-1] == 1 else "Pass the argmax of one-hot labels."
            checks.fail(name, rule, got, remedy)
        if labels.shape[-1] != rows:
            got = f"{rows} and {labels.shape[-1]}"
            checks.fail(name, "x and labels must have the same number of rows", got, "Pass one label for each row.")
        return labels

    def _labelled_rows(
        self, name: str, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None
    ) -> tuple[mx.array, mx.array, mx.array | None]:
        """Rows ``(..., m, n)``, one-hot labels ``(..., m, c)`` (bool), and weights ``(..., m)`` or None as given."""
        x = features(name, "x", x, self._dims[0], 2)
        if x.dtype == mx.complex64:
            checks.fail(name, "x must be real", "complex64", "Pass real features.", TypeError)
        labels, dtype = self._labels(name, y, x.shape[-2]), dtypes.working(x)
        batch = [("x", x.shape[:-2]), ("labels", labels.shape[:-1])]
        if weights is not None:
            weights = weights_array(name, "weights", weights, dtype)
            checks.rows(name, x, x, weights)
            batch.append(("weights", weights.shape[:-1]))
        checks.batch_shape(name, *batch)
        with large(dtype):
            return x, labels[..., None] == mx.arange(self._dims[1]), weights

    @property
    def _balanced(self) -> bool:
        return isinstance(self._class_weights, str)

    def _weighed(self, hot: mx.array, weights: mx.array | None, dtype: mx.Dtype) -> mx.array | None:
        """``weights`` (..., m) times the class weights of the rows, whose one-hot labels are ``hot`` (..., m, c)."""
        of_class = self._class_weights
        if of_class is None:
            return weights
        if isinstance(of_class, str):
            of_row = balancing(hot, weights)
        else:
            with on_cpu():
                of_row = row_factors(astype(of_class, mx.float64)[None], hot)[..., 0, :]
        of_row = astype(of_row, dtype)
        with large(dtype):
            return of_row if weights is None else of_row * weights

    def _check_fit(self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None) -> None:
        """What an eager fit refuses: batches, labels that are no class, values that are not finite."""
        name = f"{type(self).__name__}.fit"
        rows, hot, w = self._labelled_rows(name, x, y, weights)
        self._check_eager(rows, hot, w)
        w = self._weighed(hot, w, dtypes.working(rows))
        w = mx.ones((rows.shape[-2],), stream=mx.cpu) if w is None else w
        if max(rows.ndim, hot.ndim, w.ndim + 1) > 2:
            got = f"shapes {rows.shape} and {hot.shape[:-1]}"
            self._fail("x must have two dimensions", got, "Reshape to rows; solve takes batches.", "fit")
        with on_cpu():
            w, used = astype(w, mx.float64), w != 0
            if not all_true(mx.isfinite(w)):
                self._fail("weights must be finite", "NaN or Inf", "Remove those rows by weight 0.", "fit")
            if not all_true(w >= 0):
                self._fail("weights must be non-negative", "a negative one", "Remove rows by weight 0.", "fit")
            self._check_labels(y, hot, used)
            finite = all_true(mx.isfinite(mx.sum(rows)))  # takes a sixth of the time; may overflow
            if not finite and not all_true(mx.logical_or(mx.isfinite(rows), ~used[..., None])):
                self._fail("x must be finite", "NaN or Inf", "Remove those rows by weight 0.", "fit")

    def _check_labels(self, y: ArrayLike, hot: mx.array, used: mx.array) -> None:
        """Raise at a label that is no class, in the rows that are ``used`` (m,)."""
        with on_cpu():
            if not all_true(mx.logical_or(mx.any(hot, axis=-1), ~used)):
                labels = mx.where(used, checks.array(type(self).__name__, "labels", y, 1), 0)
                got = f"{labels.min().item()} to {labels.max().item()}"
                rule = f"labels must be from 0 to {self._dims[1] - 1}"
                self._fail(rule, got, "Change num_classes or the labels.", "fit")

    def __call__(self, x: ArrayLike) -> mx.array:
        """Logits ``(..., c)`` for ``x`` ``(..., n)``, by the stored weights; float32 for half input."""
        x = checks.array(type(self).__name__, "x", x, 1)
        return super().__call__(astype(x, dtypes.working(x)))

    def predict_proba(self, x: ArrayLike) -> mx.array:
        """Probabilities of the classes ``(..., c)`` for ``x`` ``(..., n)``."""
        logits = self(x)
        if logits.dtype == mx.float64:  # MLX's own softmax is right to 1e-7 there
            return logistic.softmax(logits)
        with large(logits.dtype):
            return mx.softmax(logits, axis=-1)

    def predict(self, x: ArrayLike) -> mx.array:
        """Labels ``(...)`` for ``x`` ``(..., n)``."""
        logits = self(x)
        with large(logits.dtype):
            return mx.argmax(logits, axis=-1)
