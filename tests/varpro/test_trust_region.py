"""The trust-region solver by itself: its model, its steps, its bounds and every reason to end."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize

from pinvnn.varpro._problem import Linearisation
from pinvnn.varpro._quadratic_model import QuadraticModel, in_ball
from pinvnn.varpro._trust_region import REASONS, TrustRegionSearch

FREE = (-np.inf, np.inf)


@dataclass
class Point:
    x: np.ndarray
    f: np.ndarray
    cancellation: float = 0.0
    deficiency: int = 0


class Problem:
    """f and its Jacobian, counted."""

    def __init__(self, f, j):
        self.f, self.j, self.evaluations, self.jacobians = f, j, 0, 0

    def __call__(self, x):
        self.evaluations += 1
        return Point(x, np.asarray(self.f(x), float), deficiency=self.deficiency(x))

    def deficiency(self, x):
        return 0

    def hidden(self, x):
        return 0

    def jacobian(self, point):
        self.jacobians += 1
        return np.asarray(self.j(point.x), float)

    def linearise(self, point):
        return Linearisation(
            self.jacobian(point), np.full(point.x.size, np.inf), np.zeros(point.x.size, bool), self.hidden(point.x)
        )

    def search(self, x, lower=-np.inf, upper=np.inf, max_steps=100, callback=None, tol=1e-10, **options):
        x = np.asarray(x, float)
        ends = np.broadcast_to(lower, x.shape).astype(float), np.broadcast_to(upper, x.shape).astype(float)
        settings = dict(scale=1.0, eps=2.0**-52, tol=tol) | options
        return TrustRegionSearch(self, self.linearise, *ends, **settings).run(self(x), max_steps, callback)


def rosenbrock():
    return Problem(lambda x: [10 * (x[1] - x[0] ** 2), 1 - x[0]], lambda x: [[-20 * x[0], 10], [-1, 0]])


def line(target, matrix=None):
    matrix = np.eye(len(target)) if matrix is None else np.asarray(matrix, float)
    return Problem(lambda x: matrix @ (x - target), lambda x: matrix)


def large_residual():
    """Freudenstein and Roth from More, Garbow and Hillstrom: a local minimum of 48.98 where Gauss-Newton is slow."""
    return Problem(
        lambda x: [-13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1], -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1]],
        lambda x: [[1, 10 * x[1] - 3 * x[1] ** 2 - 2], [1, 3 * x[1] ** 2 + 2 * x[1] - 14]],
    )


# --- The model and its minimum --------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [1e-6, 0.1, 0.9, 3.0, 100.0])
def test_the_step_in_a_ball_minimises_the_model(radius):
    rng = np.random.default_rng(0)
    r, qtf = rng.standard_normal((3, 3)), rng.standard_normal(3)
    step, limited = QuadraticModel(r, qtf).minimum(np.full(3, -np.inf), np.full(3, np.inf), np.ones(3, bool), radius)
    newton = -np.linalg.solve(r, qtf)
    assert limited == (np.linalg.norm(newton) > radius)
    assert np.linalg.norm(step) <= radius * (1 + 1e-12)
    best = minimize(
        lambda p: 0.5 * np.sum((r @ p + qtf) ** 2),
        step * 0.5,
        constraints={"type": "ineq", "fun": lambda p: 1 - np.sum(p**2) / radius**2},
        tol=1e-14,
    )
    assert 0.5 * np.sum((r @ step + qtf) ** 2) <= best.fun * (1 + 1e-3)


def test_a_step_in_a_ball_lies_on_its_edge_to_a_thousandth():
    h, b = np.array([1e4, 1.0, 1e-6]), np.array([1.0, -2.0, 0.5])
    for radius in 10.0 ** np.arange(-8, 5):
        step, limited = in_ball(h, b, np.eye(3), radius)
        assert limited
        assert 0.999 * radius <= np.linalg.norm(step) <= radius * (1 + 1e-12)


@pytest.mark.parametrize("second", [None, np.array([[2.0, 0.3], [0.3, 1.0]])], ids=["gauss-newton", "second order"])
def test_the_predicted_reduction_is_that_of_the_model(second):
    rng = np.random.default_rng(1)
    r, qtf, step = rng.standard_normal((2, 2)), rng.standard_normal(2), rng.standard_normal(2)
    extra = 0 if second is None else step @ second @ step
    expected = 0.5 * (qtf @ qtf - np.sum((r @ step + qtf) ** 2) - extra)
    np.testing.assert_allclose(QuadraticModel(r, qtf, second).decrease(step), expected, rtol=1e-12)


def test_a_deficient_model_takes_the_shortest_step():
    r = np.array([[1.0, 1.0], [0.0, 0.0]])
    step, _ = QuadraticModel(r, np.array([2.0, 0.0])).minimum(
        np.full(2, -np.inf), np.full(2, np.inf), np.ones(2, bool), 10.0
    )
    np.testing.assert_allclose(step, [-1, -1], rtol=1e-12)


def test_bounds_hold_some_variables_and_free_the_others():
    r, qtf = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([-3.0, -1.0])
    step, limited = QuadraticModel(r, qtf).minimum(np.full(2, -9.0), np.array([0.5, 9.0]), np.ones(2, bool), np.inf)
    # With the first at 0.5 the rest is min (y - 2.5)^2 + (y - 1)^2.
    np.testing.assert_allclose(step, [0.5, 1.75], rtol=1e-12)
    assert limited
    # A second-order term x y adds 0.5 y to that.
    second = QuadraticModel(r, qtf, np.array([[0.0, 1.0], [1.0, 0.0]]))
    step, _ = second.minimum(np.full(2, -9.0), np.array([0.5, 9.0]), np.ones(2, bool), np.inf)
    np.testing.assert_allclose(step, [0.5, 1.5], rtol=1e-12)


# --- The search -----------------------------------------------------------------------------------------------------


def test_rosenbrock():
    found = rosenbrock().search([-1.2, 1.0])
    np.testing.assert_allclose(found.point.x, [1, 1], rtol=1e-8)
    assert found.converged


def test_the_path_does_not_depend_on_units():
    units = np.array([1e6, 1e-6])
    scaled = Problem(lambda u: rosenbrock().f(u / units), lambda u: np.asarray(rosenbrock().j(u / units)) / units)
    one, other = rosenbrock().search([-1.2, 1.0]), scaled.search(np.array([-1.2, 1.0]) * units)
    np.testing.assert_allclose(other.point.x / units, one.point.x, rtol=1e-8)
    assert one.steps == other.steps


def test_the_secant_term_makes_the_end_superlinear(monkeypatch):
    fast = large_residual().search([15.0, -2.0], scale=40.0)
    monkeypatch.setattr("pinvnn.varpro._local.SECANT_LIMIT", 0)
    slow = large_residual().search([15.0, -2.0], scale=40.0)
    assert fast.converged, fast.reason
    for found in (fast, slow):
        np.testing.assert_allclose(found.point.x, [11.41277900, -0.89680525], rtol=1e-6)
        np.testing.assert_allclose(found.point.f @ found.point.f, 48.98425368, rtol=1e-9)
    assert fast.steps < slow.steps / 2


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (FREE, FREE),
        ((-2, 0.5), (-2, 2)),
        ((-2, 2), (-2, 0.3)),
        ((-2, 0.5), (-2, 0.1)),
        ((-0.5, 2), (1.5, 3)),
        ((0.2, 0.2), (-1, 2)),
    ],
)
def test_bounded_minima_are_those_of_scipy(lower, upper):
    ends = np.array([lower, upper], float).T
    start = np.clip([-0.4, 1.7], *ends)
    problem = rosenbrock()
    found = problem.search(start, *ends)
    assert found.converged, found.reason
    assert (found.point.x >= ends[0]).all() and (found.point.x <= ends[1]).all()
    wide = ends + np.array([[0], [1e-14]]) * (ends[0] == ends[1])  # SciPy wants room between equal bounds.
    theirs = least_squares(problem.f, np.clip(start, *wide), problem.j, wide, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    np.testing.assert_allclose(found.point.f @ found.point.f, 2 * theirs.cost, rtol=1e-6, atol=1e-18)


@pytest.mark.parametrize("seed", range(40))
def test_bounded_searches_end_where_the_gradient_points_out_of_the_box(seed):
    rng = np.random.default_rng(seed)
    p = rng.integers(1, 6)
    a = rng.standard_normal((p + 3, p)) @ np.diag(10.0 ** rng.uniform(-2, 2, p))
    b, shape = 3 * rng.standard_normal(p + 3), seed % 2  # Half of them are linear.
    lower = rng.uniform(-2, 0, p)
    upper = lower + rng.uniform(0, 2, p)
    problem = Problem(
        lambda x: a @ (shape * np.tanh(3 * x) + x) - b, lambda x: a * (3 * shape / np.cosh(3 * x) ** 2 + 1)
    )
    found = problem.search(rng.uniform(lower, upper), lower, upper, scale=np.linalg.norm(b))
    assert found.converged, found.reason
    x, f, j = found.point.x, found.point.f, problem.j(found.point.x)
    assert ((x >= lower) & (x <= upper)).all()
    slope = (j.T @ f) / (np.linalg.norm(j, axis=0) * np.linalg.norm(f))
    free = ~((x == lower) & (slope >= 0)) & ~((x == upper) & (slope <= 0))
    np.testing.assert_allclose(slope[free], 0, atol=1e-6)


def test_a_correlated_problem_slides_along_its_bound():
    matrix = [[1, 0.99], [0.99, 1]]
    found = line(np.array([2.0, -1.0]), matrix).search([0.0, 0.0], [-5, 0], [5, 5])
    x = (np.array(matrix) @ np.array([2.0, -1.0])) @ np.array(matrix)[:, 0] / np.sum(np.array(matrix)[:, 0] ** 2)
    np.testing.assert_allclose(found.point.x, [x, 0], atol=1e-8)


def test_points_that_are_not_finite_shrink_the_step():
    def logarithm(x):
        return [np.log(x[0]) - 3 if x[0] > 1 else np.nan]

    problem = Problem(logarithm, lambda x: [[1 / x[0]]])
    steps = []
    found = problem.search([1e3], callback=steps.append)
    np.testing.assert_allclose(found.point.x, np.exp(3), rtol=1e-9)
    refused = [step for step in steps if not np.isfinite(step.trial)]
    assert refused and not any(step.accepted for step in refused)


def ended_by(keyword):
    """A search that ends for the reason."""
    away = [3.0, 4.0]
    if keyword == "step":
        return large_residual().search([20.0, 0.0], tol=1e-4)
    if keyword == "gradient":
        return Problem(lambda x: [x[0] - 1, 1.0], lambda x: [[1], [0]]).search([5.0])
    if keyword == "exact":
        return line(np.zeros(2)).search(away)
    if keyword == "rounding":  # f cannot be told from a constant, and its derivative is not zero.
        return Problem(lambda x: [1.0, 1e-9], lambda x: [[0.0], [1e-9]]).search([1.0], tol=1e-300)
    if keyword == "bounds":
        return line(np.array([9.0, 9.0])).search([1.0, 1.0], 0.0, 1.0)
    if keyword == "flat":
        return Problem(lambda x: [1.0], lambda x: [[0.0, 0.0]]).search(away)
    if keyword == "derivative":
        return Problem(lambda x: [1.0], lambda x: [[np.nan]]).search([1.0])
    if keyword == "not finite":
        return Problem(lambda x: [1.0 if x[0] == 1 else np.nan], lambda x: [[1.0]]).search([1.0])
    if keyword == "dependent":  # At every other point columns are dependent.
        problem = line(np.zeros(1))
        away_from = Problem(problem.f, problem.j)
        away_from.deficiency = lambda x: int(x[0] != 3.0)
        return away_from.search([3.0])
    if keyword == "undetermined":
        problem = large_residual()
        problem.hidden = lambda x: int(x[0] < 12)
        return problem.search([15.0, -2.0], tol=1e-6)
    if keyword == "noise":  # The value jumps by much more than the derivative predicts.
        return Problem(lambda x: [x[0] + 1e-6 * np.sin(1e20 * x[0])], lambda x: [[1.0]]).search([1.0], tol=1e-12)
    if keyword == "stalled":  # A derivative of the wrong sign.
        return Problem(lambda x: [x[0]], lambda x: [[-1.0]]).search([1.0])
    if keyword == "max_steps":
        return rosenbrock().search([-1.2, 1.0], max_steps=3)
    return rosenbrock().search([-1.2, 1.0], callback=lambda step: step.step == 3)


@pytest.mark.parametrize("keyword", REASONS)
def test_every_search_ends_with_its_reason(keyword):
    found = ended_by(keyword)
    assert found.reason.startswith(f"{keyword}: ")
    assert found.converged == REASONS[keyword][0]
    assert np.isfinite(found.point.f).all()


def test_the_callback_sees_every_step():
    steps = []
    problem = rosenbrock()
    found = problem.search([-1.2, 1.0], callback=steps.append)
    assert [step.step for step in steps] == list(range(1, found.steps + 1))
    assert problem.evaluations == found.steps + 1
    assert problem.jacobians <= 1 + sum(step.accepted for step in steps)
    objectives = [step.objective for step in steps]
    assert all(later <= earlier for earlier, later in zip(objectives, objectives[1:], strict=False))
    np.testing.assert_allclose(objectives[-1], found.point.f @ found.point.f, atol=1e-20)
    assert any(not step.accepted and step.trial > step.objective for step in steps)


def test_no_steps_is_the_start():
    found = rosenbrock().search([-1.2, 1.0], max_steps=0)
    assert (found.steps, found.converged) == (0, False)
    np.testing.assert_array_equal(found.point.x, [-1.2, 1.0])
