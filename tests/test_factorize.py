"""One factorization for many solves: values beside NumPy and the other functions, derivatives of every order."""

import mlx.core as mx
import numpy as np
import pytest

import pinvnn
from pinvnn.testing import adjoint_check, gradcheck, transform_check
from tests.support.cases import DTYPES, close, deficient, gaussian, numpy, positive, real

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

FORMS = {"tall": (6, 3), "wide": (3, 5), "square": (4, 4)}
forms = pytest.mark.parametrize("shape", FORMS.values(), ids=FORMS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
# (weighted, shape of l2 for n features or None)
OPTIONS = {"plain": (False, None), "weighted": (True, None), "l2": (False, ()), "feature": (True, "n")}
options = pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
VALUE_RTOL = {mx.float64: 1e-12, mx.float32: 5e-6, mx.complex64: 5e-6}


def problem(shape, option, dtype=mx.float64):
    """a, weights and l2, the last two None if not asked for."""
    weighted, of_l2 = option
    m, n = shape
    w = positive((m,), real(dtype)) if weighted else None
    l2 = None if of_l2 is None else positive((n, 1) if of_l2 == "n" else (), mx.float64, 5)
    return gaussian(shape, dtype), w, l2


def reference(a, w, l2):
    """P with x = P b, K + L, and the singular values, in NumPy."""
    a = numpy(a)
    d = np.ones(len(a)) if w is None else numpy(w)
    k = (np.conj(a.T) * d) @ a
    if l2 is None:
        root = np.sqrt(d)[:, None]
        return np.linalg.pinv(root * a) * root.T, k, np.linalg.svd(root * a, compute_uv=False)
    k = k + np.diag(np.broadcast_to(numpy(l2).reshape(-1), len(k)))
    return np.linalg.solve(k, np.conj(a.T) * d), k, np.linalg.svd(np.sqrt(d)[:, None] * a, compute_uv=False)


@dtypes
@options
@forms
def test_values(shape, option, dtype):
    a, w, l2 = problem(shape, option, dtype)
    f, rtol = pinvnn.factorize(a, weights=w, l2=l2), VALUE_RTOL[dtype]
    p, k, s = reference(a, w, l2)
    b = gaussian((shape[0], 2), dtype, 7)
    close(f.solve(b), p @ numpy(b), rtol)
    close(f.solve(b[:, 0]), p @ numpy(b[:, 0]), rtol)
    close(f.pinv(), p, rtol)
    close(f.leverages(), np.real(np.diag(numpy(a) @ p)), rtol)
    close(f.singular_values, s, rtol)
    assert f.rank.item() == min(shape)
    if l2 is None and shape[0] < shape[1]:
        assert f.logdet().item() == -np.inf
    else:
        close(f.logdet(), np.linalg.slogdet(k)[1], rtol)


@pytest.mark.parametrize("method", ["gram", "svd", "cholesky"])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_method_gives_the_same(method, weighted):
    dtype = mx.float32 if method == "gram" else mx.float64
    a, w, _ = problem((6, 3), (weighted, None), dtype)
    f, g = pinvnn.factorize(a, weights=w, method=method), pinvnn.factorize(a, weights=w)
    for name in ("pinv", "leverages", "logdet"):
        close(getattr(f, name)(), getattr(g, name)(), 3e-6 if method == "gram" else 1e-12)


def loss_of(what, option, shape):
    """A function of (a, [w], [l2], b) with one number per entry of what is asked for."""
    weighted, of_l2 = option

    def fn(*args):
        rest = list(args)
        a, b = rest.pop(0), rest.pop()
        w = rest.pop(0) if weighted else None
        f = pinvnn.factorize(a, weights=w, l2=rest.pop(0) if of_l2 is not None else None)
        return {
            "solve": lambda: f.solve(b),
            "pinv": f.pinv,
            "leverages": f.leverages,
            "logdet": f.logdet,
            "singular_values": lambda: f.singular_values,
        }[what]()

    a, w, l2 = problem(shape, option)
    return fn, [x for x in (a, w, l2) if x is not None] + [gaussian((shape[0], 2), seed=7)]


WHATS = ("solve", "pinv", "leverages", "logdet", "singular_values")


def has_a_derivative(what, option, shape):
    # Without a penalty the Gram matrix of a wide matrix is singular: the log determinant is -inf.
    return not (what == "logdet" and option[1] is None and shape[0] < shape[1])


CASES = [
    pytest.param(what, option, shape, id=f"{what}-{name}-{form}")
    for what in WHATS
    for name, option in OPTIONS.items()
    for form, shape in FORMS.items()
    if has_a_derivative(what, option, shape)
]


@pytest.mark.parametrize(("what", "option", "shape"), CASES)
def test_derivatives_of_both_orders(what, option, shape):
    with mx.stream(mx.cpu):
        fn, args = loss_of(what, option, shape)
        # With m <= n rows none of these depends on the weights, and leverages are 1: derivatives are rounding.
        still = option[1] is None and shape[0] <= shape[1]
        still = still and (what == "leverages" or (option[0] and what in ("solve", "pinv")))
        gradcheck(fn, *args, order=2, atol=1e-8 if still else None)


@pytest.mark.parametrize(("what", "option"), [(what, option) for what in WHATS for option in OPTIONS.values()])
def test_transforms(what, option):
    with mx.stream(mx.cpu):
        fn, args = loss_of(what, option, (6, 3))
        transform_check(fn, *args)


@pytest.mark.parametrize("dtype", [mx.float32, mx.complex64])
@pytest.mark.parametrize("option", [OPTIONS["plain"], OPTIONS["feature"]])
@pytest.mark.parametrize("what", ["solve", "pinv", "leverages", "logdet"])
def test_the_adjoint_identity_in_narrow_dtypes(what, option, dtype):
    fn, _ = loss_of(what, option, (6, 3))
    a, w, l2 = problem((6, 3), option, dtype)
    l2 = None if l2 is None else l2.astype(mx.float32, stream=mx.cpu)
    adjoint_check(fn, *[x for x in (a, w, l2) if x is not None], gaussian((6, 2), dtype, 7))


def test_a_batch_is_its_matrices():
    a, w, l2 = gaussian((3, 6, 4), mx.float32), positive((3, 6), mx.float32), positive((3, 1, 1), mx.float32)
    b = gaussian((6, 2), mx.float32, 7)
    f = pinvnn.factorize(a, weights=w, l2=l2)
    for i in range(3):
        g = pinvnn.factorize(a[i], weights=w[i], l2=l2[i])
        close(f.solve(b)[i], g.solve(b), 1e-6)
        close(f.logdet()[i], g.logdet(), 1e-6)
        close(f.leverages()[i], g.leverages(), 1e-6)


def test_rank_deficient():
    a = deficient((6, 3), 2)
    f = pinvnn.factorize(a)
    assert f.rank.item() == 2
    assert f.logdet().item() == -np.inf
    assert np.isnan(numpy(_slope(a))).all()
    close(f.pinv(), np.linalg.pinv(numpy(a), rcond=1e-10), 1e-11)
    close(f.leverages().sum(stream=mx.cpu), np.array(2.0), 1e-12)
    singular = pinvnn.factorize(a, l2=0.0)
    assert np.isnan(numpy(singular.solve(gaussian((6,))))).all()


def _slope(a):
    with mx.stream(mx.cpu):
        return mx.grad(lambda a: pinvnn.factorize(a).logdet())(a)


def test_nan_stays_in_its_matrix():
    a = gaussian((2, 5, 3), mx.float32)
    a[1, 0, 0] = float("nan")
    for l2 in (None, 1.0):
        f = pinvnn.factorize(a, l2=l2)
        for value in (f.solve(mx.ones((5, 1))), f.pinv(), f.leverages(), f.logdet()):
            found = np.isnan(numpy(value)).reshape(2, -1)
            assert not found[0].any()
            assert found[1].all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3)])
@pytest.mark.parametrize("l2", [None, 2.0])
def test_empty(shape, l2):
    f, (*batch, m, n) = pinvnn.factorize(mx.zeros(shape), l2=l2), shape
    assert f.solve(mx.ones((m, 2))).shape == (*batch, n, 2)
    assert f.pinv().shape == (*batch, n, m)
    assert f.leverages().shape == (*batch, m)
    assert f.singular_values.shape == (*batch, min(m, n))
    assert f.rank.tolist() == np.zeros(batch).tolist()
    want = 0.0 if n == 0 else n * np.log(2) if l2 else -np.inf
    np.testing.assert_allclose(numpy(f.logdet()), np.full(batch, want), rtol=1e-6)


def test_one_factorization_serves_every_solve(monkeypatch):
    from pinvnn import _methods as methods

    calls = []
    original = methods.full_rank
    monkeypatch.setattr(methods, "full_rank", lambda *args: (calls.append(1), original(*args))[1])
    f = pinvnn.factorize(gaussian((6, 3), mx.float32))
    for seed in range(3):
        f.solve(gaussian((6, 2), mx.float32, seed))
    f.pinv(), f.logdet()
    assert len(calls) == 1


def test_half_precision_comes_back():
    f = pinvnn.factorize(gaussian((6, 3), mx.float32).astype(mx.bfloat16))
    assert f.solve(mx.ones((6,), mx.bfloat16)).dtype == f.pinv().dtype == mx.bfloat16
    assert f.solve(mx.ones((6,))).dtype == f.singular_values.dtype == mx.float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l2", 10.0 ** np.arange(-12, 13, 4))
def test_log_determinant_of_few_rows_over_twelve_decades(l2, weighted, dtype):
    a = gaussian((3, 6), dtype)
    w = positive((3,), real(dtype)) if weighted else None
    x = numpy(a) * (1 if w is None else np.sqrt(numpy(w))[:, None])
    want = np.linalg.slogdet(x @ np.conj(x.T) + l2 * np.eye(3))[1] + 3 * np.log(l2)
    close(pinvnn.factorize(a, weights=w, l2=l2).logdet(), want, 1e-12 if dtype == mx.float64 else 1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: pinvnn.factorize("a"), TypeError, "a must be an array"),
        (lambda a: pinvnn.factorize(a[0]), ValueError, "a must have at least 2 dimensions"),
        (lambda a: pinvnn.factorize(a, weights=mx.ones(3)), ValueError, "weights must have one entry for each"),
        (lambda a: pinvnn.factorize(a, weights=a[0, 0]), ValueError, "weights must have one entry"),
        (lambda a: pinvnn.factorize(a, l2=-1.0), ValueError, "l2 must be non-negative"),
        (lambda a: pinvnn.factorize(a, l2=mx.ones(3)), ValueError, r"l2 must broadcast against the solution \(2, 1\)"),
        (lambda a: pinvnn.factorize(a, l2=1.0, method="svd"), ValueError, "method must be one of auto, primal, dual"),
        (lambda a: pinvnn.factorize(a, method="qr"), ValueError, "method must be one of"),
        (lambda a: pinvnn.factorize(a, rtol=-1), ValueError, "rtol must be non-negative"),
        (lambda a: pinvnn.factorize(a.T, weights=mx.ones(2), method="cholesky"), ValueError, "as many rows as columns"),
        (lambda a: pinvnn.factorize(mx.ones((2, 4, 2)), weights=mx.ones((3, 4))), ValueError, "batch dimensions must"),
        (lambda a: pinvnn.factorize(a).solve(mx.ones(3)), ValueError, "same number of rows, but got 4 and 3"),
        (lambda a: pinvnn.factorize(a).solve(None), TypeError, "b must be an array"),
        (lambda a: pinvnn.factorize(a).solve(mx.ones(4, mx.complex64)), ValueError, "b must not be wider than a"),
        (lambda a: pinvnn.factorize(mx.ones((2, 4, 2))).solve(mx.ones((3, 4, 1))), ValueError, "batch dimensions must"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(mx.ones((4, 2)))


def test_a_negative_penalty_or_weight_in_an_array_is_nan():
    a, b = gaussian((4, 2), mx.float32), mx.ones(4)
    assert np.isnan(numpy(pinvnn.factorize(a, l2=mx.array(-1.0)).solve(b))).all()
    assert np.isnan(numpy(pinvnn.factorize(a, weights=mx.array([1.0, 1, 1, -1])).solve(b))).all()
