"""Recursive least squares with forgetting, in information form."""

import copy

import mlx.core as mx

from .._lstsq import normal_lstsq
from .._mlx import array, fail, on_cpu
from ._statistics import ReadoutStatistics


class RecursiveLeastSquares:
    r"""Ridge regression that follows a stream: after every row the exact optimum of a forgetting objective.

    After t rows, one by one or in batches, ``weight`` W and ``bias`` b minimize

    .. math::
        \sum_{i=1}^{t} \lambda^{t-i} |y_i - W x_i - b|^2 + \lambda^t \, l_2 |W|^2

    with :math:`\lambda` the forgetting factor: the prior is forgotten like a row that came before the first. The
    intercept has no prior. Where the prior has been forgotten and the rows leave a choice, the solution has minimum
    norm, which is the limit of the objective.

    Kept are the normal equations (the information form, centred and in float64; see :class:`ReadoutStatistics`), not
    their inverse. The inverse, which textbooks update, drifts off by rounding and grows without bound in directions
    that the rows stop visiting; sums do neither. An update costs :math:`O(n^2)` per row, and ``weight`` and ``bias``
    are solved for, in :math:`O(n^3)`, when they are first read after an update.

    Args:
        input_dims: Number of input features n.
        output_dims: Number of targets k.
        l2: Penalty at the start, a non-negative number.
        forgetting: Factor :math:`0 < \lambda \le 1` by which the weight of all earlier rows shrinks with every row;
            about :math:`1/(1-\lambda)` rows are remembered. Default 1, which forgets nothing.

    Raises:
        ValueError: An argument is out of its range.

    Examples:
        >>> import mlx.core as mx
        >>> from pinvnn.streaming import RecursiveLeastSquares
        >>> rls = RecursiveLeastSquares(1, 1, l2=1e-6, forgetting=0.5)
        >>> for t in range(20):
        ...     slope = 1.0 if t < 10 else 3.0
        ...     x = mx.array([float(t % 3)])
        ...     _ = rls.update(x, slope * x)
        >>> round(rls.weight.item(), 2)
        3.0

    References:
        S. Haykin, Adaptive Filter Theory, 4th ed. 2002, section 9.3 (the exponentially weighted objective and its
        regularization :math:`\delta \lambda^n`).
    """

    def __init__(self, input_dims: int, output_dims: int, l2: float, forgetting: float = 1.0):
        if not (l2 >= 0 and l2 < float("inf")):
            fail("RecursiveLeastSquares", "l2 must be non-negative and finite", f"{l2}", "Pass 0 for no penalty.")
        if not 0 < forgetting <= 1:
            rule = "forgetting must be above 0 and at most 1"
            fail("RecursiveLeastSquares", rule, f"{forgetting}", "Pass 1 to forget nothing, 0.99 for some 100 rows.")
        self.forgetting = float(forgetting)
        self._prior = float(l2)
        self._statistics = ReadoutStatistics(input_dims, output_dims)
        self._readout: tuple[mx.array, mx.array] | None = None

    def update(self, x, y) -> "RecursiveLeastSquares":
        """Take in one row, or rows in the order in which they came.

        Args:
            x: ``(input_dims,)`` or ``(rows, input_dims)``.
            y: ``(output_dims,)`` or ``(rows, output_dims)``.

        Returns:
            This object, with ``weight`` and ``bias`` as they are after the last row.

        Raises:
            TypeError: An argument is no array, or complex.
            ValueError: Shapes do not fit, or a value is not finite. Everything is then as it was.
        """
        name = "RecursiveLeastSquares.update"
        x = array(name, "x", x, 1)
        if x.ndim > 2:
            fail(name, "x must be one row or a batch of rows", f"shape {x.shape}", "Flatten it.")
        rows = x.shape[0] if x.ndim == 2 else 1
        forget = self.forgetting**rows
        weights = None
        if self.forgetting < 1 and x.ndim == 2:
            with on_cpu():  # In float64: a thousand rows of weight 0.99**i span more than float32's digits.
                age = mx.arange(rows - 1, -1, -1, dtype=mx.float64)
                weights = mx.power(mx.array(self.forgetting, mx.float64), age)
        # On a copy, so that nothing has been forgotten if the new rows are refused.
        self._statistics = copy.copy(self._statistics).decay(forget).update(x, y, weights)
        self._prior *= forget
        self._readout = None
        return self

    def __call__(self, x: mx.array) -> mx.array:
        """Predict with the current readout: ``(..., input_dims)`` to ``(..., output_dims)``."""
        return x @ self.weight.T + self.bias

    @property
    def weight(self) -> mx.array:
        """``(output_dims, input_dims)``, as in ``mlx.nn.Linear``; zero before the first row."""
        return self._solve()[0]

    @property
    def bias(self) -> mx.array:
        """``(output_dims,)``; zero before the first row."""
        return self._solve()[1]

    @property
    def count(self) -> float:
        """Sum of the weights that the rows have by now."""
        return self._statistics.count

    def _solve(self):
        if self._readout is None:
            m, dtype = self._statistics.moments, self._statistics.dtype
            with on_cpu():
                # Truncated rather than inverted: where prior and rows are both forgotten the limit is the minimum norm.
                gram = m.xx + self._prior * mx.eye(m.xx.shape[0], dtype=mx.float64)
                weight = normal_lstsq(gram, m.xy).T
                self._readout = weight.astype(dtype), (m.y_mean - weight @ m.x_mean).astype(dtype)
            mx.eval(self._readout)
        return self._readout
