"""Statistics of rows that were seen, and removed, piece by piece."""

from functools import reduce
from os import PathLike
from typing import Any

import mlx.core as mx

from .._mlx import dtypes, fail, on_cpu
from ._distributed import Group, agree, gather, reduce_moments
from ._file import read, write
from ._moments import Moments, block_moments, empty_moments, finite, merge_moments, negated, scaled
from ._rows import check_rows, check_weights, refuse_values
from ._solve import gcv_moments, solve_moments

_DTYPES = {"float32": mx.float32, "float64": mx.float64}
# Of the counts and variances before a removal: what rounding may leave of them, and nothing else.
_ROUNDING = 1e-9


class ReadoutStatistics:
    r"""All that a linear readout needs of its data, in :math:`n^2 + nk` numbers: rows come and go and are never held.

    Means and centred sums of products are kept in float64 on the CPU and merged exactly (see :func:`merge_moments`): a
    readout from ten million rows in pieces is the one from all rows at once, also where the mean is a thousand times
    the spread. All methods that change the statistics return them.

    The methods are eager: they check the values that they are given and evaluate the new state, so no graph grows and
    no more than a block of rows is ever held in float64. They may be used inside ``mx.grad`` (the result of
    :meth:`solve` is differentiable in the rows, also after :meth:`all_reduce`), but not inside ``mx.compile`` or
    ``mx.vmap``: take :func:`moments` there. ``copy.copy`` gives independent statistics, at no cost.

    Args:
        input_dims: Number of input features n.
        output_dims: Number of targets k.
        bias: Whether the readout has an intercept. Default ``True``.

    Shape:
        - x: ``(..., input_dims)``, y: ``(..., output_dims)``, weights: ``(...)``; all leading dimensions are rows.
        - weight: ``(output_dims, input_dims)`` and bias: ``(output_dims,)``, as in ``mlx.nn.Linear``; float64 if any
          rows were, else float32.

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
        for label, dims in [("input_dims", input_dims), ("output_dims", output_dims)]:
            if not isinstance(dims, int) or dims < 0:
                fail("ReadoutStatistics", f"{label} must be a non-negative integer", f"{dims!r}", "Pass a size.")
        self.input_dims = input_dims
        self.output_dims = output_dims
        self.bias = bool(bias)
        self.dtype = mx.float32
        self._moments = empty_moments(input_dims, output_dims)
        mx.eval(self._moments)

    def __repr__(self) -> str:
        return (
            f"ReadoutStatistics(input_dims={self.input_dims}, output_dims={self.output_dims}, bias={self.bias}, "
            f"count={self.count:g})"
        )

    @property
    def count(self) -> float:
        """Sum of the weights of the rows held; without weights and decay, their number."""
        return float(self._moments.count.item())  # type: ignore[arg-type]

    @property
    def moments(self) -> Moments:
        """The state, for :func:`merge_moments` and its like."""
        return self._moments

    def update(self, x, y, weights=None) -> "ReadoutStatistics":
        """Add rows. A row of weight 2 is the row given twice.

        Raises:
            TypeError: An argument is no array, or complex.
            ValueError: Shapes do not fit, a weight is negative or not finite, or a row is not finite (also one of
                weight 0). The statistics are then as they were.
        """
        batch, dtype = self._batch("update", x, y, weights)
        return self._become(merge_moments(self._moments, batch), dtype)

    def downdate(self, x, y, weights=None) -> "ReadoutStatistics":
        """Take rows away that were added before, with the weight that they have now.

        Raises:
            TypeError: As :meth:`update`.
            ValueError: As :meth:`update`; or the rows weigh more or vary more than all rows held.
        """
        batch, _ = self._batch("downdate", x, y, weights)
        name, remedy = "ReadoutStatistics.downdate", "Take away rows that were added, with the weight they have now."
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
        """Multiply the weights of all rows held by ``factor``, between 0 and 1: old rows count less than new ones.

        Raises:
            ValueError: ``factor`` is not between 0 and 1.
        """
        if not 0 <= factor <= 1:
            fail("ReadoutStatistics.decay", "factor must be between 0 and 1", f"{factor}", "Pass 1 to forget nothing.")
        if factor == 0:
            return self._become(empty_moments(self.input_dims, self.output_dims))
        return self._become(scaled(self._moments, float(factor)))

    def merge(self, other: "ReadoutStatistics") -> "ReadoutStatistics":
        """Add all rows that ``other`` holds, which is left as it is.

        Raises:
            TypeError: ``other`` is something else.
            ValueError: ``other`` has other features, targets or ``bias``.
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
        """Take up the rows of all ranks of ``mx.distributed``: every rank then holds the same statistics.

        Every rank must call this, with or without rows. To go on counting on each rank, reduce a copy
        (``copy.copy(stats).all_reduce()``): a second call would count all rows once for each rank. Gradients are those
        of the sum of the ranks' losses, so every rank must take them, too; see :func:`reduce_moments`.

        Args:
            group: The ranks, by default all of them. Without a launcher that is this process alone.

        Raises:
            ValueError: The ranks have different features, targets or ``bias``; on every rank, before any data is sent.
        """
        group = group or mx.distributed.init()
        agree("ReadoutStatistics.all_reduce", {key: int(value) for key, value in self._config().items()}, group)
        wide = any(gather([self.dtype == mx.float64], group)[0])
        return self._become(reduce_moments(self._moments, group), mx.float64 if wide else mx.float32)

    def solve(self, l2=0.0) -> tuple[mx.array, mx.array | None]:
        """The readout ``(weight, bias)`` that fits the rows held best; bias is None if there is none.

        See :func:`solve_moments`. No rows give zeros.
        """
        return solve_moments(self._moments, l2, bias=self.bias, dtype=self.dtype)

    def gcv(self, l2=0.0) -> mx.array:
        """Generalized cross validation score of :meth:`solve`, a scalar. See :func:`gcv_moments`."""
        return gcv_moments(self._moments, l2, bias=self.bias, dtype=self.dtype)

    def save(self, path: str | PathLike) -> None:
        """Write a safetensors file. A crash on the way leaves the file that was there before."""
        header = {**self._config(), "dtype": next(name for name, d in _DTYPES.items() if d == self.dtype)}
        write(path, self._moments._asdict(), {key: str(value) for key, value in header.items()})

    @classmethod
    def load(cls, path: str | PathLike) -> "ReadoutStatistics":
        """Read what :meth:`save` has written.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is truncated, or written by something else, or its parts do not fit together.
        """
        arrays, header = read(path)
        name, remedy = "ReadoutStatistics.load", "Save the statistics again."
        try:
            bias = {"True": True, "False": False}[header["bias"]]
            stats = cls(int(header["input_dims"]), int(header["output_dims"]), bias)
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

    def _config(self) -> dict[str, Any]:
        return {"input_dims": self.input_dims, "output_dims": self.output_dims, "bias": self.bias}

    def _become(self, state: Moments, dtype: mx.Dtype = mx.float32) -> "ReadoutStatistics":
        self._moments = _evaluated(state)
        if dtype == mx.float64:
            self.dtype = dtype
        return self

    def _batch(self, method, x, y, weights) -> tuple[Moments, mx.Dtype]:
        """Evaluated moments of rows that have been found in order, and the dtype that they ask for."""
        name = f"ReadoutStatistics.{method}"
        x, y, weights = check_rows(name, x, y, weights, (self.input_dims, self.output_dims))
        if weights is not None:
            check_weights(name, weights)
        batch = reduce(_merged, block_moments(x, y, weights, self.bias))
        if not finite(batch):  # The sums have seen every value, so looking at each one is only worth it now.
            refuse_values(name, x, y)
        return batch, dtypes.working(x, y)


def _evaluated(state: Moments) -> Moments:
    mx.eval(state)  # Else a graph of all updates would grow, and hold their rows.
    return state


def _merged(a: Moments, b: Moments) -> Moments:
    return _evaluated(merge_moments(a, b))
