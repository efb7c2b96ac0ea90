"""NIST's certified values from NIST's starting points; the full table is in docs/varpro.md."""

import numpy as np
import pytest

from tests.support.nist_nonlinear import NAMED, PROBLEMS, fit, full_problem

BOTH = [pytest.param(problem, start, id=f"{problem.name}-{start}") for problem in PROBLEMS for start in (1, 2)]
# The residuals of Lanczos1 are 4e-14 of its data: float64 holds two or three digits of them, and of all that follows.
ROUNDED = {"Lanczos1": 2.0}


def test_eight_problems_are_named_and_all_are_separable():
    assert len(NAMED) == 8
    assert len(PROBLEMS) == 26


@pytest.mark.parametrize(("problem", "start"), BOTH)
def test_certified_values(problem, start):
    found = fit(problem, start)
    assert found.result.converged, found.result.reason
    assert found.result.rank == found.result.linear.size
    assert found.b >= 9
    least = ROUNDED.get(problem.name, 9.0)
    assert found.standard_errors >= least
    assert found.rss >= least
    assert found.residual_std >= least


@pytest.mark.parametrize(("problem", "start"), BOTH)
def test_kaufman_s_jacobian_finds_them_too(problem, start):
    found = fit(problem, start, jacobian="kaufman", max_steps=400)
    assert found.result.converged, found.result.reason
    assert found.b >= 6
    assert "Kaufman" in found.result.route


def test_fewer_evaluations_than_the_full_problem():
    ratios = []
    for problem in NAMED:
        ours, (theirs, evaluations) = fit(problem, 2), full_problem(problem, 2)
        assert ours.b >= theirs - 1.5, problem.name
        ratios.append(sum(ours.result.evaluations) / evaluations)
    assert np.median(ratios) < 0.7
