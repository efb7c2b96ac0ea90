"""Linear parameters within bounds: the least-squares core, the Jacobian on the active set, fits against SciPy."""

import mlx.core as mx
import numpy as np
import pytest
from scipy.optimize import least_squares, lsq_linear, nnls

from pinvnn._factor import bounded_free_set
from pinvnn.varpro import exp, varpro
from pinvnn.varpro._projection import differentiate, project
from tests.support.cases import float64
from tests.support.nist_nonlinear import NAMED, fit, full_problem_within

# --- The core --------------------------------------------------------------------------------------------------------

SHAPES = {"tall": (12, 5), "square": (6, 6), "wide": (4, 8), "one column": (5, 1), "collinear": (20, 6)}


def problem(shape, seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(SHAPES[shape])
    if shape == "collinear":
        a[:, 1:] = a[:, :1] + 1e-3 * a[:, 1:]
    a /= np.linalg.norm(a, axis=0)
    lower, upper = rng.uniform(-1, 0.3, a.shape[1]), rng.uniform(0.3, 1, a.shape[1])
    lower[rng.random(a.shape[1]) < 0.3], upper[rng.random(a.shape[1]) < 0.3] = -np.inf, np.inf
    return a, 2 * rng.standard_normal(a.shape[0]), lower, upper


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("shape", SHAPES)
def test_bounded_least_squares_is_scipy_s(shape, seed):
    a, b, lower, upper = problem(shape, seed)
    free, c = bounded_free_set(a, b, lower, upper)
    theirs = lsq_linear(a, b, (lower, upper), method="bvls", tol=1e-14)
    assert np.sum((a @ c - b) ** 2) <= 2 * theirs.cost * (1 + 1e-9) + 1e-20
    assert ((c >= lower) & (c <= upper)).all()
    assert ((c == lower) | (c == upper))[~free].all()
    # The conditions of Karush, Kuhn and Tucker.
    gradient = a.T @ (a @ c - b)
    np.testing.assert_allclose(gradient[free], 0, atol=1e-9)
    assert (gradient[~free & (c == lower)] >= -1e-9).all()
    assert (gradient[~free & (c == upper)] <= 1e-9).all()


@pytest.mark.parametrize("seed", range(8))
def test_non_negative_least_squares_is_scipy_s(seed):
    a, b, lower, _ = problem("tall", 100 + seed)
    _, c = bounded_free_set(a, b, np.zeros_like(lower), np.full_like(lower, np.inf))
    np.testing.assert_allclose(c, nnls(a, b)[0], atol=1e-12)


def test_equal_bounds_hold_a_variable():
    a, b, lower, upper = problem("tall", 3)
    lower[2] = upper[2] = 0.25
    free, c = bounded_free_set(a, b, lower, upper)
    assert c[2] == 0.25 and not free[2]


# --- The projected residual on the active set ------------------------------------------------------------------------

T = np.linspace(0, 4, 40)


def phi_of(a):
    return np.stack([np.exp(-a[0] * T), np.exp(-a[1] * T), np.ones_like(T), T], axis=1)


def tangents_of(a):
    zero = np.zeros((T.size, 3))
    return [
        np.hstack([-T[:, None] * np.exp(-a[0] * T)[:, None], zero]),
        np.stack([0 * T, -T * np.exp(-a[1] * T), 0 * T, 0 * T], axis=1),
    ]


def signals(seed=0):
    rng = np.random.default_rng(seed)
    y = np.stack([3 * np.exp(-0.5 * T) - 2 * np.exp(-2.0 * T) + 0.5, np.exp(-0.5 * T) + np.exp(-2 * T) - 0.1], axis=1)
    return y + 0.01 * rng.standard_normal(y.shape)


@pytest.mark.parametrize("penalty", [None, np.full((4, 2), 0.2)], ids=["no penalty", "l2"])
@pytest.mark.parametrize("ends", [(0.0, np.inf), (-1.0, 0.9), (-np.inf, 1.2)], ids=str)
def test_the_jacobian_on_the_active_set_is_that_of_differences(ends, penalty):
    a, y = np.array([0.6, 1.7]), signals()
    bounds = tuple(np.full((4, 2), end) for end in ends)

    def at(a):
        return project(phi_of(a), y, penalty, mx.float64, bounds)

    found = at(a)
    assert len(found.factors) == 2  # One for each right-hand side: not the same parameters are on bounds.
    assert any(not f.free.all() for f in found.factors)
    d = differentiate(found, tangents_of(a), 2, True)
    h = 1e-6
    for e, column in zip(np.eye(2), d.jacobian.T, strict=True):
        difference = at(a + h * e).residual - at(a - h * e).residual
        np.testing.assert_allclose(column, difference.ravel() / (2 * h), atol=1e-8)


# --- Fits ------------------------------------------------------------------------------------------------------------


def basis(a):
    t = float64(T)
    return mx.stack([exp(-a[0] * t), exp(-a[1] * t), mx.ones_like(t), t], axis=1)


@pytest.mark.parametrize("ends", [(-1.5, None), (None, 2.7), (-1.2, 2.9), (float64([[0], [-9], [0], [0]]), 3)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_fits_within_bounds_are_scipy_s_on_the_full_problem(ends, weighted):
    y = signals()
    weights = np.random.default_rng(1).uniform(0.3, 2, T.size) if weighted else None
    trials = []
    found = varpro(basis, float64([0.3, 3.0]), float64(y), weights=weights, linear_bounds=ends, callback=trials.append)
    assert found.converged, found.reason
    box = [np.full(10, -np.inf), np.full(10, np.inf)]
    for i, end in enumerate(ends):
        if end is not None:
            box[i][2:] = np.broadcast_to(np.array(end), (4, 2)).ravel()
    linear = np.array(found.linear)
    assert ((linear.ravel() >= box[0][2:]) & (linear.ravel() <= box[1][2:])).all()
    root = np.ones((T.size, 1)) if weights is None else np.sqrt(weights)[:, None]

    def residual(b):
        return (root * (phi_of(b[:2]) @ b[2:].reshape(4, 2) - y)).ravel()

    best = np.inf
    for start in ([0.3, 3.0], [0.5, 2.0], np.array(found.alpha)):
        b = np.clip(np.concatenate([start, np.linalg.lstsq(phi_of(start), y, rcond=None)[0].ravel()]), *box)
        tolerances = dict(xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=3000)
        theirs = least_squares(residual, np.clip(b, box[0] + 1e-10, box[1] - 1e-10), bounds=box, **tolerances)
        best = min(best, 2 * theirs.cost)
    assert found.rss.item() <= best * (1 + 1e-6)


@pytest.mark.usefixtures("on_cpu")
def test_a_linear_parameter_on_its_bound_has_no_error_and_its_alpha_is_named():
    """Non-negative amplitudes of a sum with one term too many: its rate has no influence."""
    y = 2 * np.exp(-0.5 * T) - 0.3 * np.exp(-2 * T) + 0.5 + 0.01 * np.random.default_rng(0).standard_normal(T.size)

    def with_negative(a):
        return basis(a)[:, :3]

    free = varpro(with_negative, float64([0.4, 3.0]), float64(y))
    assert free.linear[1].item() < 0
    found = varpro(with_negative, float64([0.4, 3.0]), float64(y), linear_bounds=(0, None))
    alone = varpro(lambda a: basis([a[0], a[0]])[:, ::2][:, :2], float64([0.4]), float64(y))
    assert found.linear[1].item() == 0
    assert found.undetermined == ("alpha[1]",)
    np.testing.assert_allclose(found.rss.item(), alone.rss.item(), rtol=1e-8)
    np.testing.assert_allclose(found.alpha[0].item(), alone.alpha.item(), rtol=1e-6)
    np.testing.assert_allclose(found.standard_errors.alpha[0].item(), alone.standard_errors.alpha.item(), rtol=1e-5)
    errors = np.array(found.standard_errors.linear)
    np.testing.assert_allclose(errors[[0, 2]], np.array(alone.standard_errors.linear), rtol=1e-5)
    assert errors[1] == 0


def test_bounds_that_do_not_bind_change_nothing():
    y = float64(signals())
    free, bound = (varpro(basis, float64([0.3, 3.0]), y, linear_bounds=b) for b in (None, (-100, 100)))
    np.testing.assert_array_equal(np.array(free.alpha), np.array(bound.alpha))
    np.testing.assert_array_equal(np.array(free.covariance), np.array(bound.covariance))


def test_lanczos3_from_start_1_finds_a_lower_minimum_within_the_bounds():
    # The terms are in another order, so that another one is the bounded one. SciPy goes there from start 1, too.
    problem = next(p for p in NAMED if p.name == "Lanczos3")
    data = problem.read()
    size = np.abs(data.certified[[i for i in range(len(data.certified)) if i not in problem.nonlinear]])
    upper = np.where(size == size.max(), 0.97, 10) * size
    found = fit(problem, 1, linear_bounds=(-upper, upper)).result
    assert found.converged and found.rss.item() == pytest.approx(data.rss, rel=1e-4)


def test_mgh17_from_start_1_needs_another_start():
    """One start ends in another minimum, as SciPy does in three of four scalings."""
    problem = next(p for p in NAMED if p.name == "MGH17")
    data = problem.read()
    linear = [i for i in range(5) if i not in problem.nonlinear]
    size = np.abs(data.certified[linear])
    upper = np.where(size == size.max(), 0.97, 10) * size
    alone = fit(problem, 1, linear_bounds=(-upper, upper)).result
    assert alone.converged and alone.rss.item() > 0.03
    starts = float64(np.outer([0.3, 0.1, 0.03, 0.01], [1.0, 2.0]))
    found = fit(problem, 1, linear_bounds=(-upper, upper), starts=starts).result
    assert found.converged and found.rss.item() <= full_problem_within(problem, linear, upper) * (1 + 1e-6)


@pytest.mark.parametrize("problem", [p for p in NAMED if not p.split], ids=lambda p: p.name)
def test_nist_s_problems_within_bounds(problem):
    """The largest linear parameter at most 0.97 of its certified value, against SciPy on the full problem."""
    data = problem.read()
    linear = [i for i in range(len(data.certified)) if i not in problem.nonlinear]
    size = np.abs(data.certified[linear])
    upper = np.where(size == size.max(), 0.97 * size, 10 * size)
    found = fit(problem, 2, linear_bounds=(-upper, upper)).result
    assert (np.abs(np.array(found.linear)) <= upper).all()
    assert (np.abs(np.array(found.linear)) == upper).any()
    assert found.rss.item() <= full_problem_within(problem, linear, upper) * (1 + 1e-6)
