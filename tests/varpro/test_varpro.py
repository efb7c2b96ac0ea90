"""The public function: what it takes, what it returns, what it refuses."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from scipy.optimize import least_squares

import pinvnn
from pinvnn.varpro import VarProStep, exp, varpro
from tests.support.cases import float64
from tests.support.emulated_gpu import EmulatedGpu

T = np.linspace(0, 4, 40)


def decays(rates, t=None):
    t = float64(T) if t is None else t
    return mx.stack([exp(-rates[0] * t), exp(-rates[1] * t), mx.ones_like(t)], axis=1)


def signal(noise=0.01, seed=0):
    rng = np.random.default_rng(seed)
    return 3 * np.exp(-0.5 * T) - 2 * np.exp(-2.0 * T) + 0.5 + noise * rng.standard_normal(T.size)


START = float64([0.3, 3.0])
Y = float64(signal())


@pytest.fixture(scope="module")
def fitted():
    return varpro(decays, START, Y)


def full_problem(y, weights=None, l2=0.0, k=1):
    """SciPy's minimum over all parameters: alpha, linear (3, k), and the Jacobian there."""
    root = np.sqrt(np.ones(T.size) if weights is None else weights)[:, None]
    y = y.reshape(T.size, -1)
    pen = np.sqrt(np.broadcast_to(l2, (3, k)))

    def residual(b):
        phi = np.stack([np.exp(-b[0] * T), np.exp(-b[1] * T), np.ones_like(T)], axis=1)
        c = b[2:].reshape(3, k)
        return np.concatenate([(root * (phi @ c - y)).ravel(), (pen * c).ravel()])

    phi = np.exp(-np.outer(T, [0.5, 2.0, 0]))
    start = np.concatenate([[0.5, 2.0], np.linalg.lstsq(phi, y, rcond=None)[0].ravel()])
    tolerances = dict(xtol=1e-15, ftol=1e-15, gtol=1e-15)
    found = least_squares(residual, start, x_scale="jac", jac="3-point", **tolerances)
    return found.x[:2], found.x[2:].reshape(3, k), found.jac, 2 * found.cost


# --- The fit ---------------------------------------------------------------------------------------------------------


def test_the_fit_is_that_of_the_full_problem(fitted):
    alpha, linear, jacobian, cost = full_problem(signal())
    np.testing.assert_allclose(np.array(fitted.alpha), alpha, rtol=1e-6)
    np.testing.assert_allclose(np.array(fitted.linear), linear[:, 0], rtol=1e-6)
    np.testing.assert_allclose(fitted.rss.item(), cost, rtol=1e-9)
    variance = cost / (T.size - 5)
    covariance = variance * np.linalg.inv(jacobian.T @ jacobian)
    np.testing.assert_allclose(np.array(fitted.covariance), covariance, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(fitted.residual_std.item(), math.sqrt(variance), rtol=1e-9)


def test_what_the_result_says_of_itself(fitted):
    assert fitted.converged
    assert fitted.reason.split(":")[0] in ("step", "gradient", "rounding")
    assert fitted.rank == 3
    assert fitted.route == "Golub-Pereyra Jacobian by forward, vmap mode, basis in float64"
    assert fitted.evaluations.basis == fitted.steps + 1
    assert 1 <= fitted.evaluations.derivatives <= fitted.evaluations.basis
    assert "covariance" not in repr(fitted)
    with mx.stream(mx.cpu):
        phi = decays(fitted.alpha)
        np.testing.assert_allclose(np.array(fitted.residuals), np.array(Y - phi @ fitted.linear), atol=1e-13)
        linear = pinvnn.lstsq(phi, Y).solution
    np.testing.assert_allclose(np.array(fitted.linear), np.array(linear), rtol=1e-10)
    np.testing.assert_allclose(fitted.rss.item(), np.sum(np.array(fitted.residuals) ** 2), rtol=1e-10)
    errors = np.sqrt(np.diag(np.array(fitted.covariance)))
    np.testing.assert_allclose(np.array(fitted.standard_errors.alpha), errors[:2], rtol=1e-12)
    np.testing.assert_allclose(np.array(fitted.standard_errors.linear), errors[2:], rtol=1e-12)


def test_standard_errors_cover_the_truth():
    """Over 60 samples of noise the errors of the rates, in standard errors, have unit variance."""
    scores = []
    for seed in range(60):
        found = varpro(decays, START, float64(signal(seed=seed)))
        scores.append((np.array(found.alpha) - [0.5, 2.0]) / np.array(found.standard_errors.alpha))
    assert 0.75 < np.std(scores) < 1.3
    assert abs(np.mean(scores)) < 0.3


@pytest.mark.parametrize("l2", [0.0, 0.05, "per target"])
@pytest.mark.parametrize("weighted", [False, True])
def test_several_right_hand_sides_share_alpha(weighted, l2):
    rng = np.random.default_rng(3)
    y = np.stack([signal(seed=0), 2 * signal(seed=1) + np.exp(-2 * T), -signal(seed=2)], axis=1)
    l2 = np.array([0.1, 0.01, 0.03]) if isinstance(l2, str) else l2
    weights = rng.uniform(0.2, 3, T.size) if weighted else None
    found = varpro(decays, START, float64(y), weights=None if weights is None else float64(weights), l2=l2)
    alpha, linear, jacobian, cost = full_problem(y, weights, l2, k=3)
    np.testing.assert_allclose(np.array(found.alpha), alpha, rtol=1e-5)
    np.testing.assert_allclose(np.array(found.linear), linear, rtol=1e-4, atol=1e-5)
    penalty = np.sum(l2 * np.array(found.linear) ** 2)
    np.testing.assert_allclose(found.rss.item() + penalty, cost, rtol=1e-8)
    assert found.linear.shape == found.standard_errors.linear.shape == (3, 3)
    # Everything beside the variance of the residuals: the Jacobian of the penalised problem decides it.
    covariance = np.array(found.covariance) / found.residual_std.item() ** 2
    np.testing.assert_allclose(covariance, np.linalg.inv(jacobian.T @ jacobian), rtol=2e-3, atol=2e-3)


def test_l2_gives_the_ridge_solution_and_fewer_effective_parameters():
    found = varpro(decays, START, Y, l2=0.3)
    with mx.stream(mx.cpu):
        expected = pinvnn.ridge(decays(found.alpha), Y, 0.3)
        hat = decays(found.alpha) @ pinvnn.ridge(decays(found.alpha), mx.eye(T.size, dtype=mx.float64), 0.3)
        freedom = T.size - 2 - mx.trace(hat).item()
    np.testing.assert_allclose(np.array(found.linear), np.array(expected), rtol=1e-9)
    np.testing.assert_allclose(found.residual_std.item() ** 2 * freedom, found.rss.item(), rtol=1e-9)
    assert found.rank == 3


def test_weight_two_is_the_row_twice_and_weight_zero_is_no_row():
    counts = np.arange(T.size) % 3
    weighted = varpro(decays, START, Y, weights=float64(counts))
    t, y = float64(np.repeat(T, counts)), float64(np.repeat(np.array(Y), counts))
    repeated = varpro(decays, START, y, inputs=(t,))
    np.testing.assert_allclose(np.array(weighted.alpha), np.array(repeated.alpha), rtol=1e-9)
    np.testing.assert_allclose(np.array(weighted.linear), np.array(repeated.linear), rtol=1e-9)
    np.testing.assert_allclose(weighted.rss.item(), repeated.rss.item(), rtol=1e-10)
    assert weighted.residuals.shape == (T.size,)


@pytest.mark.parametrize("jacobian", ["full", "kaufman"])
def test_both_jacobians_find_the_same_fit(fitted, jacobian):
    found = varpro(decays, START, Y, jacobian=jacobian)
    np.testing.assert_allclose(np.array(found.alpha), np.array(fitted.alpha), rtol=1e-8)
    np.testing.assert_allclose(np.array(found.covariance), np.array(fitted.covariance), rtol=1e-6)


def test_float32_stays_float32_and_finds_the_fit():
    y, t = mx.array(signal().astype(np.float32)), mx.array(T.astype(np.float32))
    found = varpro(lambda a: decays(a, t), mx.array([0.3, 3.0]), y)
    assert found.converged, found.reason
    for array in (found.alpha, found.linear, found.rss, found.covariance, found.residuals, found.residual_std):
        assert array.dtype == mx.float32
    np.testing.assert_allclose(np.array(found.alpha), np.array(varpro(decays, START, Y).alpha), rtol=2e-2)
    assert found.rss.item() <= varpro(decays, START, Y).rss.item() * 1.0001


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.int32], ids=str)
def test_narrow_data_are_worked_on_in_float32(dtype):
    y = (10 * mx.array(signal().astype(np.float32))).astype(dtype)
    t = mx.array(T.astype(np.float32))
    found = varpro(lambda a: decays(a, t), mx.array([0.3, 3.0]).astype(mx.float16), y)
    assert found.alpha.dtype == found.linear.dtype == mx.float32
    assert found.rss.item() < 0.2 * T.size


@pytest.mark.usefixtures("on_cpu")
def test_a_rank_deficient_basis_has_the_shortest_linear_part_and_errors_of_what_is_determined(fitted):
    def twice(a):
        phi = decays(a)
        return mx.concatenate([phi, phi[:, :1]], axis=1)

    found = varpro(twice, START, Y)
    assert (found.rank, found.converged) == (3, True)
    np.testing.assert_allclose(found.linear[0].item(), found.linear[3].item(), rtol=1e-9)
    assert found.undetermined == ("linear[0]", "linear[3]")
    assert "dependent columns: the basis has rank 3 of 4" in found.reason
    errors, expected = np.array(found.standard_errors.linear), np.array(fitted.standard_errors.linear)
    assert np.isnan(errors[[0, 3]]).all()
    np.testing.assert_allclose(errors[[1, 2]], expected[[1, 2]], rtol=1e-6)
    alpha_errors = np.array(found.standard_errors.alpha)
    np.testing.assert_allclose(alpha_errors, np.array(fitted.standard_errors.alpha), rtol=1e-6)
    # The curve is determined although two of its terms are not; one without their sum's share is not.
    np.testing.assert_allclose(np.array(found.predict().standard_error), np.array(fitted.predict().standard_error))
    alone = found.predict(lambda a: twice(a) * float64([1.0, 1, 1, 0]))
    assert np.isnan(np.array(alone.standard_error)).all()


@pytest.mark.usefixtures("on_cpu")
def test_alpha_that_the_data_do_not_see_has_no_errors_and_spoils_no_others(fitted):
    found = varpro(lambda a: decays(a[:2]), float64([0.3, 3.0, 7.0]), Y)
    assert found.converged
    assert found.alpha[2].item() == 7
    assert found.undetermined == ("alpha[2]",)
    assert "undetermined parameter: alpha[2]" in found.reason
    errors = np.array(found.standard_errors.alpha)
    assert np.isnan(errors[2])
    np.testing.assert_allclose(errors[:2], np.array(fitted.standard_errors.alpha), rtol=1e-7)
    np.testing.assert_allclose(
        np.array(found.standard_errors.linear), np.array(fitted.standard_errors.linear), rtol=1e-7
    )
    covariance = np.array(found.covariance)
    assert np.isnan(covariance[2]).all() and np.isnan(covariance[:, 2]).all()
    assert np.isfinite(np.delete(np.delete(covariance, 2, 0), 2, 1)).all()
    np.testing.assert_allclose(np.array(found.predict().standard_error), np.array(fitted.predict().standard_error))


@pytest.mark.usefixtures("on_cpu")
def test_no_degrees_of_freedom_no_variance():
    found = varpro(decays, START, Y[:5], inputs=(float64(T[:5]),))
    assert math.isnan(found.residual_std.item())
    assert np.isnan(np.array(found.covariance)).all()


# --- Shapes of alpha, modules, bounds --------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_cpu")
def test_alpha_may_be_a_tree(fitted):
    tree = {"slow": START[0], "fast": (START[1:], {"shift": float64([[0.0]])})}

    def basis(a):
        assert isinstance(a["fast"], tuple)
        return decays([a["slow"] + 0 * a["fast"][1]["shift"][0, 0], a["fast"][0][0]])

    held = tuple({"fast": (float64(end), {"shift": float64(0.0)})} for end in (-np.inf, np.inf))
    found = varpro(basis, tree, Y, bounds=held)
    assert found.alpha["slow"].shape == ()
    assert found.alpha["fast"][0].shape == (1,)
    np.testing.assert_allclose(found.alpha["slow"].item(), fitted.alpha[0].item(), rtol=1e-8)
    errors = found.standard_errors.alpha
    np.testing.assert_allclose(errors["slow"].item(), fitted.standard_errors.alpha[0].item(), rtol=1e-6)
    assert errors["fast"][1]["shift"].item() == 0
    assert found.covariance.shape == (6, 6)
    np.testing.assert_allclose(np.array(found.covariance)[2], 0)


class Decays(nn.Module):
    def __init__(self, rates):
        super().__init__()
        self.rates = rates
        self.scale = mx.ones(1)
        self.freeze(keys=["scale"])

    def __call__(self, t):
        return decays(self.rates, t)


def test_a_module_may_hold_alpha(fitted):
    module = Decays(START)
    found = varpro(module, None, Y, inputs=(float64(T),))
    np.testing.assert_allclose(np.array(found.alpha["rates"]), np.array(fitted.alpha), rtol=1e-9)
    assert list(found.alpha) == ["rates"]
    np.testing.assert_array_equal(np.array(module.rates), np.array(START))
    module.update(found.alpha)
    again = varpro(module, None, Y, inputs=(float64(T),))
    assert again.steps <= 1


def test_a_module_may_be_a_function_of_alpha(fitted):
    class Function(nn.Module):
        def __call__(self, a):
            return decays(a)

    np.testing.assert_array_equal(np.array(varpro(Function(), START, Y).alpha), np.array(fitted.alpha))


@pytest.mark.parametrize(
    ("bounds", "alpha"),
    [
        ((0.6, None), [0.6, None]),
        ((None, float64([np.inf, 1.5])), [None, 1.5]),
        ((float64([0.1, 2.5]), 10), [None, 2.5]),
        ((float64([0.4, 0.0]), float64([0.4, 9.0])), [0.4, None]),
    ],
)
def test_bounds_are_kept_and_felt(bounds, alpha):
    start = float64([alpha[0] or 0.7, alpha[1] or 3.0])
    found = varpro(decays, start, Y, bounds=bounds)
    assert found.converged, found.reason
    for value, expected in zip(np.array(found.alpha), alpha, strict=True):
        assert expected is None or value == expected


def test_bounds_hold_in_float32():
    y, t = mx.array(signal().astype(np.float32)), mx.array(T.astype(np.float32))
    # 0.6 has no float32, and alpha must come to rest on the one beside it.
    found = varpro(lambda a: decays(a, t), mx.array([0.9, 3.0]), y, bounds=(0.6, float64([9.1, 2.9 + 1])))
    assert found.converged, found.reason
    assert found.alpha[0].item() == np.float32(0.6)


def test_everything_held_is_a_linear_fit():
    found = varpro(decays, START, Y, bounds=(START, START))
    assert found.converged and found.reason.startswith("bounds")
    np.testing.assert_array_equal(np.array(found.standard_errors.alpha), [0, 0])
    assert np.isfinite(np.array(found.standard_errors.linear)).all()


# --- Prediction ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [None, 2])
def test_the_band_is_that_of_the_full_covariance(columns):
    y = signal() if columns is None else np.stack([signal(), signal(seed=1) - np.exp(-T)], axis=1)
    found = varpro(decays, START, float64(y), inputs=(float64(T),))
    t = np.linspace(-1, 6, 9)
    mean, error = found.predict(inputs=(float64(t),))
    a, c = np.array(found.alpha), np.array(found.linear).reshape(3, -1)
    phi = np.stack([np.exp(-a[0] * t), np.exp(-a[1] * t), np.ones_like(t)], axis=1)
    np.testing.assert_allclose(np.array(mean), (phi @ c).reshape(mean.shape), rtol=1e-10)
    assert mean.shape == error.shape == (9, *y.shape[1:])
    k = c.shape[1]
    for i in range(k):
        gradient = np.zeros((t.size, 2 + 3 * k))
        gradient[:, :2] = -t[:, None] * phi[:, :2] * c[:2, i]
        gradient[:, 2 + i :: k] = phi
        expected = np.sqrt(np.einsum("mi,ij,mj->m", gradient, np.array(found.covariance), gradient))
        np.testing.assert_allclose(np.array(error).reshape(9, k)[:, i], expected, rtol=1e-7)


@pytest.mark.usefixtures("on_cpu")
def test_prediction_at_the_data_by_default_and_with_another_basis(fitted):
    mean, error = fitted.predict()
    np.testing.assert_allclose(np.array(mean + 0), np.array(Y) - np.array(fitted.residuals), atol=1e-12)
    other, _ = fitted.predict(lambda a: decays(a)[::2])
    np.testing.assert_allclose(np.array(other), np.array(mean)[::2], rtol=1e-12)
    module = varpro(Decays(START), None, Y, inputs=(float64(T),))
    np.testing.assert_allclose(np.array(module.predict()[1]), np.array(error), rtol=1e-6)


# --- The account of a fit --------------------------------------------------------------------------------------------


def test_the_callback_sees_steps_and_may_stop():
    steps = []
    found = varpro(decays, START, Y, callback=steps.append)
    assert len(steps) == found.steps
    assert isinstance(steps[0], VarProStep)
    np.testing.assert_allclose(steps[-1].objective, found.rss.item(), rtol=1e-10)
    np.testing.assert_array_equal(np.array(steps[-1].alpha), np.array(found.alpha))
    stopped = varpro(decays, START, Y, callback=lambda step: step.step == 2)
    assert (stopped.steps, stopped.converged) == (2, False)
    assert stopped.reason.startswith("stopped")


def test_nan_at_trial_points_shrinks_the_step():
    trials = []

    def basis(a):
        return mx.where(a[0] < 0.2, mx.array(float("nan"), mx.float64), decays(a))

    found = varpro(basis, float64([2.5, 4.0]), Y, callback=trials.append)
    assert found.converged, found.reason
    assert any(math.isinf(step.trial) for step in trials)
    np.testing.assert_allclose(np.array(found.alpha), np.array(varpro(decays, START, Y).alpha), rtol=1e-6)


def test_a_basis_too_large_to_be_factored_shrinks_the_step():
    trials = []

    def basis(a):
        return mx.where(a[0] < 0.2, mx.array(1e300, mx.float64), 1.0) * decays(a)

    found = varpro(basis, float64([2.5, 4.0]), Y, callback=trials.append)
    assert found.converged, found.reason
    np.testing.assert_allclose(np.array(found.alpha), np.array(varpro(decays, START, Y).alpha), rtol=1e-6)


def test_steps_may_run_out():
    found = varpro(decays, START, Y, max_steps=1)
    assert (found.steps, found.converged) == (1, False)
    assert found.reason.startswith("max_steps")
    assert np.isfinite(np.array(found.covariance)).all()


def test_an_exact_fit_says_so():
    found = varpro(decays, START, float64(signal(noise=0)))
    assert found.converged
    np.testing.assert_allclose(np.array(found.alpha), [0.5, 2.0], rtol=1e-10)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
def test_nothing_in_float64_lands_on_a_default_gpu(dtype, monkeypatch):
    with mx.stream(mx.cpu):
        t, y, start = float64(T).astype(dtype), Y.astype(dtype), START.astype(dtype)
        mx.eval(t, y, start)
    with monkeypatch.context() as patches:
        EmulatedGpu(patches)
        found = varpro(lambda a, t: decays(a, t), start, y, weights=t + 1 if dtype == mx.float32 else None, inputs=(t,))
        found.predict(inputs=(t,))
        _ = found.covariance
    assert found.alpha.dtype == dtype


# --- What is refused -------------------------------------------------------------------------------------------------

ONE = float64([0.3])
BAD = {
    "y no array": (dict(y=signal()), TypeError, "y must be an mx.array, but got ndarray"),
    "y complex": (dict(y=mx.zeros(40, mx.complex64)), TypeError, "must be real, but got complex64"),
    "y with three dimensions": (dict(y=mx.zeros((2, 2, 2))), ValueError, r"y must have shape \(m,\) or \(m, k\)"),
    "y empty": (dict(y=mx.zeros((0,))), ValueError, r"hold data, but got \(0,\)"),
    "y with NaN": (dict(y=mx.where(mx.arange(40) == 3, float("nan"), mx.zeros(40))), ValueError, "y must be finite"),
    "alpha a list of numbers": (dict(alpha=[0.1, 0.2]), TypeError, "alpha must be an array or a tree of arrays"),
    "alpha empty": (dict(alpha=mx.zeros((0,))), ValueError, "alpha must hold a parameter, but got none"),
    "alpha with NaN": (dict(alpha=mx.array([float("nan"), 1.0])), ValueError, "alpha must be finite"),
    "no alpha and no module": (dict(alpha=None), TypeError, "basis must be an nn.Module where alpha is None"),
    "weights of another length": (dict(weights=mx.ones(3)), ValueError, r"weights must have shape \(40,\)"),
    "negative weight": (dict(weights=-np.ones(40)), ValueError, "weights must be non-negative, but got -1.0"),
    "infinite weight": (dict(weights=np.full(40, np.inf)), ValueError, "weights must be finite"),
    "negative l2": (dict(l2=-1.0), ValueError, "l2 must be non-negative, but got -1.0"),
    "l2 of another shape": (dict(l2=mx.ones(2)), ValueError, r"l2 must broadcast against the linear parameters \(3,\)"),
    "l2 of NaN": (dict(l2=float("nan")), ValueError, "l2 must be finite"),
    "bounds no pair": (dict(bounds=1.0), ValueError, r"bounds must be a pair \(lower, upper\)"),
    "bounds crossed": (dict(bounds=(1.0, 0.0)), ValueError, "lower bounds must not exceed upper ones, but got 1.0 and"),
    "bounds of NaN": (dict(bounds=(float("nan"), None)), ValueError, "lower bounds must not exceed upper ones"),
    "bounds of another shape": (dict(bounds=(mx.zeros(3), None)), ValueError, "bounds must broadcast against alpha"),
    "bounds of another tree": (dict(bounds=({"a": mx.zeros(2)}, None)), ValueError, "the leaves of alpha"),
    "alpha outside": (dict(bounds=(None, 1.0)), ValueError, r"alpha must lie within its bounds, but got 3.0 outside"),
    "basis no array": (dict(basis=lambda a: 1.0), TypeError, "basis must return a real mx.array, but got float"),
    "basis a vector": (dict(basis=lambda a: mx.ones(40)), ValueError, r"basis must return shape \(40, n\)"),
    "basis with other rows": (dict(basis=lambda a: decays(a)[1:]), ValueError, r"but got \(39, 3\)"),
    "basis without columns": (dict(basis=lambda a: decays(a)[:, :0]), ValueError, "at least one column"),
    "basis of zeros": (dict(basis=lambda a: 0 * decays(a)), ValueError, "must not be zero .* but got rank 0"),
    "basis of NaN": (dict(basis=lambda a: decays(a) + np.nan), ValueError, "basis must be finite at the start"),
    "too few data": (
        dict(y=mx.ones(4), inputs=(mx.arange(4.0),)),
        ValueError,
        "the data must not be fewer than the parameters, but got 4 of positive weight for 3 linear and 2 nonlinear",
    ),
    "too few of positive weight": (
        dict(weights=(np.arange(40) < 4) * 1.0),
        ValueError,
        "but got 4 of positive weight",
    ),
    "jacobian": (dict(jacobian="half"), ValueError, "jacobian must be 'full' or 'kaufman', but got 'half'"),
    "tol": (dict(tol=0.0), ValueError, "max_steps must be >= 0 and tol > 0, but got 200 and 0.0"),
    "max_steps": (dict(max_steps=-1), ValueError, "max_steps must be >= 0 and tol > 0, but got -1 and None"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    options, error, message = BAD[name]
    with mx.stream(mx.cpu), pytest.raises(error, match=rf"\[pinvnn\.varpro\] .*{message}.*\. [A-Z]"):
        varpro(**(dict(basis=decays, alpha=START, y=Y) | options))


@pytest.mark.usefixtures("on_cpu")
def test_fewer_data_than_parameters_are_enough_with_l2():
    found = varpro(decays, START, Y[:4], inputs=(float64(T[:4]),), l2=0.1)
    assert np.isfinite(np.array(found.linear)).all()


def test_an_error_in_the_basis_is_the_caller_s_to_see():
    def broken(a):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        varpro(broken, START, Y)


def test_a_module_is_as_it_was_after_an_error():
    module = Decays(START)
    module.rates = START
    with pytest.raises(ValueError, match="basis must return shape"):
        varpro(module, None, Y, inputs=(float64(T[1:]),))
    np.testing.assert_array_equal(np.array(module.rates), np.array(START))
