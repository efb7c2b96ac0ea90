"""Every error: its type, its rule, the value that was given and the remedy, before any work."""

import re

import mlx.core as mx
import numpy as np
import pytest

from pinvnn import (
    diagnose,
    factorize,
    lsq_linear,
    lstsq,
    matrix_rank,
    nnls,
    null_space,
    orth,
    penrose_residuals,
    pinv,
    ridge,
)
from tests.support.cases import array

A, B = mx.ones((5, 3)), mx.ones((5, 2))
A64 = array(np.ones((5, 3)), mx.float64)
AC = mx.ones((5, 3), mx.complex64)

ONE_MATRIX = {"pinv": pinv, "matrix_rank": matrix_rank, "diagnose": diagnose, "orth": orth, "null_space": null_space}
NOT_ARRAYS = {
    "str": "abc", "None": None, "object": object(), "ragged": [[1, 2], [3]], "set": {1}, "dict": {1: 2},
    "array of str": np.array([["a"]]), "array of objects": np.array([[None]]),
    "array of dates": np.zeros((2, 2), "datetime64[s]"),
}  # fmt: skip


def raises(error, start, fn, *args, **kwargs):
    with pytest.raises(error, match=re.escape(start)) as caught:
        fn(*args, **kwargs)
    assert re.fullmatch(r"\[pinvnn\.\w+\] .+, but got .+\. [A-Zb].+\.", str(caught.value), re.DOTALL)


@pytest.mark.parametrize("name", ONE_MATRIX)
@pytest.mark.parametrize("value", NOT_ARRAYS.values(), ids=NOT_ARRAYS)
def test_no_array(value, name):
    raises(TypeError, f"[pinvnn.{name}] a must be an array, but got {type(value).__name__}", ONE_MATRIX[name], value)


@pytest.mark.parametrize("value", NOT_ARRAYS.values(), ids=NOT_ARRAYS)
def test_no_array_elsewhere(value):
    got = f"must be an array, but got {type(value).__name__}"
    raises(TypeError, f"[pinvnn.lstsq] a {got}", lstsq, value, B)
    raises(TypeError, f"[pinvnn.lstsq] b {got}", lstsq, A, value)
    raises(TypeError, f"[pinvnn.ridge] a {got}", ridge, value, B, 1.0)
    raises(TypeError, f"[pinvnn.ridge] b {got}", ridge, A, value, 1.0)
    raises(TypeError, f"[pinvnn.ridge] l2 {got}", ridge, A, B, value)
    raises(TypeError, f"[pinvnn.penrose_residuals] a {got}", penrose_residuals, value, A)
    raises(TypeError, f"[pinvnn.penrose_residuals] p {got}", penrose_residuals, A, value)


@pytest.mark.parametrize("value", [v for v in NOT_ARRAYS.values() if v is not None])
def test_weights_that_are_no_array(value):
    got = f"weights must be an array, but got {type(value).__name__}"
    raises(TypeError, f"[pinvnn.lstsq] {got}", lstsq, A, B, weights=value)
    raises(TypeError, f"[pinvnn.ridge] {got}", ridge, A, B, 1.0, weights=value)


@pytest.mark.parametrize("name", ONE_MATRIX)
def test_too_few_dimensions(name):
    raises(ValueError, f"[pinvnn.{name}] a must have at least 2 dimensions, but got shape (3,)", ONE_MATRIX[name], A[0])
    raises(ValueError, f"[pinvnn.{name}] a must have at least 2 dimensions, but got shape ()", ONE_MATRIX[name], 3.0)


@pytest.mark.parametrize("name", ["orth", "null_space"])
def test_bases_of_one_finite_matrix(name):
    fn = ONE_MATRIX[name]
    raises(ValueError, f"[pinvnn.{name}] a must be one matrix, but got shape (2, 5, 3)", fn, mx.ones((2, 5, 3)))
    for bad in (float("nan"), complex(0, np.inf)):
        raises(ValueError, f"[pinvnn.{name}] a must be finite, but got NaN or Inf", fn, mx.array([[1.0, bad]]))


@pytest.mark.parametrize(
    ("function", "p", "start"),
    [
        (penrose_residuals, A, "p must have the shape of the transpose of a, but got (5, 3) and (5, 3)"),
        (penrose_residuals, A[0], "p must have at least 2 dimensions, but got shape (3,)"),
        (penrose_residuals, mx.ones((2, 3, 5)), None),
    ],
)
def test_penrose(function, p, start):
    if start is None:
        start, a = "batch dimensions must broadcast, but got a (3,) and p (2,)", mx.ones((3, 5, 3))
    else:
        a = A
    raises(ValueError, f"[pinvnn.penrose_residuals] {start}", function, a, p)


# --- What NumPy and others hand over ----------------------------------------------------------------------------------

ROWS = np.arange(6.0).reshape(2, 3)


class Table:
    """What pandas and polars have in common: an array only if asked for one."""

    def __array__(self, dtype=None, copy=None):
        return ROWS


@pytest.mark.parametrize(
    "value",
    [ROWS[::-1, ::-1], ROWS.astype(">f8"), ROWS.astype(">i2"), ROWS.astype(np.longdouble), np.ma.array(ROWS), Table()],
    ids=["negative strides", "big-endian", "big-endian integers", "long double", "nothing masked", "table"],
)
def test_arrays_of_all_layouts(value):
    np.testing.assert_array_equal(np.array(pinv(value)), np.array(pinv(np.array(value).astype(np.float32).copy())))


def test_what_is_masked_is_not_read_as_data():
    start = "[pinvnn.pinv] a must be an array, but got MaskedArray with 2 masked entries. Fill them"
    raises(TypeError, start, pinv, np.ma.array(ROWS, mask=ROWS > 3))


STAMPS = [np.array([[2**24 + 1], [5]], d) for d in ("int32", "uint32", "int64", "uint64")]
EXACT = "must be exact in float32, but got"


@pytest.mark.parametrize(
    ("name", "label", "fn"),
    [
        ("pinv", "a", pinv),
        ("matrix_rank", "a", matrix_rank),
        ("diagnose", "a", diagnose),
        ("orth", "a", orth),
        ("null_space", "a", null_space),
        ("penrose_residuals", "a", lambda a: penrose_residuals(a, mx.ones((1, 2)))),
        ("penrose_residuals", "p", lambda p: penrose_residuals(mx.ones((1, 2)), p)),
        ("factorize", "a", factorize),
        ("factorize", "weights", lambda w: factorize(mx.ones((2, 1)), weights=w[:, 0])),
        ("lstsq", "a", lambda a: lstsq(a, mx.ones(2))),
        ("lstsq", "b", lambda b: lstsq(mx.ones((2, 1)), b)),
        ("lstsq", "weights", lambda w: lstsq(mx.ones((2, 1)), mx.ones(2), weights=w[:, 0])),
        ("ridge", "a", lambda a: ridge(a, mx.ones(2), 1.0)),
        ("nnls", "b", lambda b: nnls(mx.ones((2, 1)), b)),
        ("lsq_linear", "a", lambda a: lsq_linear(a, mx.ones(2), (0, 1))),
    ],
)
def test_integers_that_float32_rounds(name, label, fn):
    for value in STAMPS:
        remedy = f"Subtract an offset, or pass float64: mx.array({label}"
        if label == "weights":
            remedy = "If rounded ones will do, cast them: weights.astype(mx.float32)."
        raises(ValueError, f"[pinvnn.{name}] integers in {label} {EXACT} 16777217. {remedy}", fn, mx.array(value))
        fn(mx.array(value - value % 2 * (value > 5)))  # 2^24 + 2 k is exact.


def test_integers_at_the_end_of_their_range():
    """2^64 - 1 is rounded to 2^64, which comes back as 2^64 - 1."""
    for bits, kind in [(32, "uint32"), (64, "uint64"), (31, "int32"), (63, "int64")]:
        last = 2**bits - 1
        raises(ValueError, f"{EXACT} {last}. Subtract an offset", pinv, mx.array(np.array([[last]], kind)))
    raises(ValueError, f"{EXACT} {2**53 + 1}. Subtract an offset.", pinv, mx.array(np.array([[2**53 + 1]])))
    with mx.stream(mx.cpu):
        wide = mx.array([1.0], mx.float64)
    raises(ValueError, "must be exact in float64, but got", lstsq, mx.array(np.array([[2**53 + 1]])), wide)
    lstsq(mx.array(np.array([[2**53 - 1]])), wide)


# --- Cutoffs ----------------------------------------------------------------------------------------------------------

CUT = [
    (name, fn, label)
    for name, fn in {**ONE_MATRIX, "lstsq": lambda a, **k: lstsq(a, B, **k)}.items()
    for label in ("rtol", "atol")
    if (name, label) not in (("orth", "atol"), ("null_space", "atol"))
]


@pytest.mark.parametrize(("name", "fn", "label"), CUT)
def test_cutoffs(name, fn, label):
    where = f"[pinvnn.{name}] {label} must be"
    for value in (-1, -1e-30, float("nan"), float("inf"), np.float32(-1), 10**400):
        raises(ValueError, f"{where} non-negative and finite, but got", fn, A, **{label: value})
    start = f"{where} a number or an array over the batch (), but got shape (2,)"
    raises(ValueError, start, fn, A, **{label: mx.ones(2)})
    raises(TypeError, f"{where} real, but got complex64", fn, A, **{label: mx.array(1j)})
    raises(TypeError, f"{where} real, but got complex64", fn, A, **{label: 1j})
    raises(TypeError, f"{where} an array, but got str", fn, A, **{label: "small"})


# --- Hermitian, method ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pinv", "matrix_rank"])
def test_hermitian_is_square(name):
    start = f"[pinvnn.{name}] a Hermitian matrix must be square, but got shape (5, 3)"
    raises(ValueError, start, ONE_MATRIX[name], A, hermitian=True)


@pytest.mark.parametrize(("name", "fn"), [("pinv", pinv), ("lstsq", lambda a, **k: lstsq(a, B, **k))])
def test_method(name, fn):
    raises(ValueError, f"[pinvnn.{name}] method must be one of auto, ", fn, A, method="fast")
    raises(ValueError, f"[pinvnn.{name}] method must be one of auto, ", fn, A, method=None)
    raises(ValueError, f"[pinvnn.{name}] method 'gram' is for float32", fn, A64, method="gram")
    raises(ValueError, f"[pinvnn.{name}] method 'svd' is for real input", fn, AC, method="svd")


def test_cholesky_with_weights_is_for_tall_matrices():
    start = "[pinvnn.lstsq] method 'cholesky' with weights needs at least as many rows as columns, but got shape (3, 5)"
    raises(ValueError, start, lstsq, A.T, mx.ones((3,)), weights=mx.ones((3,)), method="cholesky")


def test_method_of_ridge():
    start = "[pinvnn.ridge] method must be one of auto, primal, dual, cholesky, but got 'svd'"
    raises(ValueError, start, ridge, A, B, 1.0, method="svd")
    start = "[pinvnn.ridge] the dual form needs the same l2 for all features, but got shape (3, 1)"
    raises(ValueError, start, ridge, A, B, mx.ones((3, 1)), method="dual")


# --- Shapes of a, b, weights, l2 --------------------------------------------------------------------------------------

FITS = [("lstsq", lambda *ab, **k: lstsq(*ab, **k)), ("ridge", lambda *ab, **k: ridge(*ab, 1.0, **k))]


@pytest.mark.parametrize(("name", "fn"), FITS)
def test_rows(name, fn):
    where = f"[pinvnn.{name}] a and b must have the same number of rows, but got"
    raises(ValueError, f"{where} 5 and 4. b is a vector only if it is 1-D", fn, A, B[:4])
    raises(ValueError, f"{where} 5 and 4", fn, A, B[:4, 0])
    raises(ValueError, f"{where} 5 and 2. b is a vector only if it is 1-D", fn, mx.ones((2, 5, 3)), mx.ones((2, 5)))
    raises(ValueError, f"[pinvnn.{name}] b must have at least 1 dimension", fn, A, 1.0)


@pytest.mark.parametrize(("name", "fn"), FITS)
def test_weights(name, fn):
    where = f"[pinvnn.{name}] weights must have one entry for each of the 5 rows, but got shape"
    raises(ValueError, f"{where} (4,)", fn, A, B, weights=mx.ones(4))
    raises(ValueError, f"{where} (1,)", fn, A, B, weights=mx.ones(1))
    raises(ValueError, f"{where} ()", fn, A, B, weights=2.0)
    raises(TypeError, f"[pinvnn.{name}] weights must be real, but got complex64", fn, A, B, weights=mx.ones(5) * 1j)


@pytest.mark.parametrize(("name", "fn"), FITS)
def test_batches(name, fn):
    where = f"[pinvnn.{name}] batch dimensions must broadcast, but got a (2,) and"
    raises(ValueError, where, fn, mx.ones((2, 5, 3)), mx.ones((3, 5, 2)))
    raises(ValueError, where, fn, mx.ones((2, 5, 3)), B, weights=mx.ones((3, 5)))


@pytest.mark.parametrize(
    "value", [-1, -1e-300, float("nan"), float("inf"), np.float64(-1), pytest.param(10**400, id="overflow")]
)
def test_penalty_number(value):
    raises(ValueError, "[pinvnn.ridge] l2 must be non-negative and finite, but got", ridge, A, B, value)


def test_penalty_shape():
    where = "[pinvnn.ridge] l2 must broadcast against the solution"
    raises(ValueError, f"{where} (3, 2), but got shape (3,)", ridge, A, B, mx.ones(3))
    raises(ValueError, f"{where} (3, 2), but got shape (1, 3)", ridge, A, B, mx.ones((1, 3)))
    raises(ValueError, f"{where} (3,), but got shape (2,)", ridge, A, B[:, 0], mx.ones(2))
    raises(ValueError, f"{where} (3, 2), but got shape (5, 2, 2)", ridge, A, B, mx.ones((5, 2, 2)))
    raises(TypeError, "[pinvnn.ridge] l2 must be real, but got complex64", ridge, A, B, 1j)
    start = "[pinvnn.ridge] batch dimensions must broadcast, but got a (2,)"
    raises(ValueError, start, ridge, mx.ones((2, 5, 3)), B, mx.ones((3, 1, 1)))


@pytest.mark.parametrize("transform", [mx.compile, mx.grad])
def test_errors_in_a_transform_are_the_same(transform):
    fn = transform(lambda a: lstsq(a, B[:4]).solution.sum())
    raises(ValueError, "[pinvnn.lstsq] a and b must have the same number of rows", fn, A)
