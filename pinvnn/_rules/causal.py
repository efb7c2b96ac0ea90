"""Derivative rule of the causal solve x_t = M_t^-1 q_t, M_t = sum_{i<=t} D_ti k_i k_i^T + diag(l2).

The product y_t = M_t x_t is linear attention with keys for values, and plain differentiable code. Its inverse needs no
formula of its own: M_t is symmetric, and with z = M^-1 x_bar, that is the same solve again,

    M_t x_t = q_t   =>   q_bar = z,   (k, g, l2, start)_bar = -(pullback of z through (k, g, l2, start) -> M x, x fixed)
    dx = M^-1 (dq - dM x),   dM x the pushforward of the same function.

Every order follows, since x and z carry this rule themselves. Nothing is kept for a position but x_t: the factors are
computed again for z.
"""

import mlx.core as mx

from .._factor.causal_values import causal_values
from .._mlx.attach import attach
from .._mlx.place import on_cpu
from .decayed import attention, chunk_length, joined, split, states


def product(k: mx.array, g: mx.array, l2: mx.array, start: mx.array, x: mx.array) -> mx.array:
    """M_t x_t."""
    with on_cpu():
        return attention(x, k, k, g, start) + l2 * x


def causal_solve(k: mx.array, g: mx.array, l2: mx.array, start: mx.array, q: mx.array) -> mx.array:
    """M_t^-1 q_t for every position t, differentiable at every order in all arguments; float64 on the CPU.

    Args:
        k: ``(..., T, n)``.
        g: Decay, ``(..., T)``.
        l2: ``(..., 1, 1 or n)``.
        start: sum_i D_0i k_i k_i^T over what came before, symmetric, ``(..., n, n)``.
        q: ``(..., T, n)``.

    Returns:
        ``(..., T, n)``.
    """
    positions = q.shape[-2]
    length = chunk_length(positions)
    with on_cpu():
        keys, decay = split(k, -2, length), split(g, -1, length, 1.0)
        before = states(keys, keys, decay, start)[..., :-1, :, :]
        value = causal_values(keys, decay, l2, split(q, -2, length), before)
        return _attached(k, g, l2, start, q, joined(value, positions))


def _vjp(x, bar, k, g, l2, start, q):
    z = causal_solve(k, g, l2, start, bar)
    with on_cpu():
        bars = mx.vjp(lambda k, g, l2, start: product(k, g, l2, start, x), [k, g, l2, start], [-z])[1]
    return *bars, z


def _jvp(x, tangents, k, g, l2, start, q):
    args = [k, g, l2, start]
    moving = [i for i in range(4) if tangents[i] is not None]

    def along(*moved):
        k, g, l2, start = (moved[moving.index(i)] if i in moving else arg for i, arg in enumerate(args))
        return product(k, g, l2, start, x)

    with on_cpu():
        change = tangents[4]
        if moving:
            pushed = mx.jvp(along, [args[i] for i in moving], [tangents[i] for i in moving])[1][0]
            change = -pushed if change is None else change - pushed
    return causal_solve(k, g, l2, start, change)


_attached = attach(_vjp, _jvp, 2, 1, 2, 2, 2, 2)
