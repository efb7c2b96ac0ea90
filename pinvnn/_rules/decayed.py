"""Sums over earlier positions, each weighted by the decay since then, in chunks; plain code, differentiable as it is.

Notation: g_t is the decay on the way from position t-1 to t, and

    D_ti = g_{i+1} ... g_t  for i <= t (D_tt = 1),  0 for i > t

the weight that position i has left at t. A chunk has C positions. Everything is float64 on the CPU: a ridge solution
multiplies what is lost here by the condition number.
"""

import math

import mlx.core as mx

from .._mlx.place import on_cpu

# Longest chunk. Its C x C weights then stay small beside the states of 64 features.
CHUNK = 64


def chunk_length(positions: int) -> int:
    """A power of two near the root of the number of positions: as many chunks as positions in one."""
    return min(CHUNK, 2 ** math.ceil(math.log2(max(positions, 1)) / 2))


def split(x: mx.array, axis: int, length: int, value: float = 0.0) -> mx.array:
    """``x`` with ``axis`` (negative) in two, chunks and positions; the last chunk is filled up with ``value``."""
    positions = x.shape[axis]
    count = -(-positions // length)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, count * length - positions)
    x = mx.pad(x, pad, constant_values=value) if pad[axis][1] else x
    at = x.ndim + axis
    return x.reshape(*x.shape[:at], count, length, *x.shape[at + 1 :])


def joined(x: mx.array, positions: int) -> mx.array:
    """Inverse of :func:`split` along the third axis from the end."""
    *batch, count, length, n = x.shape
    return x.reshape(*batch, count * length, n)[..., :positions, :]


def decay_matrix(g: mx.array) -> mx.array:
    """D of ``g`` (..., C), as ``(..., C, C)``: products only, so that a decay of 0 has its derivative too."""
    length = g.shape[-1]
    size = 2 ** (length - 1).bit_length() if length else 1
    g = split(g, -1, size, 1.0).reshape(*g.shape[:-1], size)
    d = mx.ones((*g.shape, 1, 1), g.dtype)
    while d.shape[-3] > 1:  # Two neighbours [A 0; c a^T B]: c, a are the first column of B and the last row of A.
        half = d.shape[-1]
        first, second = _halves(d.reshape(*d.shape[:-3], -1, 2, half, half), -3)
        step = _halves(g.reshape(*g.shape[:-1], -1, 2, half), -2)[1][..., :1, None]
        corner = second[..., :, :1] * step * first[..., -1:, :]
        upper = mx.concatenate([first, mx.zeros_like(first)], axis=-1)
        d = mx.concatenate([upper, mx.concatenate([corner, second], axis=-1)], axis=-2)
    return d.reshape(*d.shape[:-3], size, size)[..., :length, :length]


def _halves(x: mx.array, axis: int) -> list[mx.array]:
    # Not x[..., 0, :, :]: the gradient of an index is a scatter, which has no forward derivative.
    return [part.squeeze(axis) for part in mx.split(x, 2, axis=axis)]


def prefix(g: mx.array, x: mx.array) -> mx.array:
    """P_t = g_t P_{t-1} + x_t from P_0 = 0, for ``g`` (..., T) and ``x`` (..., T, m) with the same batch."""
    positions = x.shape[-2]
    if positions <= CHUNK:
        return decay_matrix(g) @ x
    g, x = split(g, -1, CHUNK, 1.0), split(x, -2, CHUNK)
    d = decay_matrix(g)
    inside = d @ x
    faded = d[..., :, :1] * g[..., :1, None]
    ends = prefix(faded[..., -1, 0], inside[..., -1:, :].squeeze(-2))
    before = mx.concatenate([mx.zeros_like(ends[..., :1, :]), ends[..., :-1, :]], axis=-2)
    return joined(inside + faded * before[..., None, :], positions)


def fading(g: mx.array) -> tuple[mx.array, mx.array]:
    """What is left after the last of T rows: of each row i, D_Ti ``(..., T)``, and of all before them, ``(...)``.

    Recursive least squares weighs its rows by it, too (``pinvnn.streaming``).
    """
    with on_cpu():
        left = mx.concatenate([g, mx.ones((*g.shape[:-1], 1), g.dtype)], axis=-1)
        step = 1
        while step < left.shape[-1]:  # left_i = g_i ... g_T, the product of twice as many factors each time
            left = mx.concatenate([left[..., :-step] * left[..., step:], left[..., -step:]], axis=-1)
            step *= 2
        return left[..., 1:], left[..., :1].squeeze(-1)


def states(k: mx.array, v: mx.array, g: mx.array, start: mx.array) -> mx.array:
    """sum_i D_ti k_i v_i^T before each chunk and, last, after all of them.

    Args:
        k: ``(..., N, C, n)``, N chunks.
        v: ``(..., N, C, p)``.
        g: ``(..., N, C)``.
        start: The sum before the first position, ``(..., n, p)``.

    Returns:
        ``(..., N + 1, n, p)``.
    """
    count, n, p = k.shape[-3], k.shape[-1], v.shape[-1]
    weights, faded = fading(g)
    sums = (k * weights[..., None]).mT @ v
    batch = mx.broadcast_shapes(sums.shape[:-3], faded.shape[:-1], start.shape[:-2])
    start = mx.broadcast_to(start.reshape(*start.shape[:-2], 1, n * p), (*batch, 1, n * p))
    sums = mx.broadcast_to(sums.reshape(*sums.shape[:-2], n * p), (*batch, count, n * p))
    faded = mx.broadcast_to(faded, (*batch, count))
    faded = mx.concatenate([mx.ones_like(faded[..., :1]), faded], axis=-1)
    return prefix(faded, mx.concatenate([start, sums], axis=-2)).reshape(*batch, count + 1, n, p)


def attention(q: mx.array, k: mx.array, v: mx.array, g: mx.array, start: mx.array) -> mx.array:
    """Linear attention with decay, sum_{i<=t} D_ti v_i (k_i . q_t), with ``start`` the sum before the first position.

    Args:
        q: ``(..., T, n)``.
        k: ``(..., T, n)``.
        v: ``(..., T, p)``.
        g: ``(..., T)``.
        start: sum_i D_0i k_i v_i^T over what came before, ``(..., n, p)``.

    Returns:
        ``(..., T, p)``.
    """
    positions = q.shape[-2]
    length = chunk_length(positions)
    with on_cpu():
        q, k, v = (split(x, -2, length) for x in (q, k, v))
        g = split(g, -1, length, 1.0)
        d = decay_matrix(g)
        before = states(k, v, g, start)[..., :-1, :, :]
        inside = ((q @ k.mT) * d) @ v
        return joined(inside + (d[..., :, :1] * g[..., :1, None] * q) @ before, positions)


def end_state(k: mx.array, v: mx.array, g: mx.array, start: mx.array) -> mx.array:
    """``start`` plus what :func:`attention` has summed after the last position, ``(..., n, p)``."""
    length = chunk_length(k.shape[-2])
    with on_cpu():
        k, v, g = split(k, -2, length), split(v, -2, length), split(g, -1, length, 1.0)
        return states(k, v, g, start)[..., -1:, :, :].squeeze(-3)
