"""Logistic readouts against scikit-learn, refits and differences; transforms; bad input."""

import mlx.core as mx
import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pinvnn._factor import newton
from pinvnn.nn import LogisticReadout
from pinvnn.testing import adjoint_check, gradcheck

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

LOADERS = {"iris": load_iris, "wine": load_wine}
TOLERANCE = {mx.float64: 1e-7, mx.float32: 2e-4, mx.float16: 2e-2, mx.bfloat16: 1e-1}


def wide(x):
    return mx.array(x, dtype=mx.float64)


def standardised(name):
    x, y = LOADERS[name](return_X_y=True)
    return StandardScaler().fit_transform(x), y


def blobs(seed, rows=12, features=3, classes=3, spread=1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    x = spread * rng.normal(size=(classes, features))[labels] + rng.normal(size=(rows, features))
    return x, labels, rng.uniform(0.5, 2, rows)


# --- The minimizer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.float64, mx.float32])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l2", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", LOADERS)
def test_coefficients_are_those_of_scikit_learn(name, l2, weighted, dtype):
    x, y = standardised(name)
    w = np.random.default_rng(0).uniform(0.2, 3, len(y)) if weighted else None
    reference = LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-13, max_iter=1000).fit(x, y, w)
    weights = None if w is None else mx.array(w, dtype=dtype)
    readout = LogisticReadout(x.shape[1], 3, l2=l2).fit(mx.array(x, dtype=dtype), mx.array(y), weights)
    largest = np.abs(reference.coef_).max()
    np.testing.assert_allclose(np.array(readout.weight), reference.coef_, rtol=0, atol=TOLERANCE[dtype] * largest)
    np.testing.assert_allclose(np.array(readout.bias), reference.intercept_, rtol=0, atol=TOLERANCE[dtype] * 10)
    assert readout.weight.dtype == dtype and readout.steps > 0 and readout.reason.startswith("converged")
    with mx.stream(mx.cpu):  # a product with stored weights is that of any linear layer
        proba = np.array(readout.predict_proba(mx.array(x, dtype=dtype)))
    np.testing.assert_allclose(proba, reference.predict_proba(x), atol=10 * TOLERANCE[dtype])


def test_two_classes_have_half_the_vector_each():
    x, y, _ = blobs(1, classes=2)
    reference = LogisticRegression(C=2 / 0.7, solver="newton-cholesky", tol=1e-13).fit(x, y)
    readout = LogisticReadout(3, 2, l2=0.7).fit(wide(x), mx.array(y))
    np.testing.assert_allclose(np.array(readout.weight[1] - readout.weight[0]), reference.coef_[0], atol=1e-9)
    np.testing.assert_allclose(np.array(readout.predict_proba(wide(x))), reference.predict_proba(x), atol=1e-9)


@pytest.mark.parametrize("shape", ["class", "feature", "both", "no bias"])
def test_the_gradient_is_zero_at_the_solution_for_every_penalty(shape):
    x, y, w = blobs(2)
    rng = np.random.default_rng(2)
    penalty = {"class": (3,), "feature": (3, 1), "both": (3, 3), "no bias": ()}[shape]
    l2 = rng.uniform(0.1, 3, penalty)
    readout = LogisticReadout(3, 3, l2=wide(l2), bias=shape != "no bias").fit(wide(x), mx.array(y), wide(w))
    weight, bias = np.array(readout.weight), np.array(readout.bias) if "bias" in readout else np.zeros(3)
    logits = x @ weight.T + bias
    p = np.exp(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    miss = w[:, None] * (p - np.eye(3)[y])
    np.testing.assert_allclose(x.T @ miss + l2 * weight.T, 0, atol=1e-9)
    if shape != "no bias":
        np.testing.assert_allclose(miss.sum(0), 0, atol=1e-9)
        assert abs(bias.sum()) < 1e-9


def test_without_a_penalty_where_classes_overlap():
    x, y, _ = blobs(3, rows=60, spread=0.3)
    reference = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-13).fit(x, y)
    readout = LogisticReadout(3, 3, l2=0.0).fit(wide(x), mx.array(y))
    np.testing.assert_allclose(np.array(readout.predict_proba(wide(x))), reference.predict_proba(x), atol=1e-7)


@pytest.mark.parametrize("power", [-12, -6, 0, 6, 12])
def test_units_of_the_features_and_of_the_penalty_go_together(power):
    x, y, _ = blobs(4)
    units = 10.0 ** np.array([power, 0, -power])
    plain = LogisticReadout(3, 3, l2=0.3).fit(wide(x), mx.array(y))
    scaled = LogisticReadout(3, 3, l2=wide(0.3 * units[:, None] ** 2)).fit(wide(x * units), mx.array(y))
    np.testing.assert_allclose(np.array(scaled.weight) * units, np.array(plain.weight), rtol=1e-6)


@pytest.mark.parametrize("l2", [1e-6, 1e-4, 1e-2])
def test_separable_episodes_in_float32(l2):
    ours, theirs = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        means = rng.normal(size=(5, 64))
        labels, asked = np.repeat(np.arange(5), 5), np.repeat(np.arange(5), 15)
        x = means[labels] + rng.normal(size=(25, 64))
        query = means[asked] + rng.normal(size=(75, 64))
        logits = LogisticReadout(64, 5, l2=l2).adapt(
            mx.array(x, dtype=mx.float32), mx.array(labels), mx.array(query, dtype=mx.float32)
        )
        assert mx.all(mx.isfinite(logits)).item(), seed
        ours.append(np.mean(np.array(mx.argmax(logits, axis=-1)) == asked))
        theirs.append(LogisticRegression(C=1 / l2, max_iter=1000).fit(x, labels).score(query, asked))
    assert np.mean(ours) >= np.mean(theirs) - 0.005


@pytest.mark.parametrize("l2", [0.3, "class"])
def test_conjugate_gradients_agree_with_the_factored_hessian(monkeypatch, l2):
    x, y, w = blobs(5, rows=30, features=6)
    l2 = np.array([0.2, 0.5, 1.0]) if l2 == "class" else l2
    readout = LogisticReadout(6, 3, l2=wide(l2))

    def loss(x, w):
        weight, bias = readout.solve(x, mx.array(y), w)
        return (weight * mx.arange(18).reshape(3, 6)).sum() + (bias * mx.array([1.0, 2.0, 4.0])).sum()

    def both():
        value, gradients = mx.value_and_grad(loss, argnums=(0, 1))(wide(x), wide(w))
        compiled = mx.compile(mx.value_and_grad(loss, argnums=(0, 1)))(wide(x), wide(w))
        return [np.array(v) for v in (value, *gradients, compiled[0], *compiled[1])]

    dense = both()
    monkeypatch.setattr(newton.hessian, "DENSE", 0)
    for one, other in zip(dense, both(), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-7 * np.abs(one).max())


def outlier(seed):
    """Classes that a small feature tells apart beside a large one that tells nothing, as states of language models."""
    x, y, w = blobs(seed, rows=40, features=5)
    x[:, 2] = 1e5 * np.where(np.arange(40) == 7, 1, 1e-3 * x[:, 2])
    return x, y, w


LARGE = {
    "overlapping": lambda: blobs(23, rows=40, features=5, spread=0.5),
    "separable": lambda: blobs(23, rows=40, features=5, spread=10.0),
    "outlier": lambda: outlier(23),
}


@pytest.mark.parametrize("l2", [1e-6, 1e-2, 1e2, "feature"])
@pytest.mark.parametrize("kind", LARGE)
def test_large_problems_have_the_minimizer_of_small_ones(monkeypatch, kind, l2):
    x, y, w = LARGE[kind]()
    l2 = np.array([[1e-3], [1.0], [1e2], [0.1], [1e-2]]) if l2 == "feature" else l2
    small = LogisticReadout(5, 3, l2=wide(l2)).fit(wide(x), mx.array(y), wide(w))
    monkeypatch.setattr(newton.hessian, "DENSE", 0)
    large = LogisticReadout(5, 3, l2=wide(l2)).fit(wide(x), mx.array(y), wide(w))
    logits, wanted = (np.array(readout(wide(x))) for readout in (large, small))
    logits, wanted = (v - v.mean(axis=1, keepdims=True) for v in (logits, wanted))
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    assert large.steps < 12


@pytest.mark.parametrize(
    "wrong", [lambda step: None, lambda step: step / 2, lambda step: -step], ids=["none", "half", "up"]
)
def test_a_step_that_float32_gets_wrong_is_taken_in_float64(monkeypatch, wrong):
    x, y, w = outlier(24)
    small = LogisticReadout(5, 3, l2=0.1).fit(wide(x), mx.array(y), wide(w))
    monkeypatch.setattr(newton.hessian, "DENSE", 0)
    solve = newton.working.Working.solve
    monkeypatch.setattr(newton.working.Working, "solve", lambda *args: wrong(solve(*args)))
    large = LogisticReadout(5, 3, l2=0.1).fit(wide(x), mx.array(y), wide(w))
    np.testing.assert_allclose(np.array(large(wide(x))), np.array(small(wide(x))), atol=1e-7)


@pytest.mark.parametrize("accuracy", [newton.FINE, newton.COARSE], ids=["fine", "coarse"])
@pytest.mark.parametrize("bias", [True, False])
def test_features_that_are_nearly_orthogonal_need_no_basis(monkeypatch, bias, accuracy):
    rng = np.random.default_rng(26)
    x, y, w = rng.normal(size=(90, 8)) * 10.0 ** np.arange(-4, 4), rng.integers(0, 4, 90), rng.uniform(0.5, 2, 90)
    a, hot, l2 = np.column_stack([x, np.ones(90)][: 1 + bias]), np.eye(4)[y], np.array([[0.1], [0.0]][: 1 + bias])
    wanted = a @ newton.minimize(newton.NumPy(), a, hot, w, l2).t
    monkeypatch.setattr(newton.hessian, "DENSE", 0)

    def basis(*args):
        raise AssertionError("a basis")

    monkeypatch.setattr(newton.minimizer, "in_basis", basis)
    logits = a @ newton.minimize(newton.NumPy(), a, hot, w, l2, accuracy).t
    tolerance = 1e-7 if accuracy == newton.FINE else 2e-4
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())
    with pytest.raises(AssertionError, match="a basis"):
        newton.minimize(newton.NumPy(), a[:, [5, 5, 5, 6, 6, 6, 7, 7, 7, -1][: 9 + bias]], hot, w, l2)


@pytest.mark.parametrize("l2", [1e-9, 1e-2, 1e2, "both", "feature with 0"])
@pytest.mark.parametrize("spread", [0.5, 10.0])
def test_a_certificate_bounds_the_newton_decrement(spread, l2):
    x, y, w = blobs(27, rows=40, features=5, spread=spread)
    rng = np.random.default_rng(27)
    penalty = {"both": rng.uniform(0.1, 3, (5, 3)), "feature with 0": np.array([[1.0], [0], [1], [1], [1]])}
    penalty = penalty.get(l2, np.full((5, 1), l2))
    a, hot = np.column_stack([x, np.ones(40)]), np.eye(3)[y]
    xp, l2 = newton.NumPy(), np.concatenate([penalty, 0 * penalty[:1]])
    certificate = newton.certificate.Certificate(xp, a, hot, w, l2)
    if (penalty == 0).any():
        assert not certificate.applies
        return
    t = newton.minimize(xp, a, hot, w, l2).t
    for size in (1e-4, 1e-7):
        near = t + size * np.abs(t).max() * rng.normal(size=t.shape)
        near, v, miss, balanced = certificate.balanced(near, a @ near)
        g = a.T @ (w[:, None] * miss) + l2 * near
        assert balanced and np.abs(g[-1]).max() < 1e-9
        np.testing.assert_allclose(v, a @ near, atol=1e-9 * np.abs(v).max())
        exact = np.sum(g * newton.solve_hessian(xp, a, w, miss + hot, l2, g))
        assert exact <= certificate.decrement(g) * (1 + 1e-6)


def apart(seed, chosen, c=3, gap=8.0):
    """Rows of ``c`` classes that overlap, of which the ``chosen`` are told from the others by features 0 and 2."""
    rng = np.random.default_rng(seed)
    y = np.arange(60) % c
    x = rng.normal(size=(60, 5)) + 0.5 * y[:, None]
    x[:, [0, 2]] += gap * np.isin(y, chosen)[:, None]
    return x, y


SEPARATED = {
    "one of three": ([0], 3, [0, 1, 0, 1e6, 1e-6]),
    "by one feature": ([0], 3, [0, 1, 1, 1, 1]),
    "two of four": ([0, 1], 4, [0, 1, 0, 1, 1e-6]),
    "no penalty": ([0, 1], 4, [0, 0, 0, 0, 0]),
}


@pytest.mark.parametrize("grid", [10.0 ** np.arange(2, -5, -1), [1.0, 0.9, 0.9, 1e-6], [1e-3, 10.0]])
def test_a_path_of_penalties_has_the_minimizer_of_each_and_starts_near_it(monkeypatch, grid):
    x, y, w = blobs(31, rows=60, features=20, classes=4)
    xp, a, hot = newton.NumPy(), np.column_stack([x - x.mean(axis=0), np.ones(60)]), np.eye(4)[y]
    counts, count = [], newton.quasi_newton._direction

    def counted(*args):
        counts[-1] += 1
        return count(*args)

    def objective(t, l2):
        return w @ newton.residual_and_loss(xp, a @ t, hot)[1] + l2 / 2 * np.sum(t[:-1] ** 2)

    monkeypatch.setattr(newton.quasi_newton, "_direction", counted)
    path = newton.Path(xp, a, hot, w)
    for l2 in grid:
        counts.append(0)
        t = path.next(float(l2), 1e-4)
        exact = newton.minimize(xp, a, hot, w, np.array([[l2], [0.0]])).t
        assert objective(t, l2) <= objective(exact, l2) * (1 + 1e-3)
    if len(grid) == 7:
        assert sum(counts[3:]) < 32  # 53 where each starts from the one before


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", SEPARATED)
def test_free_features_that_separate_classes_leave_no_minimizer(monkeypatch, kind, large):
    chosen, c, l2 = SEPARATED[kind]
    x, y = apart(28, chosen, c)
    monkeypatch.setattr(newton.hessian, "DENSE", 0 if large else 1200)
    readout = LogisticReadout(5, c, l2=wide(l2)[:, None])
    with pytest.raises(ValueError, match="must be a minimizer"):
        readout.fit(wide(x), mx.array(y))
    both = np.stack([x, np.random.default_rng(0).normal(size=x.shape)])
    weight = np.array(readout.solve(wide(both), mx.array(np.stack([y, y])))[0])
    assert np.array_equal(np.isnan(weight).all(axis=(1, 2)), [True, False])


@pytest.mark.parametrize("large", [False, True])
def test_collinear_features_without_a_penalty_have_no_minimizer(monkeypatch, large):
    x, y, _ = blobs(32, rows=60, spread=0.3)
    monkeypatch.setattr(newton.hessian, "DENSE", 0 if large else 1200)
    rng = np.random.default_rng(32)
    for more in (x, np.zeros((60, 1)), np.ones((60, 1)), x @ rng.normal(size=(3, 2))):
        with pytest.raises(ValueError, match="features collinear"):
            LogisticReadout(3 + more.shape[1], 3, l2=0.0).fit(wide(np.column_stack([x, more])), mx.array(y))
    near = np.column_stack([x, x[:, :1] + 1e-4 * rng.normal(size=(60, 1))])
    assert LogisticReadout(4, 3, l2=0.0).fit(wide(near), mx.array(y)).steps


def test_free_features_that_separate_one_class_give_nan_in_a_graph():
    x, y = apart(28, [0])
    solve = mx.vmap(lambda x: LogisticReadout(5, 3, l2=wide([0, 1, 0, 1, 1])[:, None]).solve(x, mx.array(y))[0])
    both = np.stack([x, np.random.default_rng(0).normal(size=x.shape)])
    assert np.array_equal(np.isnan(np.array(solve(wide(both)))).all(axis=(1, 2)), [True, False])


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("small", [1e-3, 1e-6, 1e-9, 1e-12])
def test_penalised_features_may_separate_classes_beside_free_ones(monkeypatch, small, large):
    x, y = apart(29, [0])
    l2 = np.array([small, 1, small, 0, 0])
    monkeypatch.setattr(newton.hessian, "DENSE", 0 if large else 1200)
    readout = LogisticReadout(5, 3, l2=wide(l2)[:, None]).fit(wide(x), mx.array(y))
    weight, logits = np.array(readout.weight).T, np.array(readout(wide(x)))
    miss, _ = newton.residual_and_loss(newton.NumPy(), logits, np.eye(3)[y])
    terms = x.T @ np.abs(miss) + l2[:, None] * np.abs(weight)  # those whose sum is 0, by class
    assert (np.abs(x.T @ miss + l2[:, None] * weight) < 0.01 * terms).all()  # logits of class 0 to 0.01


@pytest.mark.parametrize("c", [2, 3, 5])
@pytest.mark.parametrize("l2", [1e-8, 1e-10, 1e-12])
def test_tiny_penalties_hold_separable_classes(monkeypatch, l2, c):
    x, y, _ = blobs(30, rows=40, features=5, classes=c, spread=10)
    small = LogisticReadout(5, c, l2=l2).fit(wide(x), mx.array(y))
    monkeypatch.setattr(newton.hessian, "DENSE", 0)
    large = LogisticReadout(5, c, l2=l2).fit(wide(x), mx.array(y))
    largest = np.abs(np.array(small.weight)).max()
    np.testing.assert_allclose(np.array(large.weight), np.array(small.weight), rtol=0, atol=1e-7 * largest)


def test_large_problems_without_a_minimizer_say_so(monkeypatch):
    monkeypatch.setattr(newton.hessian, "DENSE", 0)
    x, y, _ = blobs(15, spread=20)
    with pytest.raises(ValueError, match="must be a minimizer"):
        LogisticReadout(3, 3, l2=0.0).fit(wide(x), mx.array(y))
    x = np.stack([x, np.where(np.arange(12)[:, None] == 3, np.nan, x)])
    weight = np.array(LogisticReadout(3, 3, l2=1e-3).solve(wide(x), mx.array(np.stack([y, y])))[0])
    assert np.array_equal(np.isnan(weight).all(axis=(1, 2)), [False, True])


@pytest.mark.parametrize("l2", [1e-4, 0.5, "class"])
@pytest.mark.parametrize("bias", [True, False])
def test_fewer_rows_than_features_are_solved_in_the_row_space(l2, bias):
    rng = np.random.default_rng(21)
    x, y = rng.normal(size=(3, 6, 9)) + 1, np.array([0, 1, 2, 0, 1, 2])
    x[1, 3] = x[1, 0]  # a row twice
    l2 = np.array([0.2, 0.5, 1.0]) if l2 == "class" else l2
    by_feature = np.broadcast_to(l2, (9, 3)) if np.ndim(l2) else np.full((9, 1), l2)

    def loss(x, l2):
        readout = LogisticReadout(9, 3, l2=1.0, learn_l2=True, bias=bias)
        readout.log_l2 = mx.log(l2)
        weight, bias_ = readout.solve(x, mx.broadcast_to(mx.array(y), (*x.shape[:-2], 6)))
        total = (weight * mx.sin(mx.arange(27.0)).reshape(3, 9)).sum()
        return total if bias_ is None else total + (bias_ * mx.array([1.0, 2.0, 4.0])).sum()

    both = mx.value_and_grad(loss, argnums=(0, 1))
    wanted, (x_bar, l2_bar) = both(wide(x), wide(by_feature))
    l2_bar = l2_bar.sum(axis=0) if np.ndim(l2) else l2_bar.sum()
    for fn in (both, mx.compile(both)):
        value, bars = fn(wide(x), wide(l2))
        np.testing.assert_allclose(np.array(value), np.array(wanted), rtol=1e-8)
        for bar, want in zip(bars, (x_bar, l2_bar), strict=True):
            np.testing.assert_allclose(np.array(bar), np.array(want), rtol=1e-7, atol=1e-8 * np.abs(want).max())
    mapped = mx.vmap(lambda x: loss(x, wide(l2)))(wide(x))
    np.testing.assert_allclose(np.array(mapped.sum()), np.array(wanted), rtol=1e-8)


@pytest.mark.parametrize("method", ["adapt", "projected_loss"])
def test_derivatives_with_fewer_rows_than_features(method):
    x, y, w = blobs(22, rows=4, features=6)
    gradcheck(as_function(method, mx.array(y)), wide(x), wide(w), wide(-0.5), order=2)


# --- Derivatives ------------------------------------------------------------------------------------------------------

METHODS = ["solve", "adapt", "projected_loss", "loo_predictions", "loo_loss"]


def as_function(method, y, bias=True, **options):
    """A method as a function of x, weights and the logarithm of the penalty."""

    def fn(x, w, log_l2):
        readout = LogisticReadout(x.shape[-1], 3, l2=1.0, bias=bias, learn_l2=True)
        readout.log_l2 = log_l2
        rest = (x[..., :2, :],) if method == "adapt" else ()
        return getattr(readout, method)(x, y, *rest, weights=w, **options)

    return fn


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_derivatives(method, order):
    x, y, w = blobs(6, rows=9, features=2)
    fn = as_function(method, mx.array(y), **({"refits": 0} if method.startswith("loo") else {}))
    gradcheck(fn, wide(x), wide(w), wide([[-0.5], [0.2]]), order=order)


@pytest.mark.parametrize(("method", "order"), [("loo_predictions", 1), ("loo_loss", 2)])
def test_derivatives_of_refits(method, order):
    x, y, w = blobs(6, rows=6, features=1)
    log_l2 = wide([[-0.5, 0.1, 0.3]] if order == 1 else -0.5)
    fn = as_function(method, mx.array(y), refits=2)
    gradcheck(fn, wide(x), wide(w), log_l2, order=order, modes=("vjp",))


def test_derivatives_of_steps_without_a_row_with_a_penalty_for_each_class():
    x, y, w = blobs(7, rows=9, features=2)
    fn = as_function("loo_predictions", mx.array(y), refits=0)
    gradcheck(fn, wide(x), wide(w), wide([[-0.5, 0.1, 0.3]]), modes=("vjp",))


@pytest.mark.parametrize("method", ["adapt", "loo_loss"])
def test_derivatives_with_a_penalty_for_each_class_and_no_intercept(method):
    x, y, w = blobs(7, rows=9, features=2)
    fn = as_function(method, mx.array(y), bias=False, **({"refits": 0} if method == "loo_loss" else {}))
    gradcheck(fn, wide(x), wide(w), wide([[-0.5, 0.1, 0.3]]), order=2)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
@pytest.mark.parametrize("method", METHODS)
def test_adjoint_identity(method, dtype):
    x, y, w = blobs(8)
    adjoint_check(as_function(method, mx.array(y)), *(mx.array(v, dtype=dtype) for v in (x, w)), wide([0.1, 0.2, 0.3]))


@pytest.mark.parametrize("method", ["adapt", "projected_loss", "loo_loss"])  # each compiles its kernels: seconds
def test_compiled_equals_eager_with_its_gradient(method):
    x, y, w = blobs(9)
    fn = as_function(method, mx.array(y))

    def loss(x, w, log_l2):
        out = fn(x, w, log_l2)
        return sum(mx.square(part).sum() for part in (out if isinstance(out, tuple) else (out,)))

    both = mx.value_and_grad(loss, argnums=(0, 1, 2))
    args = wide(x), wide(w), wide(0.3)
    (value, gradients), (compiled_value, compiled) = both(*args), mx.compile(both)(*args)
    for one, other in zip((value, *gradients), (compiled_value, *compiled), strict=True):
        np.testing.assert_allclose(np.array(other), np.array(one), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", ["adapt", "loo_loss"])
def test_episodes_as_batch_and_as_vmap(method):
    data = [blobs(seed) for seed in range(3)]
    x, w = (wide(np.stack([d[i] for d in data])) for i in (0, 2))
    fn = as_function(method, mx.array(data[0][1]))
    one_by_one = np.stack([np.array(fn(x[i], w[i], wide(0.2))) for i in range(3)])
    np.testing.assert_allclose(np.array(fn(x, w, wide(0.2))), one_by_one, atol=1e-9)
    np.testing.assert_allclose(np.array(mx.vmap(lambda x, w: fn(x, w, wide(0.2)))(x, w)), one_by_one, atol=1e-9)
    slope = mx.grad(lambda x: fn(x, w, wide(0.2)).sum())(x)
    mapped = mx.vmap(mx.grad(lambda x, w: fn(x, w, wide(0.2)).sum()))(x, w)
    np.testing.assert_allclose(np.array(mapped), np.array(slope), atol=1e-8)


# --- Leave-one-out ----------------------------------------------------------------------------------------------------


def test_leave_one_out_is_a_newton_step_without_the_row():
    x, y, w = blobs(10, rows=20)
    a, hot, l2 = np.column_stack([x, np.ones(20)]), np.eye(3)[y], np.array([[0.3]] * 3 + [[0.0]])
    t = newton.minimize(newton.NumPy(), a, hot, w, l2).t
    p = newton.residual_and_loss(newton.NumPy(), a @ t, hot)[0] + hot
    logits = np.array(LogisticReadout(3, 3, l2=0.3).loo_predictions(wide(x), mx.array(y), wide(w), refits=0))
    for i in range(20):
        without = np.where(np.arange(20) == i, 0, w)
        gradient = a.T @ (without[:, None] * (p - hot)) + l2 * t
        step = t - newton.solve_hessian(newton.NumPy(), a, without, p, l2, gradient)
        expected = a[i] @ step
        np.testing.assert_allclose(logits[i] - logits[i].mean(), expected - expected.mean(), atol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l2", [1.0, 10.0])
def test_leave_one_out_is_near_refits(l2, weighted):
    x, y, w = blobs(10, rows=60, features=4)
    w = w if weighted else np.ones(60)
    readout = LogisticReadout(4, 3, l2=l2)
    refits = []
    for i in range(60):
        keep = np.arange(60) != i
        fitted = LogisticReadout(4, 3, l2=l2).fit(wide(x[keep]), mx.array(y[keep]), wide(w[keep]))
        refits.append(-np.log(np.array(fitted.predict_proba(wide(x[i : i + 1])))[0, y[i]]))
    claimed = readout.loo_loss(wide(x), mx.array(y), wide(w)).item()
    assert abs(claimed / np.average(refits, weights=w) - 1) < 0.03


def refit_without_each(a, hot, penalty, t):
    """Logits of each row by the fit to all others: damped steps with the inverse Hessian at the start, less the row."""
    xp, (m, n), c = newton.NumPy(), a.shape, hot.shape[1]
    p = newton.residual_and_loss(xp, a @ t, hot)[0] + hot
    g = np.linalg.inv(newton.curvature(xp, a, np.ones(m), p, penalty))
    found = np.empty((m, c))
    for i in range(m):
        w, u = np.where(np.arange(m) == i, 0.0, 1.0), t
        part = np.kron(np.eye(c), a[i : i + 1]) @ g  # (c, c n)
        own = np.diag(p[i]) - np.outer(p[i], p[i])
        reach = part.reshape(c, c, n) @ a[i]
        more = own @ np.linalg.inv(np.eye(c) - reach @ own)

        def objective(u, w=w):
            return w @ newton.residual_and_loss(xp, a @ u, hot)[1] + np.sum(penalty * u * u) / 2

        for step in range(100):
            miss = newton.residual_and_loss(xp, a @ u, hot)[0]
            slope = a.T @ (w[:, None] * miss) + penalty * u
            flat = slope.T.reshape(-1)
            down = -(g @ flat + part.T @ (more @ (part @ flat))).reshape(c, n).T
            if step >= 20:  # far from the start its Hessian does not do
                down = -newton.solve_hessian(xp, a, w, miss + hot, penalty, slope)
            decrement, length = -np.sum(slope * down), 1.0
            if decrement < 1e-12:
                break
            while objective(u + length * down) > objective(u) - 1e-4 * length * decrement:
                length /= 2
            u = u + length * down
        assert decrement < 1e-12
        found[i] = a[i] @ u
    return found


@pytest.mark.parametrize(("scaling", "l2"), [("standard", 1.0), ("none", 0.01)])
def test_leave_one_out_of_200_digits_is_within_1_percent_of_refits(scaling, l2):
    x, y = load_digits(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(y))[:200]
    x, y = x[chosen], y[chosen]
    x = StandardScaler().fit_transform(x) if scaling == "standard" else x
    a, hot = np.column_stack([x - x.mean(axis=0), np.ones(200)]), np.eye(10)[y]
    penalty = np.append(np.full(64, l2), 0.0)[:, None]
    t = newton.minimize(newton.NumPy(), a, hot, np.ones(200), penalty).t
    exact = newton.residual_and_loss(newton.NumPy(), refit_without_each(a, hot, penalty, t), hot)[1].mean()
    claimed = LogisticReadout(64, 10, l2=l2).loo_loss(mx.array(x, dtype=mx.float32), mx.array(y)).item()
    assert abs(claimed / exact - 1) < 0.01


def logits_without_each(make, x, y, w):
    """Logits for each row by the fit to all others, less their mean over the classes."""
    found = []
    for i in range(len(y)):
        keep = np.arange(len(y)) != i
        found.append(make().adapt(wide(x[keep]), mx.array(y[keep]), wide(x[i : i + 1]), wide(w[keep])))
    return np.concatenate([np.array(v) - np.array(v).mean(axis=1, keepdims=True) for v in found])


@pytest.mark.parametrize(("rows", "features"), [(14, 3), (7, 9)])
@pytest.mark.parametrize("kind", ["scalar", "class", "feature", "no bias"])
def test_leave_one_out_by_refits_of_all_rows_is_exact(kind, rows, features):
    x, y, w = blobs(23, rows=rows, features=features)
    w[0] = 0.0  # in no fit
    l2 = {"class": [0.01, 0.1, 0.3], "feature": np.linspace(0.01, 0.3, features)[:, None]}.get(kind, 0.03)

    def make():
        return LogisticReadout(features, 3, l2=l2 if np.ndim(l2) == 0 else wide(l2), bias=kind != "no bias")

    exact = logits_without_each(make, x, y, w)
    logits = np.array(make().loo_predictions(wide(x), mx.array(y), wide(w), refits=rows))
    np.testing.assert_allclose(logits - logits.mean(axis=1, keepdims=True), exact, atol=1e-7 * abs(exact).max())
    step = np.array(make().loo_predictions(wide(x), mx.array(y), wide(w), refits=0))
    assert abs(step - step.mean(axis=1, keepdims=True) - exact).max() > 0.1
    np.testing.assert_allclose(logits[0], step[0], atol=1e-12)


def test_rows_with_the_largest_losses_are_refitted():
    x, y, w = blobs(23, rows=14)
    readout = LogisticReadout(3, 3, l2=0.03)
    step, some, exact = (np.array(readout.loo_predictions(wide(x), mx.array(y), wide(w), refits=k)) for k in (0, 4, 14))
    loss = w * newton.residual_and_loss(newton.NumPy(), step, np.eye(3)[y])[1]
    chosen = np.argsort(-loss)[:4]
    np.testing.assert_allclose(some[chosen], exact[chosen], atol=1e-9)
    np.testing.assert_array_equal(np.delete(some, chosen, axis=0), np.delete(step, chosen, axis=0))


def test_a_row_without_which_there_is_no_minimizer_keeps_its_step():
    x, y = np.array([[-2.0], [-1.0], [1.5], [1.0], [1.2], [2.0]]), np.arange(6) // 3  # row 2 alone makes them overlap
    readout = LogisticReadout(1, 2, l2=0.0)
    step, refitted = (np.array(readout.loo_predictions(wide(x), mx.array(y), refits=k)) for k in (0, 6))
    assert np.array_equal((refitted == step).all(axis=1), np.arange(6) == 2)
    slope = mx.grad(lambda x: readout.loo_loss(x, mx.array(y)))(wide(x))
    assert mx.all(mx.isfinite(slope)).item()


def test_a_row_of_weight_0_has_the_prediction_of_the_fit():
    x, y, w = blobs(24)
    w[3] = 0.0
    readout = LogisticReadout(3, 3).fit(wide(x), mx.array(y), wide(w))
    for refits in (0, 12):
        logits = readout.loo_predictions(wide(x), mx.array(y), wide(w), refits=refits)
        np.testing.assert_allclose(np.array(logits)[3], np.array(readout(wide(x)))[3], atol=1e-9)
    x[3] = np.nan
    logits = np.array(readout.loo_predictions(wide(x), mx.array(y), wide(w)))
    assert np.array_equal(np.isnan(logits).any(axis=1), np.arange(12) == 3)
    assert mx.all(mx.isfinite(mx.grad(lambda x: readout.loo_loss(x, mx.array(y), wide(w)))(wide(x)))).item()


def test_the_only_row_of_a_class_cannot_be_left_out():
    x, y, _ = blobs(11)
    y = np.where(np.arange(12) == 4, 2, y % 2)
    logits = LogisticReadout(3, 3).loo_predictions(wide(x), mx.array(y))
    assert np.array_equal(np.isnan(np.array(logits)).all(axis=1), np.arange(12) == 4)
    assert mx.all(mx.isfinite(LogisticReadout(3, 3, bias=False).loo_predictions(wide(x), mx.array(y)))).item()


# --- Rows, dtypes, bad input ------------------------------------------------------------------------------------------


def test_a_row_of_weight_0_takes_no_part_whatever_it_holds():
    x, y, w = blobs(12)
    w[3], bad = 0, x.copy()
    bad[3] = np.nan
    labels = y.copy()
    labels[3] = 77
    keep = w > 0
    for make in (lambda: LogisticReadout(3, 3), lambda: LogisticReadout(3, 3, bias=False)):
        without = make().fit(wide(x[keep]), mx.array(y[keep]), wide(w[keep]))
        np.testing.assert_allclose(
            np.array(make().fit(wide(bad), mx.array(labels), wide(w)).weight), np.array(without.weight), atol=1e-10
        )
        left_out = make().loo_loss(wide(bad), mx.array(labels), wide(w)).item()
        assert left_out == pytest.approx(make().loo_loss(wide(x[keep]), mx.array(y[keep]), wide(w[keep])).item())


def test_weight_2_is_the_row_twice_and_class_weights_are_weights():
    x, y, _ = blobs(13)
    twice = np.concatenate([x, x[y == 1]]), np.concatenate([y, y[y == 1]])
    reference = LogisticReadout(3, 3).fit(wide(twice[0]), mx.array(twice[1]))
    by_class = LogisticReadout(3, 3, class_weights=mx.array([1.0, 2.0, 1.0])).fit(wide(x), mx.array(y))
    np.testing.assert_allclose(np.array(by_class.weight), np.array(reference.weight), atol=1e-10)
    y = np.where(np.arange(12) < 8, 0, y)
    balanced = LogisticRegression(C=1.0, class_weight="balanced", solver="newton-cholesky", tol=1e-13).fit(x, y)
    ours = LogisticReadout(3, 3, class_weights="balanced").fit(wide(x), mx.array(y))
    np.testing.assert_allclose(np.array(ours.weight), balanced.coef_, atol=1e-8)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_input_gives_float32(dtype):
    x, y, _ = blobs(14)
    half = mx.array(x, dtype=dtype)
    readout = LogisticReadout(3, 3).fit(half, mx.array(y))
    exact = LogisticReadout(3, 3).fit(half.astype(mx.float32), mx.array(y))
    assert readout.weight.dtype == readout.predict_proba(half).dtype == mx.float32
    assert readout.loo_loss(half, mx.array(y)).dtype == mx.float32
    np.testing.assert_allclose(np.array(readout.weight), np.array(exact.weight), atol=1e-6)


def test_nan_in_one_episode_is_its_own():
    data = [blobs(seed) for seed in range(3)]
    x, y = np.stack([d[0] for d in data]), data[0][1]
    x[1, 0, 0] = np.nan
    for adapt in (fn := lambda x: LogisticReadout(3, 3).adapt(x, mx.array(y), x), mx.compile(fn), mx.vmap(fn)):
        assert np.array_equal(np.isnan(np.array(adapt(wide(x)))).all(axis=(1, 2)), [False, True, False])


def test_no_minimizer_is_nan_and_fit_says_why():
    x, y, _ = blobs(15, spread=20)
    readout = LogisticReadout(3, 3, l2=0.0)
    for solve in (fn := lambda x: readout.solve(x, mx.array(y))[0], mx.compile(fn)):
        assert mx.all(mx.isnan(solve(wide(x)))).item()
    with pytest.raises(ValueError, match=r"must be a minimizer .*separable.* Newton steps with l2=0.0. Pass l2 > 0"):
        readout.fit(wide(x), mx.array(y))
    missing = mx.array(y % 2)
    assert mx.all(mx.isnan(LogisticReadout(3, 3).solve(wide(x), missing)[0])).item()
    with pytest.raises(ValueError, match="every class must have a row, but got none of class 2"):
        LogisticReadout(3, 3).fit(wide(x), missing)
    assert mx.all(mx.isfinite(LogisticReadout(3, 3, bias=False).fit(wide(x), missing).weight)).item()


X, Y = mx.zeros((4, 3)), mx.array([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: LogisticReadout(3, 1), ValueError, "num_classes must be at least 2, but got 1"),
        (lambda: LogisticReadout(0, 3), ValueError, "input_dims must be a positive integer"),
        (lambda: LogisticReadout(3, 3, l2=-1.0), ValueError, "l2 must be non-negative"),
        (lambda: LogisticReadout(3, 3, class_weights="b"), ValueError, "class_weights must be an array or"),
        (lambda: LogisticReadout(3, 3).fit(X, Y + 1), ValueError, "labels must be from 0 to 2, but got 1 to 3"),
        (lambda: LogisticReadout(3, 3).fit(X, Y[:, None]), ValueError, r"labels must be one integer for each row"),
        (lambda: LogisticReadout(3, 3).fit(X, Y[:3]), ValueError, "same number of rows, but got 4 and 3"),
        (lambda: LogisticReadout(3, 3).fit(X, Y * 1.0), TypeError, "labels must be integers"),
        (lambda: LogisticReadout(3, 3).fit(X[None], Y[None]), ValueError, "x must have two dimensions"),
        (lambda: LogisticReadout(3, 3).fit(X * np.nan, Y), ValueError, "x must be finite"),
        (lambda: LogisticReadout(3, 3).fit(X, Y, -mx.ones(4)), ValueError, "weights must be non-negative"),
        (lambda: LogisticReadout(3, 3).fit(X, Y, mx.ones(3)), ValueError, "one entry for each of the 4 rows"),
        (lambda: LogisticReadout(2, 3).solve(X, Y), ValueError, "x must have 2 features"),
        (lambda: LogisticReadout(3, 3).adapt(X, Y, X[:, :2]), ValueError, "x_query must have 3 features"),
        (lambda: LogisticReadout(3000, 2).loo_loss(mx.zeros((4, 3000)), Y % 2), ValueError, "at most 5000"),
        (lambda: LogisticReadout(3, 3).loo_loss(X, Y, refits=-1), ValueError, "refits must be 0 or more, but got -1"),
        (lambda: LogisticReadout(3, 3).loo_predictions(X, Y, refits=2.0), TypeError, "refits must be an integer"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_a_fit_inside_of_a_transformation_names_solve():
    message = r"LogisticReadout.fit\] fit must be called outside of mx.compile and mx.vmap.*Use solve"
    with pytest.raises(ValueError, match=message):
        mx.compile(lambda x, y: LogisticReadout(3, 3).fit(x, y).weight)(X, Y)


def test_to_linear_and_training_a_backbone():
    x, y, _ = blobs(16)
    readout = LogisticReadout(3, 3, learn_l2=True).fit(wide(x), mx.array(y))
    np.testing.assert_array_equal(np.array(readout.to_linear()(wide(x))), np.array(readout(wide(x))))
    assert set(readout.trainable_parameters()) == {"log_l2"}
    losses = []
    fn = as_function("loo_loss", mx.array(y), refits=0)
    step = mx.compile(mx.value_and_grad(lambda scale, log_l2: fn(wide(x) * scale, None, log_l2), (0, 1)))
    scale, log_l2 = wide([1.0, 1.0, 1.0]), wide(0.0)
    for _ in range(15):
        loss, (ds, dl) = step(scale, log_l2)
        scale, log_l2 = scale - 0.5 * ds, log_l2 - 0.5 * dl
        losses.append(loss.item())
    assert losses[-1] < losses[0] and all(np.isfinite(losses))
