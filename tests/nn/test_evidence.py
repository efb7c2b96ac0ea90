"""The marginal likelihood of Bayesian ridge against SciPy's densities, scikit-learn and differences."""

import mlx.core as mx
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from sklearn.linear_model import BayesianRidge

from pinvnn.nn import LeastSquaresReadout
from pinvnn.nn._evidence import log_gamma
from pinvnn.testing import adjoint_check, gradcheck

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

SHAPES = {"tall": (12, 3, 2), "wide": (4, 7, 2), "square": (5, 5, 1)}
# By the number of features n and of targets k.
PENALTIES = {
    "number": lambda n, k: 0.7,
    "target": lambda n, k: np.linspace(0.3, 2, k),
    "feature": lambda n, k: np.linspace(0.2, 3, n)[:, None],
    "both": lambda n, k: np.linspace(0.2, 3, n * k).reshape(n, k),
}


def wide(x):
    return mx.array(x, dtype=mx.float64)


def data(shape, seed=0):
    m, n, k = SHAPES[shape] if isinstance(shape, str) else shape
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(m, n)) + 2
    return x, x @ rng.normal(size=(n, k)) + rng.normal(size=(m, k)) + 1, rng.integers(1, 4, m)


def layer(n, k, l2, bias=True):
    return LeastSquaresReadout(n, k, l2=l2 if np.ndim(l2) == 0 else wide(l2), bias=bias)


def reference(x, y, l2, bias, variance):
    """By the covariance of the targets, of which an intercept leaves the contrasts; rows are of weight 1."""
    m, n, total = len(x), x.shape[1], 0.0
    l2 = np.broadcast_to(l2, (n, y.shape[1])) if np.ndim(l2) != 1 else np.broadcast_to(l2, (n, y.shape[1]))
    contrasts = scipy.linalg.null_space(np.ones((1, m))) if bias else np.eye(m)
    rows = m - bias
    for t in range(y.shape[1]):
        u, s, _ = np.linalg.svd(contrasts.T @ x / np.sqrt(l2[:, t]))
        z = u.T @ contrasts.T @ y[:, t]
        spread = 1 + np.concatenate([s**2, np.zeros(rows - len(s))])
        least = np.sum(z**2 / spread)
        total += -np.log(spread).sum() / 2 - bias * np.log(m) / 2
        if variance is None:
            total += scipy.special.gammaln(rows / 2) - rows / 2 * np.log(np.pi * least)
        else:
            total += -rows / 2 * np.log(2 * np.pi * variance) - least / (2 * variance)
    return total


# --- Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", PENALTIES)
def test_it_is_scipys_normal_density(shape, kind):
    x, y, _ = data(shape)
    (m, n), k = x.shape, y.shape[1]
    l2, variance = PENALTIES[kind](n, k), np.linspace(0.4, 0.9, k)
    of = np.broadcast_to(l2, (n, k))
    want = sum(
        scipy.stats.multivariate_normal(np.zeros(m), variance[t] * (np.eye(m) + (x / of[:, t]) @ x.T)).logpdf(y[:, t])
        for t in range(k)
    )
    got = layer(n, k, l2, bias=False).log_evidence(wide(x), wide(y), noise_variance=wide(variance))
    assert got.item() == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_densities_with_and_without_an_intercept(shape, kind, bias):
    x, y, _ = data(shape)
    n, k = x.shape[1], y.shape[1]
    l2 = PENALTIES[kind](n, k)
    for variance in (None, 0.6):
        got = layer(n, k, l2, bias).log_evidence(wide(x), wide(y), noise_variance=variance).item()
        assert got == pytest.approx(reference(x, y, l2, bias, variance), rel=1e-10)


def test_the_noise_variance_is_integrated_with_its_scale_invariant_prior():
    x, y, _ = data((6, 2, 1))
    readout = layer(2, 1, 0.5)

    def density(log_variance):  # d(variance) / variance = d(log variance)
        return np.exp(readout.log_evidence(wide(x), wide(y), noise_variance=float(np.exp(log_variance))).item())

    want = scipy.integrate.quad(density, -8, 12, epsabs=0, epsrel=1e-6)[0]
    assert readout.log_evidence(wide(x), wide(y)).item() == pytest.approx(np.log(want), rel=1e-6)


def test_what_rows_add_is_scipys_student_density_of_their_prediction():
    x, y, _ = data((11, 3, 1))
    old, new, l2 = slice(0, 8), slice(8, 11), 0.5
    readout = layer(3, 1, l2)
    known = readout.log_evidence(wide(x[old]), wide(y[old])).item()
    gain = readout.log_evidence(wide(x), wide(y)).item() - known
    mean, centred = x[old].mean(0), x[old] - x[old].mean(0)
    inverse = np.linalg.inv(centred.T @ centred + l2 * np.eye(3))
    solution = inverse @ centred.T @ y[old, 0]
    residual = y[old, 0] - y[old, 0].mean() - centred @ solution
    least = residual @ residual + l2 * solution @ solution
    rows = x[new] - mean
    scale = least / 7 * (np.eye(3) + 1 / 8 + rows @ inverse @ rows.T)
    student = scipy.stats.multivariate_t(y[old, 0].mean() + rows @ solution, scale, df=7)
    assert gain == pytest.approx(student.logpdf(y[new, 0]), rel=1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_scikit_learns_bayesian_ridge_has_the_same_score_and_is_where_its_gradient_vanishes(bias):
    x, y, _ = data((40, 4, 1))
    none = dict(alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0)
    rival = BayesianRidge(compute_score=True, fit_intercept=bias, tol=1e-12, max_iter=10000, **none).fit(x, y[:, 0])

    def evidence(l2, variance):
        readout = LeastSquaresReadout(4, 1, l2=l2, bias=bias)
        return readout.log_evidence(wide(x), wide(y), noise_variance=variance)

    at = wide(rival.lambda_ / rival.alpha_), wide(1 / rival.alpha_)
    # scikit-learn's intercept is the mean; integrated out it takes a row, and leaves log(M) / 2.
    intercept = bias * (np.log(2 * np.pi / rival.alpha_) / 2 - np.log(40) / 2)
    assert evidence(*at).item() == pytest.approx(rival.scores_[-1] + intercept, rel=1e-9)
    slopes = mx.grad(evidence, argnums=(0, 1))(*at)
    assert abs(slopes[0].item() * at[0].item()) < 1e-4
    assert slopes[1].item() * at[1].item() == pytest.approx(bias / 2, abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_weight_2_is_the_row_given_twice(shape, bias):
    x, y, w = data(shape)
    twice = np.repeat(x, w, axis=0), np.repeat(y, w, axis=0)
    readout = layer(x.shape[1], y.shape[1], 0.7, bias)
    for variance in (None, 0.6):
        want = readout.log_evidence(*map(wide, twice), noise_variance=variance).item()
        got = readout.log_evidence(wide(x), wide(y), wide(w), noise_variance=variance).item()
        assert got == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("exponent", range(-12, 13, 6))
@pytest.mark.parametrize("dtype", [mx.float64, mx.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["number", "feature"])
def test_penalties_over_many_decades(shape, kind, dtype, exponent):
    x, y, _ = data(shape)
    x, y = (np.array(mx.array(v, dtype=dtype)).astype(float) for v in (x, y))
    n, k = x.shape[1], y.shape[1]
    l2 = 10.0**exponent * np.asarray(PENALTIES[kind](n, k))
    got = layer(n, k, l2).log_evidence(mx.array(x, dtype=dtype), mx.array(y, dtype=dtype))
    want = reference(x, y, l2, True, None)
    assert got.item() == pytest.approx(want, rel=1e-8 if dtype == mx.float64 else 1e-6)


@pytest.mark.parametrize("dtype", [mx.float64, mx.float32], ids=str)
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_compiled_penalties_over_many_decades(shape, dtype):
    x, y, _ = data(shape)
    n, k = x.shape[1], y.shape[1]
    rows, targets = mx.array(x, dtype=dtype), mx.array(y, dtype=dtype)

    @mx.compile
    def evidence(log_l2):
        readout = LeastSquaresReadout(n, k, l2=1.0, learn_l2=True)
        readout.log_l2 = log_l2
        return readout.log_evidence(rows, targets)

    x, y = (np.array(v).astype(float) for v in (rows, targets))
    for l2 in 10.0 ** np.arange(-12, 13, 6):
        want = reference(x, y, l2, True, None)
        assert evidence(wide(np.log(l2))).item() == pytest.approx(want, rel=1e-8 if dtype == mx.float64 else 1e-6)


@pytest.mark.parametrize("exponent", [-14, -12, -6, 0])
def test_collinear_features_are_right_or_nan(exponent):
    x, y, _ = data((60, 3, 1))
    x, l2 = np.column_stack([x, x[:, ::-1]]), 10.0**exponent
    for dtype, tolerance in ((mx.float64, 1e-6), (mx.float32, 1e-5)):
        rows = mx.array(x, dtype=dtype)
        got = LeastSquaresReadout(6, 1, l2=l2).log_evidence(rows, mx.array(y, dtype=dtype)).item()
        want = reference(np.array(rows).astype(float), y, l2, True, None)
        if exponent == -14:  # the ridge solution, too, is NaN where the penalty is below the rounding error
            want = np.nan
        assert got == pytest.approx(want, rel=tolerance, nan_ok=True)


def test_the_logarithm_of_gamma():
    x = np.concatenate([np.linspace(0.01, 12, 400), np.logspace(1, 9, 60)])
    np.testing.assert_allclose(np.array(log_gamma(wide(x))), scipy.special.gammaln(x), rtol=4e-15, atol=4e-14)
    slope = mx.grad(lambda x: log_gamma(x).sum())
    np.testing.assert_allclose(np.array(slope(wide(x))), scipy.special.digamma(x), rtol=1e-12, atol=1e-13)
    second = mx.grad(lambda x: slope(x).sum())(wide(x))
    np.testing.assert_allclose(np.array(second), scipy.special.polygamma(1, x), rtol=1e-11)


# --- Derivatives ------------------------------------------------------------------------------------------------------


def as_function(n, k, bias):
    def evidence(x, y, w, log_l2, variance):
        readout = LeastSquaresReadout(n, k, l2=1.0, bias=bias, learn_l2=True)
        readout.log_l2 = log_l2
        return readout.log_evidence(x, y, w, noise_variance=variance)

    return evidence


@pytest.mark.parametrize(
    ("shape", "kind", "given", "order"),
    [
        ("tall", "number", "w", 1),
        ("tall", "number", "w", 2),
        ("tall", "number", "v", 2),
        ("tall", "both", "w", 1),
        ("wide", "number", "w", 1),
        ("wide", "target", "", 1),
        ("wide", "feature", "", 2),
        ("wide", "both", "v", 1),
    ],
)
def test_derivatives(shape, kind, given, order):
    x, y, w = data({"tall": (5, 2, 2), "wide": (3, 4, 2)}[shape])
    n, k = x.shape[1], y.shape[1]
    evidence, log_l2 = as_function(n, k, bias=kind != "both"), np.log(PENALTIES[kind](n, k))
    rest = {"": [], "w": [w], "v": [np.array([0.5, 0.8])]}[given]

    def fn(x, y, log_l2, *rest):
        return evidence(x, y, *(rest if given == "w" else [None]), log_l2, *(rest if given == "v" else [None]))

    gradcheck(fn, *map(wide, (x, y, log_l2, *rest)), order=order)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_adjoint_identity(shape, dtype):
    x, y, w = (mx.array(v, dtype=dtype) for v in data(shape))
    adjoint_check(lambda *args: as_function(x.shape[1], 2, True)(*args, None), x, y, w, wide(0.2))


@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_compiled_equals_eager_with_its_gradient(shape):
    x, y, _ = data(shape)
    evidence = as_function(x.shape[1], 2, True)
    both = mx.value_and_grad(lambda x, l2: evidence(x, wide(y), None, l2, None), argnums=(0, 1))
    (value, bars), (compiled_value, compiled) = both(wide(x), wide(0.3)), mx.compile(both)(wide(x), wide(0.3))
    for one, other in zip((value, *bars), (compiled_value, *compiled), strict=True):
        np.testing.assert_allclose(np.array(other), np.array(one), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_episodes_as_batch_and_as_vmap(shape, kind):
    episodes = [data(shape, seed) for seed in range(3)]
    x, y = (wide(np.stack([e[i] for e in episodes])) for i in (0, 1))
    n, k = SHAPES[shape][1:]
    readout = layer(n, k, PENALTIES[kind](n, k))
    one_by_one = [readout.log_evidence(x[i], y[i]).item() for i in range(3)]
    np.testing.assert_allclose(np.array(readout.log_evidence(x, y)), one_by_one, rtol=1e-10)
    np.testing.assert_allclose(np.array(mx.vmap(readout.log_evidence)(x, y)), one_by_one, rtol=1e-10)
    slope = mx.grad(lambda x: readout.log_evidence(x, y).sum())(x)
    mapped = mx.vmap(mx.grad(readout.log_evidence))(x, y)
    np.testing.assert_allclose(np.array(mapped), np.array(slope), atol=1e-8)


def test_at_weight_0_the_gradient_is_exact():
    x, y, w = data("wide")
    w = w * 1.0
    w[1] = 0
    readout = layer(7, 2, 0.7)

    def evidence(w):
        return readout.log_evidence(wide(x), wide(y), w)

    slope, step = mx.grad(evidence)(wide(w)), 1e-6
    up = np.array(w) + step * (np.arange(4) == 1)
    above = evidence(wide(up)).item() - evidence(wide(w)).item()
    assert slope[1].item() == pytest.approx(above / step, rel=1e-4)


def test_it_chooses_the_penalty_and_the_features():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(30, 20))
    y = 2 * x[:, :1] + 0.5 * rng.normal(size=(30, 1))
    readout = LeastSquaresReadout(20, 1, l2=mx.ones((20, 1)), learn_l2=True)

    def loss(log_l2):
        readout.log_l2 = log_l2
        return -readout.log_evidence(wide(x), wide(y))

    log_l2 = mx.zeros((20, 1))
    step = mx.compile(mx.value_and_grad(loss))
    values = []
    for _ in range(60):
        value, slope = step(log_l2)
        log_l2 = log_l2 - 2 * slope
        values.append(value.item())
    assert values[-1] < values[0] - 20
    assert int(mx.argmin(log_l2).item()) == 0 and log_l2[0].item() < -1 and np.median(np.array(log_l2)) > 3


# --- Rows, dtypes, bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_half_input_gives_float32(dtype):
    x, y, _ = data("tall")
    half = [mx.array(v, dtype=dtype) for v in (x, y)]
    got = LeastSquaresReadout(3, 2, l2=0.7).log_evidence(*half)
    exact = LeastSquaresReadout(3, 2, l2=0.7).log_evidence(*(v.astype(mx.float32) for v in half))
    assert got.dtype == mx.float32 and got.item() == pytest.approx(exact.item(), rel=1e-6)


def test_a_row_of_weight_0_takes_no_part_and_nan_stays_in_its_episode():
    x, y, w = data("tall")
    w = w * 1.0
    w[3], bad = 0, x.copy()
    bad[3] = np.nan
    readout = layer(3, 2, 0.7)
    want = readout.log_evidence(*map(wide, (x[w > 0], y[w > 0], w[w > 0]))).item()
    assert readout.log_evidence(wide(bad), wide(y), wide(w)).item() == pytest.approx(want)
    episodes = np.array(readout.log_evidence(wide(np.stack([x, bad, x])), wide(y)))
    assert np.array_equal(np.isnan(episodes), [False, True, False])


def test_without_a_penalty_there_is_no_prior():
    x, y, _ = data("tall")
    with pytest.raises(ValueError, match="l2 must be positive, since it is the prior, but got 0.0. Pass a positive"):
        LeastSquaresReadout(3, 2).log_evidence(wide(x), wide(y))
    for l2 in ([0.0, 1.0], [[1.0], [0.0], [1.0]]):
        assert LeastSquaresReadout(3, 2, l2=wide(l2)).log_evidence(wide(x), wide(y)).item() == -np.inf
    # -inf is the limit.
    values = [LeastSquaresReadout(3, 2, l2=wide([10.0**-e, 1])).log_evidence(wide(x), wide(y)).item() for e in (9, 99)]
    assert values[1] < values[0] - 100


def test_too_few_rows():
    x, y, _ = data("tall")
    for bias, rows in ((True, 1), (True, 0), (False, 0)):
        assert np.isnan(layer(3, 2, 0.7, bias).log_evidence(wide(x[:rows]), wide(y[:rows])).item())
    assert np.isnan(layer(3, 2, 0.7).log_evidence(wide(x), wide(y), wide([0.1] + [0] * 11)).item())
    assert layer(3, 2, 0.7, False).log_evidence(wide(x[:0]), wide(y[:0]), noise_variance=2.0).item() == 0
    assert np.isfinite(layer(3, 2, 0.7, False).log_evidence(wide(x[:1]), wide(y[:1])).item())


@pytest.mark.parametrize(
    ("variance", "error", "match"),
    [
        (0.0, ValueError, "noise_variance must be positive and finite, but got 0.0. Leave it out"),
        (-1, ValueError, "noise_variance must be positive and finite, but got -1"),
        (np.inf, ValueError, "noise_variance must be positive and finite, but got inf"),
        (mx.ones(3), ValueError, r"number or have the shape \(..., 2\), but got shape \(3,\). Pass one for each"),
        ("1", TypeError, "noise_variance must be an array"),
        (mx.array(1j), TypeError, "noise_variance must be real"),
    ],
)
def test_bad_variances(variance, error, match):
    x, y, _ = data("tall")
    with pytest.raises(error, match=match):
        layer(3, 2, 0.7).log_evidence(wide(x), wide(y), noise_variance=variance)
