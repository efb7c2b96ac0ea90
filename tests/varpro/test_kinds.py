"""What a fit must not depend on, and what must not mislead it: units, undetermined parameters, noise, first steps."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from pinvnn.varpro import cos, exp, varpro
from tests.support.cases import array, float64

T = np.linspace(0, 10, 60)
Y = 7.5 * np.exp(-T / 2.5) + 0.7 + 0.05 * np.random.default_rng(3).standard_normal(60)


def columns(*parts):
    return mx.stack(list(parts), axis=1)


def decay(a, t=None):
    t = float64(T) if t is None else t
    return columns(exp(-t / a[0]), mx.ones_like(t))


@pytest.fixture(scope="module")
def alone():
    return varpro(decay, float64([1.0]), float64(Y))


# --- Units of the columns and of the data ----------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.tuples(*[st.floats(-280, 280)] * 2), st.floats(-140, 140))
def test_a_fit_does_not_depend_on_units_in_float64(columns_by, y_by):
    scale, unit = 10.0 ** np.array(columns_by), 10.0**y_by
    plain = varpro(decay, float64([1.0]), float64(Y))
    found = varpro(lambda a: decay(a) * float64(scale), float64([1.0]), float64(Y * unit))
    assert (found.rank, found.converged) == (2, True)
    np.testing.assert_allclose(found.alpha.item(), plain.alpha.item(), rtol=1e-9)
    np.testing.assert_allclose(found.rss.item() / unit / unit, plain.rss.item(), rtol=1e-9)
    with np.errstate(over="ignore", under="ignore"):
        linear = np.array(plain.linear) * unit / scale
    held = (np.abs(linear) > 1e-300) & (np.abs(linear) < 1e300)
    np.testing.assert_allclose(np.array(found.linear)[held], linear[held], rtol=1e-8)
    np.testing.assert_allclose(found.standard_errors.alpha.item(), plain.standard_errors.alpha.item(), rtol=1e-7)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.tuples(*[st.floats(-33, 33)] * 2))
def test_a_fit_does_not_depend_on_units_in_float32(columns_by):
    scale = mx.array((10.0 ** np.array(columns_by)).astype(np.float32))
    t, y = mx.array(T.astype(np.float32)), mx.array(Y.astype(np.float32))
    plain = varpro(lambda a: decay(a, t), mx.array([1.0]), y)
    found = varpro(lambda a: decay(a, t) * scale, mx.array([1.0]), y)
    assert (found.rank, found.converged) == (2, True)
    np.testing.assert_allclose(found.alpha.item(), plain.alpha.item(), rtol=1e-4)
    np.testing.assert_allclose(found.rss.item(), plain.rss.item(), rtol=1e-5)


@pytest.mark.parametrize("start", [0.05, 0.2, 0.3, 0.4, 1.0])
def test_growth_in_float32_is_found_from_far(start):
    """From 1.0 the first column is 2e35."""
    x = np.array([0.9, 1.5, 13.8, 19.8, 24.1, 28.2, 35.2, 60.3, 74.6, 81.3])
    xs, y = mx.array(x.astype(np.float32)), mx.array((2 * np.exp(0.1 * x) - 3000).astype(np.float32))
    found = varpro(lambda a: columns(mx.exp(a * xs), mx.ones_like(xs)), mx.array(start), y)
    assert (found.rank, found.converged) == (2, True)
    np.testing.assert_allclose(found.alpha.item(), 0.1, rtol=1e-5)


@pytest.mark.parametrize("degree", [3, 5])
def test_a_peak_on_a_background_in_powers_of_the_wavelength(degree):
    x = np.linspace(400, 700, 80)
    y = (
        5 * np.exp(-0.5 * ((x - 560) / 12) ** 2)
        + 3
        - 2 * (x / 700) ** 3
        + 0.01 * np.random.default_rng(0).normal(size=80)
    )
    t = float64(x)

    def basis(a):
        peak = exp(-0.5 * ((t - a[0]) / a[1]) * ((t - a[0]) / a[1]))
        return columns(peak, *[t**k for k in range(degree + 1)])

    def residual(a):
        phi = np.stack(
            [np.exp(-0.5 * ((x - a[0]) / a[1]) ** 2), *[(x / 550 - 1) ** k for k in range(degree + 1)]], axis=1
        )
        return y - phi @ np.linalg.lstsq(phi, y, rcond=None)[0]

    found = varpro(basis, float64([555.0, 20.0]), float64(y))
    theirs = least_squares(residual, [560, 12], xtol=1e-14, ftol=1e-14, gtol=1e-14)
    assert (found.rank, found.converged) == (degree + 2, True)
    np.testing.assert_allclose(np.array(found.alpha), theirs.x, rtol=1e-6)
    np.testing.assert_allclose(found.rss.item(), 2 * theirs.cost, rtol=1e-8)


# --- Parameters that the data do not determine -----------------------------------------------------------------------

REDUNDANT = {
    "a shift beside a free amplitude": (lambda a, t: exp(-(t - a[1]) / a[0]), [1.0, 1.0]),
    "a shift from 0": (lambda a, t: exp(-(t - a[1]) / a[0]), [1.0, 0.0]),
    "a factor": (lambda a, t: exp(a[1] - t / a[0]), [1.0, 1.0]),
    "a large factor": (lambda a, t: exp(a[1] - t / a[0]), [1.0, 300.0]),
    "unused": (lambda a, t: exp(-t / a[0]) + 0 * a[1], [1.0, 1e8]),
    "two at once": (lambda a, t: a[2] * exp(a[1] - t / a[0]), [1.0, 1.0, 2.0]),
}


@pytest.mark.parametrize("jacobian", ["full", "kaufman"])
@pytest.mark.parametrize(
    ("name", "dtype"),  # exp(300) has no float32.
    [(name, mx.float64) for name in REDUNDANT] + [(name, mx.float32) for name in REDUNDANT if "large" not in name],
)
def test_an_undetermined_parameter_spoils_no_other(name, dtype, jacobian, alone):
    column, start = REDUNDANT[name]
    t, y = array(T, dtype), array(Y, dtype)
    found = varpro(lambda a: columns(column(a, t), mx.ones_like(t)), array(start, dtype), y, jacobian=jacobian)
    exact = dtype == mx.float64
    assert found.converged, found.reason
    np.testing.assert_allclose(found.alpha.tolist()[0], alone.alpha.item(), rtol=1e-7 if exact else 2e-4)
    np.testing.assert_allclose(found.rss.item(), alone.rss.item(), rtol=1e-9 if exact else 1e-5)
    names = [f"alpha[{i}]" for i in range(1, len(start))]
    assert found.undetermined == tuple(names + ["linear[0]"] * (name != "unused"))
    for parameter in found.undetermined:
        assert parameter in found.reason
    errors, linear_errors = np.array(found.standard_errors.alpha), np.array(found.standard_errors.linear)
    rtol = 1e-6 if exact else 1e-3
    np.testing.assert_allclose(errors[0], alone.standard_errors.alpha.item(), rtol=rtol)
    np.testing.assert_allclose(linear_errors[1], alone.standard_errors.linear.tolist()[1], rtol=rtol)
    assert np.isnan(errors[1:]).all()
    np.testing.assert_allclose(  # The curve does not depend on what is not determined.
        np.array(found.predict().standard_error), np.array(alone.predict().standard_error), rtol=10 * rtol
    )


def test_two_rates_of_which_only_the_sum_is_determined(alone):
    t = float64(T)
    found = varpro(lambda a: columns(exp(-(a[0] + a[1]) * t), mx.ones_like(t)), float64([0.3, 0.5]), float64(Y))
    assert found.converged and found.undetermined == ("alpha[0]", "alpha[1]")
    np.testing.assert_allclose(mx.sum(found.alpha, stream=mx.cpu).item(), 1 / alone.alpha.item(), rtol=1e-7)
    np.testing.assert_allclose(
        np.array(found.standard_errors.linear), np.array(alone.standard_errors.linear), rtol=1e-6
    )


def test_names_follow_the_tree(alone):
    t = float64(T)
    tree = {"tau": float64(1.0), "idle": [float64([[2.0, 3.0]])]}
    found = varpro(lambda a: decay([a["tau"]], t) + 0 * mx.sum(a["idle"][0]), tree, float64(Y))
    assert found.undetermined == ("alpha.idle.0[0, 0]", "alpha.idle.0[0, 1]")
    np.testing.assert_allclose(found.alpha["tau"].item(), alone.alpha.item(), rtol=1e-8)


# --- Steps and what rounding does to them ----------------------------------------------------------------------------


@pytest.mark.parametrize("start", [4.0, 5.0, 6.0, 8.0])
def test_columns_of_1e_78_are_columns(start):
    x = float64(np.arange(36.0, 73.0))
    found = varpro(
        lambda a: columns(mx.ones_like(x), exp(-a * x)), float64(start), float64(30 * 1.1 ** np.arange(37.0))
    )
    assert found.converged, found.reason
    np.testing.assert_allclose(found.alpha.item(), -np.log(1.1), rtol=1e-9)


def test_a_start_where_columns_are_the_same_is_left():
    """exp(0 t) is a column of ones."""
    t = float64(T)
    found = varpro(lambda a: columns(exp(-a * t), mx.ones_like(t)), float64(0.0), float64(Y))
    assert (found.rank, found.converged) == (2, True), found.reason
    np.testing.assert_allclose(1 / found.alpha.item(), 2.5, rtol=0.1)


def test_two_equal_rates_at_the_start_are_parted():
    t = float64(np.linspace(0, 4, 60))
    y = 2 * np.exp(-0.5 * np.array(t)) + 3 * np.exp(-3 * np.array(t))
    y = y + 0.001 * np.random.default_rng(0).standard_normal(60)
    found = varpro(lambda a: exp(-a * t[:, None]), float64([1.0, 1.0]), float64(y))
    assert (found.rank, found.converged) == (2, True), found.reason
    np.testing.assert_allclose(np.sort(np.array(found.alpha)), [0.5, 3], rtol=0.05)


def test_a_basis_that_jumps_has_no_minimum_where_it_jumps():
    """Entries below the smallest float32 become 0 from one step to the next, however short the step."""
    x = np.linspace(296.356, 306.356, 40, dtype=np.float32)
    y = 3 * np.exp(-0.30857 * (x - 296.356)) + 1 + 0.003 * np.random.default_rng(7).standard_normal(40)
    xs = mx.array(x)
    found = varpro(lambda a: columns(mx.exp(-a * xs), mx.ones_like(xs)), mx.array(0.2), mx.array(y.astype(np.float32)))
    assert abs(found.alpha.item() - 0.30857) > 0.01
    assert not found.converged and found.reason.startswith("noise: ")


def test_no_influence_is_said(alone):
    """A rate so high that only the first point sees the column."""
    t = float64(T)
    found = varpro(lambda a: columns(exp(-a * t), mx.ones_like(t)), float64(1e5), float64(Y))
    assert not found.converged
    assert "undetermined parameter" in found.reason


CURVES = {
    "decay from a large x": (
        lambda a, x, n: (n.exp(-a[0] * x), x**0),
        np.linspace(80.0, 90.0, 40),
        [0.7],
        [2 * np.exp(56.0), 1.0],
        [0.2, 2.5],
    ),
    "growth in units of 1e-6": (
        lambda a, x, n: (n.exp(a[0] * x), x**0),
        np.linspace(0.0, 2e6, 30),
        [1.5e-6],
        [4.0, -20.0],
        [2e-7, 6e-6],
    ),
    "dose and response": (
        lambda a, x, n: (x**0, 1 / (1 + (x / a[0]) ** a[1])),
        10.0 ** np.linspace(-3, 1, 16),
        [0.1, 1.5],
        [3, 80],
        [0.02, 0.6],
    ),
    "arrhenius": (
        lambda a, x, n: (n.exp(-a[0] / x), x**0),
        np.linspace(280.0, 400.0, 20),
        [6000.0],
        [2 * np.exp(15.0), 0.1],
        [16000.0],
    ),
    "stretched": (
        lambda a, x, n: (n.exp(-((x / a[0]) ** a[1])), x**0),
        np.linspace(0.05, 12, 40),
        [0.7, 0.71],
        [5, 0.3],
        [0.39, 1.8],
    ),
    "michaelis and menten": (lambda a, x, n: (x / (a[0] + x),), np.linspace(0.1, 5.0, 12), [1.2], [40.0], [0.03, 60.0]),
}


class Host:
    exp = staticmethod(np.exp)


class Device:
    exp = staticmethod(exp)


@pytest.mark.parametrize("name", CURVES)
def test_curves_that_scipy_fits_from_these_starts(name):
    parts, x, alpha, linear, starts = CURVES[name]
    p = len(alpha)
    clean = np.stack(parts(alpha, x, Host), axis=1) @ linear
    y = clean + 1e-3 * np.std(clean) * np.random.default_rng(1).standard_normal(x.size)
    t = float64(x)

    def residual(b):
        return np.stack(parts(b[:p], x, Host), axis=1) @ b[p:] - y

    best = least_squares(residual, [*alpha, *linear], x_scale="jac", method="lm", xtol=1e-14, ftol=1e-14)
    for start in np.reshape(starts, (-1, p)):
        found = varpro(lambda a: columns(*parts(a, t, Device)), float64(start), float64(y))
        assert found.converged, found.reason
        np.testing.assert_allclose(np.array(found.alpha), best.x[:p], rtol=1e-4)
        assert found.rss.item() <= 2 * best.cost * (1 + 1e-6)
        assert np.abs(np.array(found.linear) / best.x[p:] - 1).max() < 1e-2


# --- Several starts --------------------------------------------------------------------------------------------------


def waves(a, t):
    return columns(cos(a[0] * t), mx.ones_like(t))


def test_the_best_of_several_starts_is_returned():
    t = float64(T)
    y = float64(2 * np.cos(3.1 * T) + 0.1 + 0.01 * np.random.default_rng(0).standard_normal(T.size))
    wrong = varpro(waves, float64([1.0]), y, inputs=(t,))
    assert wrong.rss.item() > 10
    for starts in ([float64([2.0]), float64([3.0]), float64([5.0])], float64([[2.0], [3.0], [5.0]])):
        found = varpro(waves, float64([1.0]), y, inputs=(t,), starts=starts)
        np.testing.assert_allclose(found.alpha.item(), 3.1, rtol=1e-3)
        assert found.converged and "best of 4 starts" in found.reason
        assert found.evaluations.basis > wrong.evaluations.basis


def test_a_start_that_cannot_be_used_is_passed_over():
    t = float64(T)
    y = float64(2 * np.cos(3.1 * T) + 0.1)

    def picky(a, t):
        return mx.where(a[0] > 4, mx.array(float("nan"), mx.float64), waves(a, t))

    found = varpro(picky, float64([5.0]), y, inputs=(t,), starts=[float64([3.0])])
    np.testing.assert_allclose(found.alpha.item(), 3.1, rtol=1e-9)
    with pytest.raises(ValueError, match="basis must be finite at the start"):
        varpro(picky, float64([5.0]), y, inputs=(t,), starts=[float64([6.0])])


# --- What weights mean -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_cpu")
def test_weights_are_counts_precisions_or_inverse_variances():
    counts = np.arange(T.size) % 3
    t, y, start = float64(T), float64(Y), float64([1.0])
    basis = lambda a, t: decay(a, t)  # noqa: E731
    repeated = varpro(basis, start, float64(np.repeat(Y, counts)), inputs=(float64(np.repeat(T, counts)),))
    as_counts = varpro(basis, start, y, inputs=(t,), weights=counts, weights_are="counts")
    np.testing.assert_allclose(np.array(as_counts.covariance), np.array(repeated.covariance), rtol=1e-7)
    np.testing.assert_allclose(as_counts.residual_std.item(), repeated.residual_std.item(), rtol=1e-9)

    w = np.random.default_rng(0).uniform(0.5, 2, T.size) / 0.05**2
    precisions, more = (varpro(basis, start, y, inputs=(t,), weights=f * w) for f in (1, 7))
    np.testing.assert_allclose(np.array(precisions.covariance), np.array(more.covariance), rtol=1e-7)
    known = varpro(basis, start, y, inputs=(t,), weights=w, weights_are="inverse variances")
    factor = precisions.residual_std.item() ** 2
    np.testing.assert_allclose(np.array(known.covariance) * factor, np.array(precisions.covariance), rtol=1e-9)
    # Against the full problem: (F^T W F)^-1.
    tau, c = known.alpha.item(), known.linear[0].item()
    f = np.stack([c * T / tau**2 * np.exp(-T / tau), np.exp(-T / tau), np.ones_like(T)], axis=1)
    np.testing.assert_allclose(np.array(known.covariance), np.linalg.inv(f.T @ (w[:, None] * f)), rtol=1e-6)
    with pytest.raises(ValueError, match="weights_are must be 'counts', 'precisions' or 'inverse variances'"):
        varpro(decay, start, y, weights_are="variances")  # type: ignore[arg-type]


def test_a_row_of_weight_0_takes_no_part_whatever_it_holds(alone):
    t, y = np.append(T, [3.0, np.nan]), np.append(Y, [np.nan, 1.0])
    weights = np.append(np.ones(60), [0, 0])
    found = varpro(lambda a: decay(a, float64(t)), float64([1.0]), float64(y), weights=weights)
    np.testing.assert_allclose(found.alpha.item(), alone.alpha.item(), rtol=1e-12)
    np.testing.assert_allclose(np.array(found.covariance), np.array(alone.covariance), rtol=1e-9)
    assert np.isnan(np.array(found.residuals)[60:]).all() and np.isfinite(np.array(found.residuals)[:60]).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            dict(weights=[[1, 2], [3]]),
            TypeError,
            "weights must be an array of real numbers, but got lists of different",
        ),
        (dict(weights=np.array(["a"] * 60)), TypeError, "weights must be an array of real numbers, but got dtype <U1"),
        (dict(weights=mx.ones(60, mx.complex64)), TypeError, "weights must be an array of real numbers"),
        (dict(linear_bounds=3.0), ValueError, r"linear_bounds must be a pair \(lower, upper\)"),
        (
            dict(linear_bounds=(1.0, 0.0)),
            ValueError,
            "lower linear_bounds must .* not exceed upper ones, but got 1.0 and",
        ),
        (dict(linear_bounds=(np.zeros(3), None)), ValueError, r"linear_bounds must broadcast against .* \(2,\)"),
        (dict(y=mx.array([2**24 + 1] * 60)), ValueError, "integers in y must be exact in float32, but got 16777217"),
        (dict(starts=3.0), TypeError, "starts must be a sequence of trees like alpha, but got float"),
        (
            dict(starts=[mx.zeros(2)]),
            ValueError,
            r"starts must be trees of arrays like alpha, but got shapes \[\(2,\)\]",
        ),
        (dict(starts=[mx.array([9.0])], bounds=(0, 5)), ValueError, "starts must lie within the bounds, but got 9.0"),
        (dict(starts=[mx.array([float("nan")])]), ValueError, "starts must be finite"),
    ],
)
def test_what_is_refused(options, error, message):
    with mx.stream(mx.cpu), pytest.raises(error, match=rf"\[pinvnn\.varpro\] {message}"):
        varpro(*((decay, mx.array([1.0])) if "y" in options else (decay, float64([1.0]), float64(Y))), **options)
