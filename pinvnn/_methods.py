"""The named methods of pinv, lstsq, factorize and ridge: what each takes, and the class that serves it.

Checks, dispatch and tests are made from these tables.
"""

from typing import Any, Literal, NamedTuple

import mlx.core as mx

from ._factor.full_rank import full_rank, inverse_by_lu
from ._factor.ridge_inverse import ridge_route
from ._factorizations import Cutoffs, Dual, Factorization, FullRank, Penalized, Square, Truncated
from ._mlx import checks
from ._mlx.centred import Matrix, rounded
from ._mlx.complex import h


class Capability(NamedTuple):
    """What a method without a penalty takes.

    Attributes:
        factorization: The class that serves it.
        what: For the error text: what it is for, and what it does.
        dtypes: Working dtypes of A.
        weights: Of which matrices they are taken.
    """

    factorization: type[Factorization]
    what: str
    dtypes: tuple[mx.Dtype, ...]
    weights: Literal["all", "tall", "none"] = "all"


#: Beside them "auto", which is right for every input: the fastest class that is verified to be accurate.
METHODS = {
    "gram": Capability(
        Truncated,
        "float32, complex64 and half input: a Gram matrix accumulated in float64 and its eigenvalues",
        (mx.float32, mx.complex64),
    ),
    "svd": Capability(Truncated, "real input: a singular value decomposition in float64", (mx.float32, mx.float64)),
    "cholesky": Capability(
        FullRank,
        "full rank: a Cholesky factor of the Gram matrix; NaN if full rank cannot be verified",
        (mx.float32, mx.float64, mx.complex64),
        "tall",
    ),
    "slices": Capability(
        Truncated,
        "float32 and half input without weights: 'gram' with the Gram matrix on the default device",
        (mx.float32,),
        "none",
    ),
}
#: With a penalty. "cholesky" takes either class, and never singular vectors.
RIDGE_METHODS = {"auto": (Penalized, Dual), "primal": (Penalized,), "dual": (Dual,), "cholesky": (Penalized, Dual)}


def check_method(name: str, method: str, a: mx.array, dtype: mx.Dtype, weighted: bool = False) -> None:
    """``method`` must be "auto" or serve ``a`` (..., m, n) in the working ``dtype``, with weights if ``weighted``."""
    if method == "auto":
        return
    if method not in METHODS:
        checks.fail(name, f"method must be one of {', '.join(['auto', *METHODS])}", f"{method!r}", "Use 'auto'.")
    takes = METHODS[method]
    rule, remedy = f"method {method!r}", "Use method='auto'."
    if dtype not in takes.dtypes:
        checks.fail(name, f"{rule} is for {takes.what}", f"{dtype}", remedy)
    if weighted and takes.weights == "none":
        checks.fail(name, f"{rule} takes no weights", "weights", remedy)
    if weighted and takes.weights == "tall" and a.shape[-2] < a.shape[-1]:
        checks.fail(name, f"{rule} with weights needs at least as many rows as columns", f"shape {a.shape}", remedy)


def check_ridge_method(name: str, method: str, l2: mx.array) -> None:
    """``method`` must serve the penalty ``(..., 1 or n, 1 or k)``."""
    if method not in RIDGE_METHODS:
        checks.fail(name, f"method must be one of {', '.join(RIDGE_METHODS)}", f"{method!r}", "Use 'auto'.")
    if Penalized not in RIDGE_METHODS[method] and l2.shape[-2] > 1:
        checks.fail(name, "the dual form needs the same l2 for all features", f"shape {l2.shape}", "Use 'primal'.")


def factor_problem(
    a: Matrix,
    w: mx.array | None = None,
    rtol: mx.array | float | None = None,
    atol: mx.array | float | None = None,
    method: str = "auto",
    b: Matrix | None = None,
) -> Factorization:
    """Factor a problem without a penalty by the method, "auto" by the fastest that is verified to be accurate.

    Args:
        a: ``(..., m, n)``, not empty, in a working dtype.
        w: Weights ``(..., m)`` in its real dtype, or None.
        rtol: Relative cutoff, or None.
        atol: Absolute cutoff, or None.
        method: Checked.
        b: A right-hand side that will be solved for, if known: A^H D b is then formed together with A^H D A.
    """
    m, n = a.shape[-2:]
    w = None if w is None else mx.broadcast_to(w, (*a.shape[:-2], m))
    if method != "auto" and METHODS[method].factorization is Truncated:
        return Truncated(a, w, rtol, atol, method)
    tall = a if w is not None or m >= n else h(rounded(a))
    known = full_rank(tall, rtol, atol, w, b if tall is a else None, method)
    if known is None:
        return Truncated(a, w, rtol, atol)
    if method == "auto" and w is None and m == n and (value := inverse_by_lu(rounded(a))) is not None:
        return Square(rounded(a), value)
    return FullRank(a, w, known, rtol, atol, method == "auto", b)


def factor_ridge(
    a: Matrix,
    w: mx.array | None,
    l2: mx.array,
    method: Any = "auto",
    unpenalized: bool = False,
    b: Matrix | None = None,
    cutoffs: Cutoffs = (None, None),
) -> Factorization:
    """Factor a problem with a penalty, in its n x n or its m x m form.

    Args:
        a: ``(..., m, n)``, not empty, in a working dtype.
        w: Weights ``(..., m)`` in its real dtype, or None.
        l2: ``(..., 1 or n, 1 or k)``, float64.
        method: Checked.
        unpenalized: Whether ``l2`` was given as the number 0.
        b: A right-hand side that will be solved for, if known.
        cutoffs: Relative and absolute, for the rank of the matrix without the penalty.
    """
    route = ridge_route(method, a.shape[-2:], l2, a.dtype, unpenalized)
    if route == "dual":
        return Dual(a, w, l2, method, cutoffs)
    return Penalized(a, w, l2, route, method, b, cutoffs)
