"""Recursive least squares with forgetting, in information form."""

import copy
from typing import Any

import mlx.core as mx

from .._mlx import array, astype, dtypes, fail, large, matmul, on_cpu, size
from .._rules import fading
from .._types import ArrayLike
from ._file import Path, read, write
from ._solve import normal_solve
from ._statistics import ReadoutStatistics, add_rows, file_parts, from_file_parts

_FORMAT = "pinvnn.RecursiveLeastSquares"


class RecursiveLeastSquares:
    r"""Recursive least squares with exponential forgetting: the exact ridge solution after every row.

    After t rows, one by one or in batches, ``weight`` W and ``bias`` b minimize

    .. math::
        \sum_{i=1}^{t} \lambda^{t-i} |y_i - W x_i - b|^2 + \lambda^t \, l_2 |W|^2

    with :math:`\lambda` the forgetting factor: the penalty decays like the weight of a row before the first. The
    intercept is not penalised. Once the penalty has decayed to nothing and the rows do not determine all weights, the
    solution is that of minimum norm, which is the limit of the minimizer.

    The normal equations are stored (the information form, centred and in float64; see :class:`ReadoutStatistics`).
    Textbooks update their inverse instead, which accumulates rounding errors and grows without bound in directions that
    no new row has. An update costs :math:`O(n^2)` per row; ``weight`` and ``bias`` are solved for, in :math:`O(n^3)`,
    when they are first read after an update.

    Args:
        input_dims: Number of input features n.
        output_dims: Number of targets k.
        l2: Penalty before the first row, a non-negative number.
        forgetting: Factor :math:`0 < \lambda \le 1` by which each row multiplies the weights of all earlier ones, so
            that about :math:`1/(1-\lambda)` rows count. Default 1: no forgetting.
        bias: Whether the readout has an intercept. Default ``True``.

    ``copy.copy`` returns an independent object without copying any array; ``copy.deepcopy`` and pickle work as well.

    Attributes:
        forgetting: The forgetting factor.

    Raises:
        ValueError: If an argument is out of its range.

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

    def __init__(self, input_dims: int, output_dims: int, l2: float, forgetting: float = 1.0, bias: bool = True):
        for label, dims in [("input_dims", input_dims), ("output_dims", output_dims)]:
            size("RecursiveLeastSquares", label, dims)
        if not (l2 >= 0 and l2 < float("inf")):
            fail("RecursiveLeastSquares", "l2 must be non-negative and finite", f"{l2}", "Pass 0 for no penalty.")
        if not 0 < forgetting <= 1:
            rule = "forgetting must be above 0 and at most 1"
            fail("RecursiveLeastSquares", rule, f"{forgetting}", "Pass 1 to forget nothing, 0.99 for some 100 rows.")
        self.forgetting: float = float(forgetting)
        self._prior = float(l2)
        self._l2 = float(l2)
        self._statistics = ReadoutStatistics(input_dims, output_dims, bias)
        self._readout: tuple[mx.array, mx.array | None] | None = None

    def __repr__(self) -> str:
        s = self._statistics
        return (
            f"RecursiveLeastSquares(input_dims={s.input_dims}, output_dims={s.output_dims}, l2={self._l2:g}, "
            f"forgetting={self.forgetting:g}, bias={s.bias}, count={s.count:g})"
        )

    def update(self, x: ArrayLike, y: ArrayLike) -> "RecursiveLeastSquares":
        """Add one row, or several rows in the order of time.

        Args:
            x: ``(input_dims,)`` or ``(rows, input_dims)``.
            y: ``(output_dims,)`` or ``(rows, output_dims)``; with one target also ``()`` or ``(rows,)``.

        Returns:
            This object, with ``weight`` and ``bias`` after the last row.

        Raises:
            TypeError: If an argument is not array-like, or complex.
            ValueError: If shapes do not fit, a value is not finite, or there are integers that float32 cannot hold. The
                object is left unchanged.
        """
        name = "RecursiveLeastSquares.update"
        x = array(name, "x", x, 1)
        if x.ndim > 2:
            fail(name, "x must be one row or a batch of rows", f"shape {x.shape}", "Flatten it.")
        rows = x.shape[0] if x.ndim == 2 else 1
        forget, weights = self.forgetting**rows, None
        if self.forgetting < 1 and x.ndim == 2:
            with on_cpu():  # In float64, since 0.99**1000 is already below the precision of float32.
                weights, _ = fading(mx.full((rows,), self.forgetting, mx.float64))
        # On a copy: if the new rows are refused, the old ones keep their weights.
        statistics = copy.copy(self._statistics).decay(forget)
        add_rows(statistics, name, x, y, weights)
        self._statistics = statistics
        self._prior *= forget
        self._readout = None
        return self

    def __call__(self, x: mx.array) -> mx.array:
        """Predictions ``(..., output_dims)`` of the current readout for ``x`` ``(..., input_dims)``."""
        weight, bias = self._solve()
        work, out = dtypes.working(x, weight), dtypes.result(x, weight)
        with large(work):
            y = matmul(astype(x[None] if x.ndim == 1 else x, work), astype(weight, work).T)
            y = y if bias is None else y + astype(bias, work)
            return astype(y[0] if x.ndim == 1 else y, out)

    @property
    def weight(self) -> mx.array:
        """``(output_dims, input_dims)``, as in ``mlx.nn.Linear``; zero before the first row."""
        return self._solve()[0]

    @property
    def bias(self) -> mx.array | None:
        """``(output_dims,)``; zero before the first row. None without an intercept."""
        return self._solve()[1]

    @property
    def count(self) -> float:
        """Sum of the current weights of all rows."""
        return self._statistics.count

    def save(self, path: Path) -> None:
        """Write a safetensors file, from which :meth:`load` goes on. If writing fails, the file that was there stays.

        Args:
            path: Of the file, with any suffix. Replaced if it exists.

        Raises:
            FileNotFoundError: If the folder does not exist.
        """
        arrays, header = file_parts(self._statistics)
        numbers = {"forgetting": self.forgetting, "l2": self._l2, "prior": self._prior}
        write(path, arrays, {**header, **{key: value.hex() for key, value in numbers.items()}}, _FORMAT)

    @classmethod
    def load(cls, path: Path) -> "RecursiveLeastSquares":
        """Read a file that :meth:`save` has written.

        Args:
            path: Of the file.

        Returns:
            The object, as it was saved.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, was not written by :meth:`save`, or its parts do not fit together.
        """
        arrays, header = read(path, _FORMAT)
        name = "RecursiveLeastSquares.load"
        statistics = from_file_parts(name, path, arrays, header)
        try:
            forgetting, l2, prior = (float.fromhex(header[key]) for key in ("forgetting", "l2", "prior"))
            rls = cls(statistics.input_dims, statistics.output_dims, l2, forgetting, statistics.bias)
        except (KeyError, ValueError):
            fail(name, "the header must have forgetting, l2 and prior", f"{header} in {path}", "Save it again.")
        rls._statistics, rls._prior = statistics, prior
        return rls

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readout": None}  # solved for again when it is read

    def _solve(self) -> tuple[mx.array, mx.array | None]:
        if self._readout is None:
            m, dtype = self._statistics.moments, self._statistics.dtype
            with on_cpu():
                # Truncated: where penalty and rows have both decayed, the minimizer tends to that of minimum norm.
                gram = m.xx + self._prior * mx.eye(m.xx.shape[0], dtype=mx.float64)
                weight = normal_solve(gram, m.xy, 0.0, mx.float64).T
                bias = (m.y_mean - weight @ m.x_mean).astype(dtype) if self._statistics.bias else None
                self._readout = weight.astype(dtype), bias
            mx.eval(self._readout)
        return self._readout
