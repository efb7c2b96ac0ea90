"""Checks of rows (x, y) and their weights: shapes and dtypes, in eager calls values as well."""

import mlx.core as mx

from .._mlx import array, fail, on_cpu, refuse_inexact_integers, visible
from .._types import ArrayLike

Rows = tuple[mx.array, mx.array, mx.array | None]


def check_rows(
    name: str, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None, dims: tuple[int, int] | None = None
) -> Rows:
    """``x`` (..., n), ``y`` (..., k) and ``weights`` (...) as arrays whose shapes fit. ``dims`` is (n, k), if known.

    If k is 1, ``y`` may be (...).
    """
    x, y = _real(name, "x", x, 1), _real(name, "y", y, 0)
    if y.shape == x.shape[:-1] and (dims is None or dims[1] == 1):
        y = y[..., None]  # a single target needs no dimension of its own
    if y.ndim == 0:
        fail(name, "y must have at least 1 dimensions", "shape ()", "Pass one row of y for each row of x.")
    hint = "A single target is y[:, None], or a vector of one number for each row."
    if dims is not None and x.shape[-1] != dims[0]:
        fail(name, f"x must have {dims[0]} features (input_dims)", f"shape {x.shape}", "The last dimension is that.")
    if dims is not None and y.shape[-1] != dims[1]:
        fail(name, f"y must have {dims[1]} targets (output_dims)", f"shape {y.shape}", hint)
    if x.shape[:-1] != y.shape[:-1]:
        fail(name, "x and y must have the same rows", f"shapes {x.shape} and {y.shape}", hint)
    if weights is not None:
        weights = _real(name, "weights", weights, 0)
        if weights.shape != x.shape[:-1]:
            rule = f"weights must have one entry for each row, shape {x.shape[:-1]}"
            fail(name, rule, f"shape {weights.shape}", "Broadcast them first.")
    return x, y, weights


def _real(name: str, label: str, x: ArrayLike, ndim: int) -> mx.array:
    x = array(name, label, x, ndim)
    if x.dtype == mx.complex64:
        fail(name, f"{label} must be real", "complex64", "Pass real and imaginary parts as features.", TypeError)
    return x


def check_values(name: str, x: mx.array, y: mx.array, weights: mx.array | None) -> None:
    """Raise inside of a graph, at a weight that is negative or not finite, and at integers that float32 rounds."""
    if not visible(x, y, weights):
        rule, remedy = "it must be called outside of mx.compile and mx.vmap", "Use pinvnn.streaming.moments there."
        fail(name, rule, "a call inside of one", remedy)
    for label, rows in [("x", x), ("y", y)]:
        refuse_inexact_integers(name, label, rows)
    if weights is not None:
        with on_cpu():
            good = (weights >= 0) & mx.isfinite(weights)
            _refuse(name, "weights must be non-negative and finite", weights[..., None], good[..., None])


def refuse_values(name: str, x: mx.array, y: mx.array, weights: mx.array | None) -> None:
    """Raise for rows whose moments are not finite, and name the first value that is not."""
    with on_cpu():
        absent = mx.array(False) if weights is None else (weights == 0)[..., None]
        for label, rows in [("x", x), ("y", y)]:
            _refuse(name, f"{label} must be finite", rows, mx.isfinite(rows) | absent)
    fail(name, "squares must stay below the largest float64", "an overflow", "Scale the rows down.")


def _refuse(name, rule, values, good):
    if not mx.all(good).item():
        first = int(mx.argmin(good.reshape(-1)).item())  # type: ignore[arg-type]
        got = f"{values.reshape(-1)[first].item()} in row {first // values.shape[-1]}"
        fail(name, rule, got, "Leave such rows out.")
