"""Variances and leverages against statsmodels, SciPy and scikit-learn."""

import mlx.core as mx
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import statsmodels.api as sm
from sklearn.linear_model import BayesianRidge

from pinvnn.nn import LeastSquaresReadout
from pinvnn.testing import gradcheck

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

N, K, M = 3, 2, 20


def data(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(M, N)) + 3
    y = x @ rng.normal(size=(N, K)) + rng.normal(size=(M, K)) + 1
    return x, y, rng.integers(1, 4, size=M).astype(float)


def arrays(*values):
    return [mx.array(v, mx.float64) for v in values]


def test_least_squares_is_statsmodels_ols():
    x, y, _ = data()
    got = LeastSquaresReadout(N, K).uncertainty(*arrays(x, y))
    query = np.random.default_rng(1).normal(size=(4, N))
    std = np.array(got.predictive_std(mx.array(query, mx.float64)))
    assert got.bias_variance is not None
    for t in range(K):
        want = sm.OLS(y[:, t], sm.add_constant(x)).fit()
        covariance = want.cov_params()
        assert got.residual_variance[t].item() == pytest.approx(want.scale)
        assert got.bias_variance[t].item() == pytest.approx(covariance[0, 0])
        assert got.degrees_of_freedom[t].item() == pytest.approx(N + 1)
        np.testing.assert_allclose(np.array(got.weight_covariance[t]), covariance[1:, 1:], rtol=1e-9)
        np.testing.assert_allclose(np.array(got.leverage[:, t]), want.get_influence().hat_matrix_diag, rtol=1e-9)
        se = want.get_prediction(sm.add_constant(query)).summary_frame()["obs_ci_upper"]
        half = se - want.predict(sm.add_constant(query))
        np.testing.assert_allclose(std[:, t] * scipy.stats.t.ppf(0.975, M - N - 1), half, rtol=1e-9)


def test_least_squares_is_scipys_curve_fit_and_linregress():
    x, y, _ = data()
    covariance = scipy.optimize.curve_fit(lambda x, a, b, c: x @ [a, b, c], x, y[:, 0], np.ones(N))[1]
    got = LeastSquaresReadout(N, 1, bias=False).uncertainty(*arrays(x, y[:, 0]))
    np.testing.assert_allclose(np.array(got.weight_covariance[0]), covariance, rtol=1e-5)
    assert got.bias_variance is None
    line, single = scipy.stats.linregress(x[:, 0], y[:, 0]), LeastSquaresReadout(1, 1)
    got = single.uncertainty(*arrays(x[:, :1], y[:, 0]))
    assert got.bias_variance is not None
    assert got.weight_covariance.item() == pytest.approx(line.stderr**2)
    assert got.bias_variance.item() == pytest.approx(line.intercept_stderr**2)


def test_a_penalty_is_the_prior_of_scikit_learns_bayesian_ridge():
    x, y, _ = data()
    y = y[:, 0]
    rival = BayesianRidge(alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0).fit(x, y)
    l2 = rival.lambda_ / rival.alpha_
    got = LeastSquaresReadout(N, 1, l2=l2).uncertainty(*arrays(x, y))
    noise = 1 / rival.alpha_
    np.testing.assert_allclose(np.array(got.weight_covariance[0]) / got.residual_variance.item(), rival.sigma_ / noise)
    # Its noise is the maximum of its evidence, ours the residual variance; its intercept is taken as known.
    query = np.random.default_rng(1).normal(size=(4, N))
    std = np.array(got.predictive_std(mx.array(query, mx.float64)))[:, 0]
    scaled = std**2 / got.residual_variance.item() - 1 / M
    centred = query - x.mean(axis=0)  # as predict(return_std=True) of newer versions has it
    expected = np.sum((centred @ rival.sigma_) * centred, axis=1) / noise + 1
    np.testing.assert_allclose(scaled, expected, rtol=1e-9)


@pytest.mark.parametrize("l2", [0.0, 0.7, [0.3, 2.0], [[0.3], [0.5], [4.0]]], ids=str)
def test_weights_count_rows_and_leverages_are_derivatives(l2):
    x, y, w = data()
    readout = LeastSquaresReadout(N, K, l2=l2 if isinstance(l2, float) else mx.array(l2))
    rows = np.repeat(np.arange(M), w.astype(int))
    weighted, repeated = readout.uncertainty(*arrays(x, y, w)), readout.uncertainty(*arrays(x[rows], y[rows]))
    for name in ("residual_variance", "weight_covariance", "bias_variance", "degrees_of_freedom", "mean_variance"):
        np.testing.assert_allclose(np.array(getattr(weighted, name)), np.array(getattr(repeated, name)), rtol=1e-8)
    np.testing.assert_allclose(np.array(weighted.leverage).sum(0), np.array(weighted.degrees_of_freedom), rtol=1e-9)
    x, y, w = arrays(x, y, w)
    slope = mx.grad(lambda y: readout.adapt(x, y, x[:1], w)[0, 1])(y)[0, 1]
    assert weighted.leverage[0, 1].item() == pytest.approx(slope.item())


def test_batches_are_fits_of_their_own():
    xs, ys, ws = (np.stack(v) for v in zip(*(data(seed) for seed in range(3)), strict=True))
    for l2 in (0.5, mx.array([0.5, 2.0])):
        readout = LeastSquaresReadout(N, K, l2=l2)
        together = readout.uncertainty(*arrays(xs, ys, ws))
        std = together.predictive_std(mx.array(xs, mx.float64))
        single = readout.uncertainty(*arrays(xs[1], ys[1], ws[1]))
        for a, b in zip(together, single, strict=True):
            assert a is not None and b is not None
            np.testing.assert_allclose(np.array(a[1]), np.array(b), rtol=1e-9)
        np.testing.assert_allclose(np.array(std[1]), np.array(single.predictive_std(*arrays(xs[1]))), rtol=1e-9)


def test_no_degree_of_freedom_left():
    x, y, _ = data()
    got = LeastSquaresReadout(N, K).uncertainty(*arrays(x[: N + 1], y[: N + 1]))
    assert np.isnan(np.array(got.residual_variance)).all()
    np.testing.assert_allclose(np.array(got.leverage), 1, rtol=1e-9)


def test_derivatives_of_the_predictive_variance():
    x, y, w = arrays(*data())

    def fn(x, y, w, l2):
        return LeastSquaresReadout(N, K, l2=l2).uncertainty(x, y, w).predictive_std(x[:2])

    gradcheck(fn, x[:8], y[:8], w[:8], mx.array(0.5, mx.float64))


def test_weights_as_precisions_and_inverse_variances_are_statsmodels_and_scipys():
    x, y, w = data()
    w = w * 1e-3 + 0.01  # no counts: their sum is far below the number of rows
    readout = LeastSquaresReadout(N, 1)
    relative, known = (
        readout.uncertainty(*arrays(x, y[:, 0], w), weights_are=kind) for kind in ("precisions", "inverse variances")
    )
    design = sm.add_constant(x)
    wls = sm.WLS(y[:, 0], design, weights=w).fit()
    inverse = np.linalg.inv(design.T @ (w[:, None] * design))
    assert relative.bias_variance is not None and known.bias_variance is not None
    for got, want in [(relative, wls.cov_params()), (known, inverse)]:
        np.testing.assert_allclose(np.array(got.weight_covariance[0]), want[1:, 1:], rtol=1e-8)
        np.testing.assert_allclose(got.bias_variance.item(), want[0, 0], rtol=1e-8)
        assert got.degrees_of_freedom.item() == pytest.approx(N + 1)
    assert relative.residual_variance.item() == pytest.approx(wls.scale) and known.residual_variance.item() == 1
    scaled = readout.uncertainty(*arrays(x, y[:, 0], 7 * w), weights_are="precisions")
    np.testing.assert_allclose(np.array(scaled.weight_covariance), np.array(relative.weight_covariance), rtol=1e-9)
    model = scipy.optimize.curve_fit(
        lambda x, a, b, c, d: x @ [a, b, c] + d, x, y[:, 0], np.ones(4), sigma=w**-0.5, absolute_sigma=True
    )
    np.testing.assert_allclose(np.array(known.weight_covariance[0]), model[1][:3, :3], rtol=1e-4)
    with pytest.raises(ValueError, match='weights_are must be "counts", .*, but got \'sigma\'. Take "precisions"'):
        readout.uncertainty(*arrays(x, y[:, 0], w), weights_are="sigma")  # type: ignore[arg-type]


def test_no_weights_are_all_three():
    x, y, _ = data()
    readout = LeastSquaresReadout(N, K, l2=[0.3, 2.0])
    counts, precisions = (
        readout.uncertainty(*arrays(x, y), weights_are=kind).weight_covariance for kind in ("counts", "precisions")
    )
    np.testing.assert_allclose(np.array(counts), np.array(precisions), rtol=1e-12)
