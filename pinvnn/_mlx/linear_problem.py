"""The arguments a, b and weights of a linear problem: checked, and in the dtype in which the work is done."""

from typing import NamedTuple

import mlx.core as mx

from .._types import ArrayLike, Stream
from . import checks, dtypes
from .eager import visible
from .numbers import refuse_inexact_integers, weights_array
from .place import CPU, astype, large
from .shapes import unbroadcast


class LinearProblem(NamedTuple):
    """Checked arguments.

    Attributes:
        a: ``(..., m, n)``.
        b: ``(..., m, k)``.
        w: Weights ``(..., m)``, or None.
        vector: Whether ``b`` was a vector, as the result is then.
        out: The dtype of the result.
        batches: Labels and batch shapes of the arguments, as :func:`checks.batch_shape` takes them.
    """

    a: mx.array
    b: mx.array
    w: mx.array | None
    vector: bool
    out: mx.Dtype
    batches: list[tuple[str, tuple[int, ...]]]


def linear_problem(
    name: str, a: ArrayLike, b: ArrayLike, weights: ArrayLike | None, stream: Stream = None
) -> LinearProblem:
    """The arguments of function ``name``. Rows of weight 0 may hold NaN and Inf: see :func:`without_unweighted`."""
    a, b = checks.array(name, "a", a, 2), checks.array(name, "b", b, 1)
    out, work = dtypes.result(a, b), dtypes.working(a, b)
    w = None if weights is None else weights_array(name, "weights", weights, work)
    checks.rows(name, a, b, w)
    for label, x in (("a", a), ("b", b)):
        refuse_inexact_integers(name, label, x, work)
    vector = b.ndim == 1
    batches = [("a", a.shape[:-2]), ("b", () if vector else b.shape[:-2])]
    if w is not None:
        batches.append(("weights", w.shape[:-1]))
    checks.batch_shape(name, *batches)
    with large(work, stream):
        a, b = astype(a, work), astype(b, work)
        b = b[:, None] if vector else b
        if w is not None:
            (a, b), w = without_unweighted([a, b], w)
    return LinearProblem(a, b, w, vector, out, batches)


def without_unweighted(rows: list[mx.array], w: mx.array) -> tuple[list[mx.array], mx.array]:
    """Arrays ``(..., m, .)`` and weights ``(..., m)`` with zeros in place of what rows of weight 0 hold, if not finite.

    A product 0 * NaN would be NaN. The gradient of such a weight is 0; that of a weight 0 of a finite row is exact.
    To be called where operations of the dtype of the arrays may stand. Costs nothing if no weight is seen to be 0.
    """
    if visible(w) and not mx.any(w == 0, stream=CPU).item():
        return rows, w
    for i, x in enumerate(rows):
        bad = mx.logical_and(w == 0, ~mx.all(mx.isfinite(x), axis=-1))
        rows = [*rows[:i], mx.where(bad[..., None], mx.zeros_like(x), x), *rows[i + 1 :]]
        # The weight may serve several problems of a batch.
        w = mx.where(unbroadcast(bad.astype(mx.int32), w.shape) > 0, mx.zeros_like(w), w)
    return rows, w
