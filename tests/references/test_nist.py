"""NIST's certified regressions in float64: as many digits as NumPy has, or one less."""

from fractions import Fraction

import numpy as np
import pytest

from tests.support.exact import solve
from tests.support.nist_linear import DATA, digits


@pytest.mark.parametrize("method", ["lstsq", "pinv"])
@pytest.mark.parametrize("data", DATA)
def test_digits(data, method):
    ours, theirs = digits(data, f"pinvnn {method}"), digits(data, f"NumPy {method}")
    assert ours >= theirs - 1, (ours, theirs)
    assert ours >= 6


def test_digits_of_ridge_without_penalty():
    assert all(digits(data, "pinvnn ridge, l2=0") >= digits(data, "NumPy lstsq") - 1 for data in DATA)


@pytest.mark.parametrize("data", DATA)
def test_the_data_are_what_nist_certified(data):
    """The normal equations in rational arithmetic give the certified coefficients to all their digits."""
    x, y, certified = DATA[data]()
    rows = [[Fraction(float(v)) for v in row] for row in x]
    right = [Fraction(float(v)) for v in y]
    gram = [[sum(r[i] * r[j] for r in rows) for j in range(x.shape[1])] for i in range(x.shape[1])]
    rhs = [sum(r[i] * v for r, v in zip(rows, right, strict=True)) for i in range(x.shape[1])]
    exact = np.array([float(v[0]) for v in solve(gram, [[v] for v in rhs])])
    np.testing.assert_allclose(exact, certified, rtol=2e-14)
