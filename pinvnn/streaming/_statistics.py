"""Statistics of rows that were seen, and removed, piece by piece."""

from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from .._mlx import dtypes, fail, on_cpu, size
from .._types import ArrayLike, Penalty
from ..nn import Uncertainty
from ._distributed import Group, agree, gather, reduce_moments
from ._eraser import eraser_of_moments
from ._file import Path, read, write
from ._moments import Moments, attached_moments, empty_moments, finite, merge_moments, negated, scaled
from ._rows import check_rows, check_values, refuse_values
from ._solve import readout, uncertainty_of_moments, validation_score

_Self = TypeVar("_Self", bound="ReadoutStatistics")
_DTYPES = {"float32": mx.float32, "float64": mx.float64}
# Relative to their values before a removal: counts and variances below this are rounding errors.
_ROUNDING = 1e-9


class ReadoutStatistics:
    r"""Sufficient statistics of a linear readout: means and centred sums of products, :math:`n^2 + nk` numbers.

    Rows are added by :meth:`update` and removed by :meth:`downdate`; the rows themselves are not stored. Means and sums
    are kept in float64 on the CPU and are centred about their own mean (see :func:`merge_moments`), so that the readout
    from ten million rows in pieces is that from all rows at once, also if the mean is a thousand times the spread. Each
    method that changes the statistics returns them.

    The methods are eager: they check the values of their arguments and evaluate the new state. No graph grows from one
    call to the next, and only one block of rows is held in float64 at a time. Inside ``mx.grad`` they may be used: the
    result of :meth:`solve` is differentiable in the rows, also after :meth:`all_reduce`. Inside ``mx.compile`` and
    ``mx.vmap`` they may not: use :func:`moments` there. ``copy.copy`` returns independent statistics without copying
    any array; ``copy.deepcopy`` and pickle work as well, also for a Module that holds statistics.

    Args:
        input_dims: Number of input features n.
        output_dims: Number of targets k.
        bias: Whether the readout has an intercept. Default ``True``.

    Attributes:
        input_dims: Number of input features n.
        output_dims: Number of targets k.
        bias: Whether the readout has an intercept.
        dtype: Of the results: float64 if any rows were, else float32.

    Shape:
        - x: ``(..., input_dims)``, y: ``(..., output_dims)``, weights: ``(...)``; all leading dimensions are rows. With
          one target y may be ``(...)``.
        - weight: ``(output_dims, input_dims)`` and bias: ``(output_dims,)``, as in ``mlx.nn.Linear``, in ``dtype``.

    Examples:
        >>> import mlx.core as mx
        >>> from pinvnn.streaming import ReadoutStatistics
        >>> stats = ReadoutStatistics(2, 1)
        >>> for i in range(10):
        ...     x = mx.random.normal((100, 2), key=mx.random.key(i)) + 1000
        ...     _ = stats.update(x, 2 * x[:, :1] - x[:, 1:] + 5)
        >>> weight, bias = stats.solve()
        >>> stats.count, [round(w, 2) for w in weight[0].tolist()]
        (1000.0, [2.0, -1.0])

    References:
        T. F. Chan, G. H. Golub and R. J. LeVeque, Updating formulae and a pairwise algorithm for computing sample
        variances, Technical Report STAN-CS-79-773, Stanford 1979.
    """

    def __init__(self, input_dims: int, output_dims: int, bias: bool = True):
        self.input_dims: int = size("ReadoutStatistics", "input_dims", input_dims)
        self.output_dims: int = size("ReadoutStatistics", "output_dims", output_dims)
        self.bias: bool = bool(bias)
        self.dtype: mx.Dtype = mx.float32
        self._moments = empty_moments(self.input_dims, self.output_dims)
        mx.eval(self._moments)

    def __repr__(self) -> str:
        return (
            f"ReadoutStatistics(input_dims={self.input_dims}, output_dims={self.output_dims}, bias={self.bias}, "
            f"count={self.count:g})"
        )

    @property
    def count(self) -> float:
        """Sum of the weights of all rows; their number if there were neither weights nor decay."""
        return float(self._moments.count.item())  # type: ignore[arg-type]

    @property
    def moments(self) -> Moments:
        """The statistics as arrays, for the functions of this package that take :class:`Moments`."""
        return self._moments

    def update(self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> "ReadoutStatistics":
        """Add rows.

        Args:
            x: Inputs, ``(..., input_dims)``.
            y: Targets, ``(..., output_dims)``.
            weights: ``(...)``, non-negative, or None. Weight 2 equals the row given twice; a row of weight 0 takes no
                part, whatever it holds.

        Returns:
            This object.

        Raises:
            TypeError: If an argument is not array-like, or complex.
            ValueError: If shapes do not fit, a weight is negative or not finite, a row of positive weight is not
                finite, or there are integers that float32 cannot hold. The statistics are left unchanged.
        """
        add_rows(self, "ReadoutStatistics.update", x, y, weights)
        return self

    def downdate(self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> "ReadoutStatistics":
        """Remove rows that were added before.

        Args:
            x: Inputs, ``(..., input_dims)``.
            y: Targets, ``(..., output_dims)``.
            weights: The weights ``(...)`` that the rows have by now: those given to :meth:`update`, times the factors
                of every :meth:`decay` since. None for weight 1.

        Returns:
            This object.

        Raises:
            TypeError: As :meth:`update`.
            ValueError: As :meth:`update`; or if the rows have a larger total weight or a larger variance than all rows
                together, so that they cannot be among them.
        """
        name, remedy = "ReadoutStatistics.downdate", "Take away rows that were added, with the weight they have now."
        batch, _ = self._batch(name, x, y, weights)
        rest = merge_moments(self._moments, negated(batch))
        with on_cpu():
            count, left = self._moments.count, rest.count
            before = mx.concatenate([mx.diagonal(self._moments.xx), self._moments.yy])
            after = mx.concatenate([mx.diagonal(rest.xx), rest.yy])
            too_many = (left < -_ROUNDING * count).item()
            empty = (left <= _ROUNDING * count).item()
            foreign = mx.any(after < -_ROUNDING * before).item()
        if too_many:
            fail(name, "rows must not weigh more than those held", f"{batch.count.item()} of {count.item()}", remedy)
        if empty:
            return self._become(empty_moments(self.input_dims, self.output_dims))
        if foreign:
            fail(name, "rows must be among those held", "rows that vary more than all rows held together", remedy)
        return self._become(rest)

    def decay(self, factor: float) -> "ReadoutStatistics":
        """Multiply the weights of all rows by ``factor``, so that they count less than those still to come.

        Args:
            factor: Between 0, which removes all rows, and 1, which changes nothing.

        Returns:
            This object.

        Raises:
            ValueError: If ``factor`` is not between 0 and 1.
        """
        if not 0 <= factor <= 1:
            fail("ReadoutStatistics.decay", "factor must be between 0 and 1", f"{factor}", "Pass 1 to forget nothing.")
        if factor == 0:
            return self._become(empty_moments(self.input_dims, self.output_dims))
        return self._become(scaled(self._moments, float(factor)))

    def merge(self, other: "ReadoutStatistics") -> "ReadoutStatistics":
        """Add all rows of ``other``, which stays unchanged.

        Args:
            other: Statistics with the same ``input_dims``, ``output_dims`` and ``bias``.

        Returns:
            This object.

        Raises:
            TypeError: If ``other`` is not a :class:`ReadoutStatistics`.
            ValueError: If ``other`` differs in ``input_dims``, ``output_dims`` or ``bias``.
        """
        name = "ReadoutStatistics.merge"
        if not isinstance(other, ReadoutStatistics):
            fail(name, "other must be ReadoutStatistics", type(other).__name__, "Call update with arrays.", TypeError)
        for key, value in self._config().items():
            got = other._config()[key]
            if got != value:
                fail(name, f"other must have {key}={value}", f"{got}", "Merge statistics of the same readout.")
        return self._become(merge_moments(self._moments, other._moments), other.dtype)

    def all_reduce(self, group: Group | None = None) -> "ReadoutStatistics":
        """Merge the statistics of all ranks of ``mx.distributed``: afterwards every rank holds the total.

        Every rank must call this, including ranks without rows. A second call would count every row once for each rank;
        to keep adding rows on each rank, reduce a copy: ``copy.copy(stats).all_reduce()``. The gradient is that of the
        sum of the losses of all ranks, so that either every rank takes it, or none; see :func:`reduce_moments`.

        Args:
            group: The ranks. Default: all of them; without a launcher this process alone.

        Returns:
            This object.

        Raises:
            ValueError: If the ranks differ in ``input_dims``, ``output_dims`` or ``bias``. Raised on every rank, before
                any statistics are exchanged.
        """
        group = group or mx.distributed.init()
        agree("ReadoutStatistics.all_reduce", {key: int(value) for key, value in self._config().items()}, group)
        wide = any(gather([self.dtype == mx.float64], group)[0])
        return self._become(reduce_moments(self._moments, group), mx.float64 if wide else mx.float32)

    def solve(self, l2: Penalty = 0.0) -> tuple[mx.array, mx.array | None]:
        """The (ridge) least-squares readout of all rows, see :func:`solve_moments`. Zeros if there are no rows.

        Args:
            l2: Penalty, as in :func:`pinvnn.ridge`: a number, ``(k,)`` per target, ``(n, 1)`` per feature, ``(n, k)``.

        Returns:
            ``weight`` ``(k, n)`` and ``bias`` ``(k,)``, which is None without an intercept.

        Raises:
            ValueError: If ``l2`` is negative, not finite, or has another shape.
        """
        return readout("ReadoutStatistics.solve", self._moments, l2, self.bias, self.dtype)

    def gcv(self, l2: Penalty = 0.0) -> mx.array:
        """Generalized cross validation score of :meth:`solve`, a scalar; see :func:`gcv_moments`.

        Args:
            l2: Penalty, as in :meth:`solve`.

        Returns:
            The score ``()``; the smaller, the better ``l2``. NaN if no degree of freedom is left.
        """
        return validation_score("ReadoutStatistics.gcv", self._moments, l2, self.bias, self.dtype)

    def uncertainty(self, l2: Penalty = 0.0) -> Uncertainty:
        """Covariance and standard errors of :meth:`solve`, as :meth:`pinvnn.nn.LeastSquaresReadout.uncertainty`.

        Weights count rows: degrees of freedom are sums of weights.

        Args:
            l2: Penalty, as in :meth:`solve`.

        Returns:
            A :class:`pinvnn.nn.Uncertainty` with ``residual_variance`` ``(k,)``, ``weight_covariance`` ``(k, n, n)``
            and so on, without leverages (None), which need the rows. NaN if no degree of freedom is left.

        Raises:
            ValueError: As :meth:`solve`.

        Examples:
            >>> import mlx.core as mx
            >>> from pinvnn.streaming import ReadoutStatistics
            >>> x, y = mx.array([[0.0], [1.0], [2.0], [3.0]]), mx.array([0.0, 2.0, 3.0, 5.0])
            >>> u = ReadoutStatistics(1, 1).update(x, y).uncertainty()
            >>> mx.sqrt(u.weight_covariance[0, 0]).round(3)
            array([0.141], dtype=float32)
        """
        return uncertainty_of_moments("ReadoutStatistics.uncertainty", self._moments, l2, self.bias, self.dtype)

    def eraser(self) -> tuple[mx.array, mx.array]:
        """The affine map that erases the targets from the inputs (LEACE): ``x @ weight.T + bias``.

        Of what it returns no linear readout can predict the targets better than their mean does, and among all affine
        maps with that property it moves the inputs least (in mean squares). Not differentiable.

        Returns:
            ``weight`` ``(n, n)`` and ``bias`` ``(n,)``. The identity if there are no rows.

        References:
            N. Belrose et al., LEACE: Perfect linear concept erasure in closed form, NeurIPS 2023, arXiv 2306.03819,
            Theorem 4.3.

        Examples:
            >>> import mlx.core as mx
            >>> from pinvnn.streaming import ReadoutStatistics
            >>> x = mx.array([[0.0, 1.0], [1.0, 3.0], [2.0, 0.0], [3.0, 2.0]])
            >>> weight, bias = ReadoutStatistics(2, 1).update(x, x[:, 0]).eraser()
            >>> (x @ weight.T + bias)[:, 0].round(3)
            array([1.5, 1.5, 1.5, 1.5], dtype=float32)
        """
        return eraser_of_moments(self._moments, self.dtype)

    def save(self, path: Path) -> None:
        """Write a safetensors file. If writing fails, the file that was there before stays.

        Args:
            path: Of the file, with any suffix. Replaced if it exists.
        """
        write(path, *file_parts(self))

    @classmethod
    def load(cls, path: Path) -> "ReadoutStatistics":
        """Read a file that :meth:`save` has written.

        Args:
            path: Of the file.

        Returns:
            The statistics.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, was not written by :meth:`save`, or its parts do not fit together.
        """
        return from_file_parts("ReadoutStatistics.load", path, *read(path))

    def _config(self) -> dict[str, Any]:
        return {"input_dims": self.input_dims, "output_dims": self.output_dims, "bias": self.bias}

    def _become(self, state: Moments, dtype: mx.Dtype = mx.float32) -> "ReadoutStatistics":
        """Replace the state by ``state``, made of rows of ``dtype``."""
        self._moments = _evaluated(state)
        if dtype == mx.float64:
            self.dtype = dtype
        return self

    def _batch(self, name: str, x, y, weights) -> tuple[Moments, mx.Dtype]:
        """Check rows, values included; their moments, evaluated, and their working dtype."""
        x, y, weights = check_rows(name, x, y, weights, (self.input_dims, self.output_dims))
        check_values(name, x, y, weights)
        batch = _evaluated(attached_moments(x, y, weights, self.bias))
        if not finite(batch):  # A value that is not finite shows in the sums. Only then look for it.
            refuse_values(name, x, y, weights)
        return batch, dtypes.working(x, y)

    def __copy__(self: _Self) -> _Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> dict[str, Any]:
        # As NumPy arrays, since MLX pickles float64 arrays as float32; a dtype has no pickle at all.
        parts = {key: np.array(part) for key, part in self._moments._asdict().items()}
        return {**self.__dict__, "dtype": _name_of(self.dtype), "_moments": parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with on_cpu():
            parts = {key: mx.array(part, mx.float64) for key, part in state["_moments"].items()}
        self.__dict__.update({**state, "dtype": _DTYPES[state["dtype"]], "_moments": Moments(**parts)})


def add_rows(stats: ReadoutStatistics, name: str, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None) -> None:
    """:meth:`ReadoutStatistics.update` by the ``name`` that errors show."""
    batch, dtype = stats._batch(name, x, y, weights)
    stats._become(merge_moments(stats._moments, batch), dtype)


def file_parts(stats: ReadoutStatistics) -> tuple[dict[str, mx.array], dict[str, str]]:
    """The arrays and the header of a file that holds ``stats``."""
    header = {**stats._config(), "dtype": _name_of(stats.dtype)}
    return stats._moments._asdict(), {key: str(value) for key, value in header.items()}


def from_file_parts(
    name: str, path: Path, arrays: dict[str, mx.array], header: dict[str, str]
) -> ReadoutStatistics:
    """The statistics that a file holds, checked. Errors show ``name`` and ``path``."""
    remedy = "Save the statistics again."
    try:
        bias = {"True": True, "False": False}[header["bias"]]
        stats = ReadoutStatistics(int(header["input_dims"]), int(header["output_dims"]), bias)
        stats.dtype = _DTYPES[header["dtype"]]
    except (KeyError, ValueError):
        fail(name, "the header must have input_dims, output_dims, bias and dtype", f"{header} in {path}", remedy)
    for key, part in stats._moments._asdict().items():
        got = arrays[key].shape if key in arrays else "nothing"
        if got != part.shape:
            fail(name, f"{key} must have the shape {part.shape} of the header", f"{got} in {path}", remedy)
    stats._moments = Moments(**{key: arrays[key] for key in Moments._fields})
    if not finite(stats._moments) or stats.count < 0:
        fail(name, "the statistics must be finite and their count non-negative", f"others in {path}", remedy)
    return stats


def _name_of(dtype: mx.Dtype) -> str:
    return next(name for name, d in _DTYPES.items() if d == dtype)


def _evaluated(state: Moments) -> Moments:
    mx.eval(state)  # Else a graph of all updates would grow, and hold their rows.
    return state
