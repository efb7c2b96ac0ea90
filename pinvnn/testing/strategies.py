"""Hypothesis strategies for matrices of given rank, condition, scale and dtype.

Hypothesis (``pip install hypothesis``) is imported when a strategy is made, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log10
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx

from ._matrices import random_matrix

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

DTYPES: tuple[mx.Dtype, ...] = (mx.float32, mx.float64, mx.complex64)


def _hypothesis() -> Any:
    try:
        import hypothesis.strategies
    except ImportError as error:
        raise ImportError(
            "[pinvnn.testing.strategies] hypothesis must be installed, but got no such package. "
            "Run `pip install hypothesis`."
        ) from error
    return hypothesis.strategies


def shapes(max_side: int = 6, min_side: int = 1, max_batch: int = 0) -> SearchStrategy[tuple[int, ...]]:
    """Shapes ``(..., m, n)``.

    Args:
        max_side (int): Largest m and n. Default: ``6``.
        min_side (int): Smallest m and n. Default: ``1``.
        max_batch (int): Largest number of batch dimensions, which are 1 to 3 long. Default: ``0``.

    Returns:
        SearchStrategy: of tuples of integers.

    Raises:
        ImportError: hypothesis is not installed.
    """
    st = _hypothesis()
    side, batch = st.integers(min_side, max_side), st.lists(st.integers(1, 3), max_size=max_batch)
    return st.builds(lambda b, m, n: (*b, m, n), batch, side, side)


def matrices(
    shape: Sequence[int] | SearchStrategy[tuple[int, ...]] | None = None,
    rank: int | Literal["full"] | None = None,
    max_cond: float = 1e3,
    scales: tuple[int, int] = (0, 0),
    dtypes: Sequence[mx.Dtype] = DTYPES,
) -> SearchStrategy[mx.array]:
    """Matrices of :func:`random_matrix`; hypothesis shrinks them to small well-conditioned float32 ones of full rank.

    Args:
        shape: A shape ``(..., m, n)``, or a strategy of shapes. Default: :func:`shapes`.
        rank (int or str): ``"full"``, a number, or None for any rank from 0 to full. Default: ``None``.
        max_cond (float): Largest ratio of non-zero singular values. Default: ``1e3``.
        scales (tuple(int, int)): Smallest and largest exponent of the power of ten that multiplies the matrix, such as
            ``(-30, 30)``. Default: ``(0, 0)``.
        dtypes (list(Dtype)): Dtypes to draw from. Default: float32, float64 and complex64.

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
        shape = st.just(tuple(shape))  # pyright: ignore[reportArgumentType]

    @st.composite
    def draw_matrix(draw: Callable[..., Any]) -> mx.array:
        size = draw(shape)
        dtype = draw(st.sampled_from(dtypes))
        most = min(size[-2:])
        r = most - draw(st.integers(0, most)) if rank is None else most if rank == "full" else min(rank, most)
        cond = 10.0 ** draw(st.floats(0, log10(max_cond)))
        scale = 10.0 ** draw(st.integers(*scales))
        a = random_matrix(size, rank=r, cond=cond, dtype=dtype, seed=draw(st.integers(0, 2**32 - 1)))
        return mx.multiply(a, mx.array(scale, dtype=dtype), stream=mx.cpu)

    return draw_matrix()


def systems(
    matrix: SearchStrategy[mx.array] | None = None, max_targets: int = 3, dtypes: Sequence[mx.Dtype] = DTYPES
) -> SearchStrategy[tuple[mx.array, mx.array]]:
    """Pairs ``(a, b)`` of a matrix ``(..., m, n)`` and right-hand sides ``(..., m, k)`` of the same dtype.

    Args:
        matrix (SearchStrategy): A strategy of matrices. Default: :func:`matrices` of ``dtypes``.
        max_targets (int): Largest k. Default: ``3``.
        dtypes (list(Dtype)): Dtypes of the default matrices. Default: float32, float64 and complex64.

    Returns:
        SearchStrategy: of pairs of arrays.

    Raises:
        ImportError: hypothesis is not installed.
    """
    st = _hypothesis()
    matrix = matrices(dtypes=dtypes) if matrix is None else matrix

    @st.composite
    def draw_system(draw: Callable[..., Any]) -> tuple[mx.array, mx.array]:
        a = draw(matrix)
        shape = (*a.shape[:-1], draw(st.integers(1, max_targets)))
        return a, random_matrix(shape, dtype=a.dtype, seed=draw(st.integers(0, 2**32 - 1)))

    return draw_system()
