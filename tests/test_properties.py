"""Identities that hold for every matrix, on matrices drawn by hypothesis: any shape, rank, scale and dtype.

Derandomized, so that each run sees the same matrices.
"""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pinvnn import lstsq, matrix_rank, null_space, orth, penrose_residuals, pinv, ridge
from pinvnn.testing import strategies
from tests.support.cases import array, numpy, real

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

settings.register_profile("pinvnn", derandomize=True, deadline=None, database=None, max_examples=40)
settings.load_profile("pinvnn")

COND = 1e3
# Relative error of what is computed once, of entries rounded to the dtype; times the condition number where it counts.
EPS = {mx.float32: 1e-6, mx.complex64: 1e-6, mx.float64: 1e-14}

matrices = strategies.matrices(max_cond=COND, scales=(-20, 20))
systems = strategies.systems(matrices)
# What is rounded to the dtype and squared in a test has to stay in its range.
moderate = strategies.systems(strategies.matrices(max_cond=COND, scales=(-3, 3)))


def h(x):
    return np.conj(np.swapaxes(x, -1, -2))


def cut(a):
    """A relative cutoff halfway between the rounding noise and the smallest value that was put in."""
    return 1e-5 if a.dtype != mx.float64 else 1e-9


def same(got, want, rtol, size=None):
    got, want = (numpy(x) if isinstance(x, mx.array) else x for x in (got, want))
    assert got.shape == want.shape
    size = np.linalg.norm(want) if size is None else size
    assert np.linalg.norm(got - want) <= rtol * size


@given(matrices)
def test_penrose_conditions(a):
    p = pinv(a, rtol=cut(a))
    assert float(mx.max(penrose_residuals(a, p), stream=mx.cpu)) <= COND * EPS[a.dtype]


@given(matrices)
def test_the_pseudo_inverse_of_the_pseudo_inverse(a):
    same(pinv(pinv(a, rtol=cut(a)), rtol=cut(a)), a, COND * EPS[a.dtype])


@given(matrices)
def test_adjoint(a):
    transposed = mx.conjugate(mx.swapaxes(a, -1, -2), stream=mx.cpu)
    same(pinv(transposed, rtol=cut(a)), h(numpy(pinv(a, rtol=cut(a)))), COND * EPS[a.dtype])


@given(strategies.matrices(max_cond=COND), st.integers(-60, 60))
def test_scaling(a, exponent):
    """By a power of two, which rounds nothing: the same digits, not only nearly the same."""
    c = mx.array(2.0**exponent, dtype=real(a.dtype))
    scaled = mx.multiply(a, c, stream=mx.cpu)
    same(numpy(pinv(scaled, rtol=cut(a))) * 2.0**exponent, numpy(pinv(a, rtol=cut(a))), 10 * EPS[a.dtype])


@given(systems)
def test_normal_equations(system):
    """The residual is orthogonal to the range of a; the solution has no part in its null space."""
    a, b = system
    x, m, y = numpy(lstsq(a, b, rtol=cut(a)).solution), numpy(a), numpy(b)
    rest = y - m @ x
    tolerance = COND * EPS[a.dtype]
    assert np.linalg.norm(h(m) @ rest) <= tolerance * np.linalg.norm(m) * np.linalg.norm(y)
    null = numpy(null_space(a, rtol=cut(a)))
    assert np.linalg.norm(h(null) @ x) <= tolerance * np.linalg.norm(x)


@given(strategies.systems(strategies.matrices(max_cond=COND, scales=(-20, 20), dtypes=(mx.float64,))))
def test_against_numpy(system):
    a, b = system
    x, y = numpy(a), numpy(b)
    tolerance = 10 * COND * EPS[mx.float64]
    solution, _, rank, s = np.linalg.lstsq(x, y, rcond=1e-9)
    result = lstsq(a, b, rtol=1e-9)
    same(result.solution, solution, COND * tolerance)
    same(result.singular_values, s, EPS[mx.float64])
    assert int(result.rank) == rank == int(matrix_rank(a, rtol=1e-9)) == orth(a, rtol=1e-9).shape[1]
    same(pinv(a, rtol=1e-9), np.linalg.pinv(x, rcond=1e-9), tolerance)


@given(moderate, st.floats(1e-3, 10))
def test_ridge_is_least_squares_of_the_augmented_problem(system, l2):
    a, b = system
    m, n = a.shape
    eye = mx.eye(n, dtype=a.dtype, stream=mx.cpu)
    rows = mx.concatenate([a, mx.multiply(mx.array(l2**0.5, dtype=real(a.dtype)), eye, stream=mx.cpu)], stream=mx.cpu)
    right = mx.concatenate([b, mx.zeros((n, b.shape[1]), b.dtype, stream=mx.cpu)], stream=mx.cpu)
    got, want = ridge(a, b, l2), lstsq(rows, right).solution
    bound = np.linalg.norm(numpy(b)) / (2 * l2**0.5)  # no solution is larger than this
    same(got, want, COND * EPS[a.dtype], bound)


@given(strategies.matrices(shape=strategies.shapes(max_batch=2), max_cond=COND))
def test_batch_against_single(a):
    batch = a.shape[:-2]
    p, ranks = numpy(pinv(a, rtol=cut(a))), np.array(matrix_rank(a, rtol=cut(a)))
    for index in np.ndindex(*batch):
        one = a[index] if index else a
        same(p[index], numpy(pinv(one, rtol=cut(a))), COND * EPS[a.dtype])
        assert ranks[index] == int(matrix_rank(one, rtol=cut(a)))


@given(systems, st.randoms(use_true_random=False))
def test_permutation_of_rows(system, random):
    a, b = system
    order = list(range(a.shape[0]))
    random.shuffle(order)
    rows = mx.array(order)
    p, x = numpy(pinv(a, rtol=cut(a))), numpy(lstsq(a, b, rtol=cut(a)).solution)
    moved = mx.take(a, rows, axis=0, stream=mx.cpu), mx.take(b, rows, axis=0, stream=mx.cpu)
    tolerance = COND * EPS[a.dtype]
    same(pinv(moved[0], rtol=cut(a)), p[:, order], tolerance)
    same(lstsq(*moved, rtol=cut(a)).solution, x, tolerance, np.linalg.norm(p) * np.linalg.norm(numpy(b)))


@given(systems, st.integers(0, 2**16))
def test_weights_are_repeated_rows(system, seed):
    a, b = system
    times = np.random.default_rng(seed).integers(0, 4, a.shape[0])
    rows = mx.array(np.repeat(np.arange(a.shape[0]), times))
    weighted = lstsq(a, b, weights=array(times, real(a.dtype)), rtol=cut(a))
    repeated = lstsq(
        mx.take(a, rows, axis=0, stream=mx.cpu), mx.take(b, rows, axis=0, stream=mx.cpu), rtol=cut(a)
    )
    # Without some of its rows a matrix may have a condition that nobody chose.
    assume(int(weighted.rank) == int(repeated.rank) == int(matrix_rank(a, rtol=cut(a))))
    size = np.linalg.norm(numpy(pinv(a, rtol=cut(a)))) * np.linalg.norm(numpy(b))
    same(weighted.solution, numpy(repeated.solution), 30 * COND * EPS[a.dtype], size)
