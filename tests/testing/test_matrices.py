"""random_matrix and the hypothesis strategies."""

import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import find, given, settings

from pinvnn.testing import random_matrix, strategies

DTYPES = [mx.float64, mx.float32, mx.complex64, mx.float16, mx.bfloat16]
EPS = {mx.float64: 5e-16, mx.float32: 6e-8, mx.complex64: 6e-8, mx.float16: 5e-4, mx.bfloat16: 4e-3}


def singular_values(a):
    dtype = np.complex64 if a.dtype == mx.complex64 else np.float64
    wide = a if a.dtype in (mx.float64, mx.complex64) else a.astype(mx.float32)
    return np.linalg.svd(np.array(wide).astype(dtype), compute_uv=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (2, 3, 6, 4)])
@pytest.mark.parametrize("rank", [None, 0, 1, 2])
@pytest.mark.parametrize("cond", [None, 1, 50])
def test_rank_condition_shape_and_dtype_are_as_asked(shape, rank, cond, dtype):
    a = random_matrix(shape, rank=rank, cond=cond, dtype=dtype)
    assert a.shape == shape and a.dtype == dtype
    s = singular_values(a)
    r = min(shape[-2:]) if rank is None else rank
    noise = 4 * EPS[dtype] * max(1.0, float(np.max(s, initial=0)))
    assert np.all(s[..., r:] <= noise) and np.all(s[..., :r] > noise)
    if cond is not None and r > 0:
        np.testing.assert_allclose(s[..., :r] - np.geomspace(1, 1 / cond, r), 0, atol=noise)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (0, 2, 2)])
@pytest.mark.parametrize("cond", [None, 10])
def test_empty_matrices(shape, cond):
    assert random_matrix(shape, cond=cond).shape == shape


def test_the_seed_decides_and_matrices_of_a_batch_differ():
    a = random_matrix((2, 4, 3), cond=5, seed=3)
    assert mx.array_equal(a, random_matrix((2, 4, 3), cond=5, seed=3))
    assert not mx.allclose(a, random_matrix((2, 4, 3), cond=5, seed=4))
    assert not mx.allclose(a[0], a[1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shape": (3,)}, ValueError, "shape must have two dimensions or more, but got"),
        ({"shape": (3, 4), "rank": 4}, ValueError, "rank must be 0 to 3 for shape"),
        ({"shape": (3, 4), "rank": -1}, ValueError, "rank must be 0 to 3 for shape"),
        ({"shape": (3, 4), "cond": 0.5}, ValueError, "cond must be 1 or more, but got 0.5"),
        ({"shape": (3, 4), "dtype": mx.int32}, TypeError, "dtype must be floating or complex, but got"),
        ({"shape": (3, 4), "dtype": "float32"}, TypeError, "dtype must be floating or complex, but got float32"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=r"\[pinvnn.testing.random_matrix\] " + message):
        random_matrix(**arguments)


quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@quick
@given(strategies.matrices(max_cond=100, scales=(-30, 30)))
def test_drawn_matrices_are_within_what_was_asked(a):
    assert a.ndim == 2 and 1 <= min(a.shape) <= max(a.shape) <= 6
    s = singular_values(a)
    kept = s[s > 1e-4 * s[0]]
    assert kept.size == 0 or (kept[0] / kept[-1] < 101 and 0.99e-30 < kept[0] < 1.01e30)


@quick
@given(strategies.matrices(shape=strategies.shapes(max_side=4, max_batch=2), rank="full", dtypes=[mx.float64]))
def test_full_rank(a):
    assert a.dtype == mx.float64 and np.all(singular_values(a) > 0.9e-3)


@quick
@given(strategies.systems(strategies.matrices(shape=(5, 2), rank=1)))
def test_systems_fit_together(system):
    a, b = system
    assert a.shape == (5, 2) and b.shape[0] == 5 and b.shape[1] <= 3 and a.dtype == b.dtype
    assert singular_values(a)[1] < 1e-5


@pytest.mark.parametrize(
    ("wanted", "matrix"),
    [
        ("a complex one", lambda a: a.dtype == mx.complex64),
        ("a deficient one", lambda a: singular_values(a)[-1] < 1e-6),
        ("an ill-conditioned one", lambda a: 1e-3 < singular_values(a)[-1] < 1e-2),
        ("a tall one", lambda a: a.shape[0] > a.shape[1] + 2),
        ("a wide one", lambda a: a.shape[1] > a.shape[0] + 2),
    ],
)
def test_every_kind_is_drawn(wanted, matrix):
    found = find(strategies.matrices(), matrix, settings=settings(derandomize=True, database=None, max_examples=300))
    assert matrix(found)


def test_a_missing_hypothesis_is_explained_and_needed_only_when_used(tmp_path):
    (tmp_path / "hypothesis.py").write_text("raise ImportError('no hypothesis')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from pinvnn.testing import strategies; "
    command = [sys.executable, "-c", code + "print('imported'); strategies.matrices()"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "imported" in result.stdout
    assert "[pinvnn.testing.strategies] hypothesis must be installed" in result.stderr
