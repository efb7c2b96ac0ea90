"""Checks of arguments, all made before any work. Errors read ``[pinvnn.name] rule, but got value. Remedy.``"""

import math
from numbers import Real
from typing import Any, NoReturn

import mlx.core as mx

from .._types import ArrayLike, Penalty, Tolerance
from . import dtypes
from .complex import h
from .place import astype


def fail(name: str, rule: str, got: object, remedy: str, error: type[Exception] = ValueError) -> NoReturn:
    """Raise ``error`` in the library's wording."""
    raise error(f"[pinvnn.{name}] {rule}, but got {got}. {remedy}")


def array(name: str, label: str, x: Any, ndim: int = 0) -> mx.array:
    """``x`` as an array of at least ``ndim`` dimensions. It may be anything that ``mx.array`` takes, except strings."""
    if not isinstance(x, mx.array):
        try:
            if isinstance(x, (str, bytes)) or x is None:
                raise TypeError
            x = mx.array(_plain(x))
        except (TypeError, ValueError, RuntimeError) as error:
            got, remedy = _unconvertible(x, error)
            fail(name, f"{label} must be an array", f"{type(x).__name__} {got}", remedy, TypeError)
    if x.ndim < ndim:
        fail(name, f"{label} must have at least {ndim} dimensions", f"shape {x.shape}", f"Reshape {label}.")
    return x


def _plain(x: Any) -> Any:
    """``x`` as ``mx.array`` takes it: MLX does not know all of NumPy's layouts, nor tables such as those of pandas."""
    if not hasattr(x, "__array_interface__"):
        table = hasattr(x, "__array__") and not hasattr(x, "dtype")
        return _plain(x.__array__()) if table else x
    if _masked(x):
        raise TypeError
    kind, size = x.dtype.kind, x.dtype.itemsize
    widest = 16 if kind == "c" else 8
    if kind in "biufc" and (not x.dtype.isnative or size > widest):
        x = x.astype(f"{kind}{min(size, widest)}")
    return x.copy() if min(x.strides, default=0) < 0 else x  # NumPy's x[::-1] has negative strides.


def _masked(x: Any) -> int:
    """How many entries of one of NumPy's masked arrays are masked."""
    return 0 if getattr(x, "mask", None) is None else int(x.mask.sum())


def _unconvertible(x: Any, error: Exception) -> tuple[str, str]:
    """What ``x`` is that ``mx.array`` refuses with ``error``, after the name of its type; and a remedy."""
    if hasattr(x, "__array_interface__") and _masked(x):
        return f"with {_masked(x)} masked entries", "Fill them: x.filled(0), and give their rows weight 0."
    kind = getattr(getattr(x, "dtype", None), "kind", "")
    if kind and kind not in "biufc":
        return f"of {x.dtype}", "Pass numbers: x.astype(float)."
    if "non-uniform length" in str(error):
        return "of lists that differ in length", "Pass lists of the same length."
    return f"{x!r:.40}", "Pass an mx.array."


def matrix(name: str, a: ArrayLike, hermitian: bool = False) -> mx.array:
    """``a`` as a matrix ``(..., m, n)``, which must be square if ``hermitian``."""
    a = array(name, "a", a, 2)
    if hermitian and a.shape[-1] != a.shape[-2]:
        fail(name, "a Hermitian matrix must be square", f"shape {a.shape}", "Leave hermitian=False.")
    return a


def in_working_dtype(a: mx.array, dtype: mx.Dtype, hermitian: bool) -> mx.array:
    """``a`` as ``dtype``; its Hermitian part if ``hermitian``."""
    a = astype(a, dtype)
    return (a + h(a)) * 0.5 if hermitian else a


def real_array(name: str, label: str, x: ArrayLike, like: mx.Dtype) -> mx.array:
    """``x``, which must be real, as an array in the real dtype that goes with ``like``."""
    x = array(name, label, x)
    if x.dtype == mx.complex64:
        fail(name, f"{label} must be real", "complex64", "Pass its real part.", TypeError)
    return astype(x, dtypes.real(like))


def tolerance(name: str, label: str, t: Tolerance, batch: tuple[int, ...] | None = None) -> mx.array | float | None:
    """``t``: None, a non-negative number, or an array that broadcasts to ``batch``."""
    if t is None:
        return None
    if isinstance(t, Real):
        return _non_negative(name, label, t, "Pass 0 to keep every non-zero singular value.")
    t = array(name, label, t)
    if t.dtype == mx.complex64:
        fail(name, f"{label} must be real", "complex64", "Pass its real part.", TypeError)
    if batch is not None and not broadcasts_to(t.shape, batch):
        fail(name, f"{label} must be a number or an array over the batch {batch}", f"shape {t.shape}", "Reshape it.")
    return t


def tolerances(
    name: str, a: mx.array, rtol: Tolerance, atol: Tolerance
) -> tuple[mx.array | float | None, mx.array | float | None]:
    """Both cutoffs of ``a``, checked."""
    batch = a.shape[:-2]
    return tolerance(name, "rtol", rtol, batch), tolerance(name, "atol", atol, batch)


def _non_negative(name: str, label: str, x, remedy: str) -> float:
    try:
        number = float(x)
    except OverflowError:  # an int beyond float64
        number = math.inf
    if not 0 <= number < math.inf:
        fail(name, f"{label} must be non-negative and finite", f"{number}", remedy)
    return number


def penalty(name: str, l2: Penalty, n: int, k: int, vector: bool) -> mx.array | float:
    """``l2``: a number or an array that broadcasts against the solution, (n, k), or (n,) if b is a ``vector``."""
    if isinstance(l2, Real):
        return _non_negative(name, "l2", l2, "Pass 0 for no penalty.")
    l2 = array(name, "l2", l2)
    if l2.dtype == mx.complex64:
        fail(name, "l2 must be real", "complex64", "Pass its real part.", TypeError)
    core = (n,) if vector else (n, k)
    if not broadcasts_to(l2.shape[-len(core) :], core):
        fail(name, f"l2 must broadcast against the solution {core}", f"shape {l2.shape}", "Pass a scalar or (n, 1).")
    return l2


def batch_shape(name: str, *named: tuple[str, tuple[int, ...]]) -> tuple[int, ...]:
    """What the batch shapes broadcast to, each given as (label, shape)."""
    try:
        return tuple(mx.broadcast_shapes(*(shape for _, shape in named)))
    except ValueError:
        got = " and ".join(f"{label} {shape}" for label, shape in named)
        fail(name, "batch dimensions must broadcast", got, "Add or remove batch dimensions.")


def rows(name: str, a: mx.array, b: mx.array, weights: mx.array | None = None) -> None:
    """Check that ``a`` (..., m, n), ``b`` (m,) or (..., m, k) and ``weights`` (..., m) have the same rows."""
    m, got = a.shape[-2], b.shape[0 if b.ndim == 1 else -2]
    if m != got:
        hint = "b is a vector only if it is 1-D; otherwise it is (..., m, k)."
        fail(name, "a and b must have the same number of rows", f"{m} and {got}", hint)
    if weights is not None:
        row_weights(name, a, weights)


def row_weights(name: str, a: mx.array, weights: mx.array) -> None:
    """Check that ``weights`` (..., m) have an entry for each row of ``a`` (..., m, n)."""
    m = a.shape[-2]
    if weights.ndim == 0 or weights.shape[-1] != m:
        fail(name, f"weights must have one entry for each of the {m} rows", f"shape {weights.shape}", "Reshape them.")


def broadcasts_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether an array of ``shape`` broadcasts to ``target``."""
    try:
        return mx.broadcast_shapes(shape, target) == tuple(target)
    except ValueError:
        return False
