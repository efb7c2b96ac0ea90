"""The projected residual and its Jacobian, against differences, the library's own gradients and the full problem."""

import mlx.core as mx
import numpy as np
import pytest

import pinvnn
from pinvnn.testing import gradcheck
from pinvnn.varpro import exp, sin
from pinvnn.varpro._basis import Basis, to_numpy
from pinvnn.varpro._projection import differentiate, project
from tests.support.cases import float64

pytestmark = pytest.mark.usefixtures("on_cpu")

M, N, P = 12, 3, 4


T = np.linspace(0.1, 2, M)
ALPHA = np.array([0.5, 1.5, 2.0, 0.3])


def basis(a):
    t = mx.array(T, dtype=mx.float64)
    return mx.stack([exp(-a[0] * t), sin(a[1] * t) * t ** a[3], exp(-a[2] * t * a[3])], axis=1)


def twice(a):
    """A basis of rank 2 with three columns, at every alpha."""
    phi = basis(a)
    return mx.concatenate([phi[:, :2], phi[:, :1] - 2 * phi[:, 1:2]], axis=1)


def rows(k, seed=0):
    return np.random.default_rng(seed).standard_normal((M, k))


SETTINGS = {
    "one right-hand side": dict(k=1),
    "three right-hand sides": dict(k=3),
    "weights": dict(k=2, weights=True),
    "l2": dict(k=2, l2=np.full((N, 2), 0.3)),
    "l2 per feature": dict(k=2, l2=np.array([[0.1, 0.1], [0.0, 0.0], [2.0, 2.0]])),
    "l2 per target": dict(k=3, l2=np.array([[0.1, 0.5, 0.1]] * 3)),
    "l2 and weights": dict(k=2, l2=np.array([[0.1, 0.2], [0.3, 0.1], [1.0, 2.0]]), weights=True),
    "rank deficient": dict(k=2, fn=twice),
}


class Case:
    def __init__(self, k, weights=False, l2=None, fn=basis, y=None):
        self.basis = Basis(fn, float64(ALPHA), (), mx.float64)
        self.y = rows(k) if y is None else y
        self.weights = np.random.default_rng(1).uniform(0.2, 2, M) if weights else np.ones(M)
        self.root = np.sqrt(self.weights)[:, None]
        self.l2 = l2

    def project(self, x):
        penalty = None if self.l2 is None else np.sqrt(self.l2)
        return project(self.root * to_numpy(self.basis(x)), self.root * self.y, penalty, mx.float64)

    def differentiate(self, x, full=True):
        tangents = (self.root * d for d in self.basis.tangents(x, M * N))
        return differentiate(self.project(x), tangents, P, full)


@pytest.fixture(params=SETTINGS)
def case(request):
    return Case(**SETTINGS[request.param])


def test_the_linear_parameters_are_those_of_the_library(case):
    phi, y, w = basis_at(case), float64(case.y), float64(case.weights)
    if case.l2 is None:
        # In units in which every column has length 1: that is where the solution is the shortest, if there are many.
        length = mx.sqrt(mx.sum(w[:, None] * phi * phi, axis=0))
        expected = pinvnn.lstsq(phi / length, y, weights=w).solution / length[:, None]
    else:
        expected = pinvnn.ridge(phi, y, float64(case.l2), weights=w)
    np.testing.assert_allclose(case.project(ALPHA).linear, np.array(expected), rtol=1e-8, atol=1e-10)


def basis_at(case):
    return case.basis(ALPHA)


def test_the_residual_is_the_objective_and_orthogonal_to_the_basis(case):
    found = case.project(ALPHA)
    data = case.root * (case.y - to_numpy(basis_at(case)) @ found.linear)
    penalty = 0 if case.l2 is None else np.sum(case.l2 * found.linear**2)
    np.testing.assert_allclose(np.sum(found.residual**2), np.sum(data**2) + penalty, rtol=1e-12)
    for f in found.factors:
        np.testing.assert_allclose(f.q.T @ found.residual[:, f.columns], 0, atol=1e-13)


def test_jacobian_is_the_derivative_of_the_residual(case):
    h = 1e-5
    for e, column in zip(np.eye(P), case.differentiate(ALPHA).jacobian.T, strict=True):
        difference = case.project(ALPHA + h * e).residual - case.project(ALPHA - h * e).residual
        np.testing.assert_allclose(column, difference.ravel() / (2 * h), atol=2e-8)


def test_kaufman_has_the_gradient_of_the_full_jacobian_and_another_matrix(case):
    full, short = (case.differentiate(ALPHA, full=full).jacobian for full in (True, False))
    residual = case.project(ALPHA).residual.ravel()
    np.testing.assert_allclose(full.T @ residual, short.T @ residual, atol=1e-12)
    assert np.abs(full - short).max() > 1e-3


def test_kaufman_is_the_full_jacobian_where_the_residual_is_zero():
    exact = np.array(basis(float64(ALPHA))) @ rows(2)[:N]
    case = Case(2, y=exact)
    full, short = (case.differentiate(ALPHA, full=full).jacobian for full in (True, False))
    assert np.abs(full).max() > 0.1
    np.testing.assert_allclose(full, short, atol=1e-12)


def test_jacobian_is_the_derivative_of_the_library_s_lstsq():
    case = Case(2)
    y = float64(case.y)

    def residual(a):
        phi = basis(a)
        return y - phi @ pinvnn.lstsq(phi, y).solution

    alpha = float64(ALPHA)
    gradcheck(residual, alpha)
    columns = [mx.jvp(residual, [alpha], [float64(e)])[1][0].reshape(-1) for e in np.eye(P)]
    np.testing.assert_allclose(case.differentiate(ALPHA).jacobian, np.array(mx.stack(columns, axis=1)), atol=1e-11)


@pytest.mark.parametrize("name", sorted(set(SETTINGS) - {"rank deficient"}))
def test_sensitivity_is_the_answer_of_the_linear_parameters(name):
    """A dc = -dA c in the least-squares sense, with the penalty."""
    case = Case(**SETTINGS[name])
    found, d = case.project(ALPHA), case.differentiate(ALPHA)
    phi = case.root * to_numpy(basis_at(case))
    sensitivity = d.sensitivity.reshape(N, -1, P)
    for j, tangent in enumerate(case.basis.tangents(ALPHA, M * N)):
        for t in range(found.linear.shape[1]):
            penalty = np.zeros((N, N)) if case.l2 is None else np.diag(case.l2[:, t])
            expected = -np.linalg.solve(phi.T @ phi + penalty, phi.T @ (case.root * tangent @ found.linear[:, t]))
            np.testing.assert_allclose(sensitivity[:, t, j], expected, atol=1e-9)


# --- Derivatives of the basis ---------------------------------------------------------------------------------------


@mx.custom_function
def without_forward_rule(x):
    # The singular value of a column: MLX has no forward rule for it.
    return mx.linalg.svd(x[:, None], stream=mx.cpu)[1]


@without_forward_rule.vjp
def _(x, cotangent, value):
    return cotangent * x / value


def norm_times_column(a):
    return mx.stack([float64(T) * without_forward_rule(a)[0], a[0] * float64(T) ** 2], axis=1)


MODES = {"forward, vmap": basis, "reverse": norm_times_column}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_differentiation_agrees_with_differences(mode):
    found = Basis(MODES[mode], float64(ALPHA), (), mx.float64)
    tangents = np.stack(list(found.tangents(ALPHA, M * N)))
    h = 1e-5
    for j, e in enumerate(np.eye(P)):
        expected = (to_numpy(found(ALPHA + h * e)) - to_numpy(found(ALPHA - h * e))) / (2 * h)
        np.testing.assert_allclose(tangents[j], expected, atol=1e-8)
    assert (found.derivatives, found.mode) == (1, mode)


def test_a_function_that_is_wrong_under_vmap_is_found_out(monkeypatch):
    found = Basis(basis, float64(ALPHA), (), mx.float64)
    forward = found._forward

    def wrong(x, directions):
        return forward(x, directions) * (1.0 if len(directions) == 1 else 1.001)

    monkeypatch.setattr(found, "_forward", wrong)
    tangents = np.stack(list(found.tangents(ALPHA, M * N)))
    assert found.mode == "forward"
    np.testing.assert_allclose(tangents[0][:, 0], -T * np.exp(-ALPHA[0] * T), rtol=1e-13)


def test_push_and_pull_are_adjoint():
    found = Basis(basis, float64(ALPHA), (), mx.float64)
    rng = np.random.default_rng(0)
    u, w = rng.standard_normal(P), rng.standard_normal((M, N))
    np.testing.assert_allclose(np.sum(w * found.push(ALPHA, u)), found.pull(ALPHA, w) @ u, rtol=1e-12)


def test_large_derivatives_are_formed_in_parts(monkeypatch):
    whole = np.stack(list(Basis(basis, float64(ALPHA), (), mx.float64).tangents(ALPHA, M * N)))
    parts = Basis(basis, float64(ALPHA), (), mx.float64)
    parts.mode = "forward, vmap"
    sizes = []
    forward = parts._forward
    monkeypatch.setattr("pinvnn.varpro._basis.BATCH_ENTRIES", 3 * M * N)
    monkeypatch.setattr(parts, "_forward", lambda x, d: (sizes.append(len(d)), forward(x, d))[1])
    np.testing.assert_allclose(np.stack(list(parts.tangents(ALPHA, M * N))), whole, rtol=1e-14)
    assert sizes == [3, 1]
