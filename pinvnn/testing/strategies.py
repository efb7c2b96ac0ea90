"""Hypothesis strategies for matrices of given rank, condition, scale and dtype.

Hypothesis (``pip install hypothesis``) is imported when a strategy is made, not before.
"""

from math import log10

import mlx.core as mx

from ._matrices import random_matrix

DTYPES = (mx.float32, mx.float64, mx.complex64)


def _hypothesis():
    try:
        import hypothesis.strategies
    except ImportError as error:
        raise ImportError(
            "[pinvnn.testing.strategies] hypothesis must be installed, but got no such package. "
            "Run `pip install hypothesis`."
        ) from error
    return hypothesis.strategies


def shapes(max_side=6, min_side=1, max_batch=0):
    """Shapes ``(..., m, n)`` with up to ``max_batch`` batch dimensions of 1 to 3."""
    st = _hypothesis()
    side, batch = st.integers(min_side, max_side), st.lists(st.integers(1, 3), max_size=max_batch)
    return st.builds(lambda b, m, n: (*b, m, n), batch, side, side)


def matrices(shape=None, rank=None, max_cond=1e3, scales=(0, 0), dtypes=DTYPES):
    """Matrices of :func:`random_matrix`, which shrink to small, full-rank, well-conditioned float32 ones of scale 1.

    Args:
        shape: A shape, or a strategy of shapes. Default: :func:`shapes`.
        rank: ``"full"``, a number, or None for any rank from 0 to full.
        max_cond: Largest ratio of non-zero singular values.
        scales: Smallest and largest exponent of the power of ten that multiplies the matrix, ``(-30, 30)``, say.
        dtypes: Dtypes to draw from.

    Returns:
        SearchStrategy: of arrays.

    Raises:
        ImportError: hypothesis is not installed.

    Example:
        >>> from hypothesis import given, settings
        >>> from pinvnn.testing import strategies
        >>> @settings(max_examples=5, database=None, derandomize=True)
        ... @given(strategies.matrices(shape=(4, 2), rank=1))
        ... def test_shape(a):
        ...     assert a.shape == (4, 2)
        >>> test_shape()
    """
    st = _hypothesis()
    if shape is None:
        shape = shapes()
    elif not isinstance(shape, st.SearchStrategy):
        shape = st.just(tuple(shape))

    @st.composite
    def draw_matrix(draw):
        size = draw(shape)
        dtype = draw(st.sampled_from(dtypes))
        most = min(size[-2:])
        r = most - draw(st.integers(0, most)) if rank is None else most if rank == "full" else min(rank, most)
        cond = 10.0 ** draw(st.floats(0, log10(max_cond)))
        scale = 10.0 ** draw(st.integers(*scales))
        a = random_matrix(size, rank=r, cond=cond, dtype=dtype, seed=draw(st.integers(0, 2**32 - 1)))
        return mx.multiply(a, mx.array(scale, dtype=dtype), stream=mx.cpu)

    return draw_matrix()


def systems(matrix=None, max_targets=3, dtypes=DTYPES):
    """Pairs ``(a, b)`` of a matrix ``(..., m, n)`` and right-hand sides ``(..., m, k)`` of the same dtype.

    Args:
        matrix: A strategy of matrices. Default: :func:`matrices` of ``dtypes``.
        max_targets: Largest k.
        dtypes: Dtypes of the default matrices.

    Returns:
        SearchStrategy: of pairs of arrays.

    Raises:
        ImportError: hypothesis is not installed.
    """
    st = _hypothesis()
    matrix = matrices(dtypes=dtypes) if matrix is None else matrix

    @st.composite
    def draw_system(draw):
        a = draw(matrix)
        shape = (*a.shape[:-1], draw(st.integers(1, max_targets)))
        return a, random_matrix(shape, dtype=a.dtype, seed=draw(st.integers(0, 2**32 - 1)))

    return draw_system()
