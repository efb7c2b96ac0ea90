"""Ridge regression at every position of a sequence, from the positions up to it."""

from functools import reduce
from numbers import Real
from typing import NamedTuple

import mlx.core as mx

from ._mlx import checks, dtypes
from ._mlx.place import on_cpu
from ._rules.causal import causal_solve
from ._rules.decayed import attention, end_state
from ._types import ArrayLike, CausalState, Penalty


def causal_ridge(q: ArrayLike, k: ArrayLike, v: ArrayLike, l2: Penalty, *, decay: ArrayLike | None = None) -> mx.array:
    r"""Causal ridge regression: at every position the fit to all positions up to it, applied to the query there.

    .. math::
        o_t = W_t q_t, \qquad W_t = \arg\min_W \sum_{i \le t} \Big(\prod_{i < j \le t} \gamma_j\Big)
        |v_i - W k_i|^2 + l_2 |W|^2

    Linear attention whose weights are the exact least-squares solution, the mesa layer. It is differentiable at every
    order in ``q``, ``k``, ``v``, ``l2`` and ``decay``, and the derivative is that of the exact solution.

    The penalty does not fade with the keys, so that every position has a linear system of its own. Each is solved by
    a Cholesky factorization in float64 on the CPU, whatever the dtype and the default device: the time is
    :math:`O(T n^2 (n + C) + T n p)` for T positions in chunks of C, about :math:`\sqrt T` and at most 64. The gradient
    costs twice as much again. What is held is :math:`O(T (n + p + C) + \frac T C n (n + p))` numbers, in the gradient
    too, and never a state for each position.

    Args:
        q: Queries, ``(..., T, n)``: float32, float64, float16 or bfloat16 (integers become float32).
        k: Keys, ``(..., T, n)``.
        v: Values, ``(..., T, p)``. Batch dimensions (heads) of all arguments broadcast.
        l2: Positive penalty: a number, or an array that broadcasts against ``(n, 1)`` after its batch dimensions:
            ``()``, ``(n, 1)`` per feature, ``(heads, 1, 1)`` per head. A value inside an array that is not positive
            gives NaN.
        decay: In [0, 1]: a number or ``(..., T)``; ``decay[t]`` multiplies the weight of all positions before t. None
            is 1, which forgets nothing. A value outside of [0, 1] inside an array gives NaN from its position on.

    Returns:
        ``(..., T, p)``, in the half type if all of ``q``, ``k`` and ``v`` have it, else float32 or float64. A key, a
        value or a decay that is not finite makes its own batch entry NaN from its position on, a query its own position
        alone. NaN, too, where the system is singular to working precision.

    Raises:
        ValueError: For shapes that do not fit, an ``l2`` that is not positive, a ``decay`` outside of [0, 1].
        TypeError: For an argument that is complex or no array.

    References:
        J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858, Eq. 8;
        J. von Oswald et al., MesaNet, arXiv 2506.05233. The derivative: docs/math.md, section 16.

    Example:
        >>> import mlx.core as mx
        >>> import pinvnn
        >>> k = mx.array([[1.0], [1.0], [1.0]])
        >>> v = mx.array([[1.0], [2.0], [6.0]])
        >>> pinvnn.causal_ridge(k, k, v, 1e-6).round(3)  # the mean so far
        array([[1],
               [1.5],
               [3]], dtype=float32)
    """
    return _solve(_checked("causal_ridge", q, k, v, l2, decay, None))


def causal_ridge_step(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    l2: Penalty,
    state: CausalState | None = None,
    *,
    decay: ArrayLike | None = None,
) -> tuple[mx.array, CausalState]:
    """The next positions of :func:`causal_ridge`, one or many, from the state that the ones before left.

    A sequence in pieces gives what the whole one gives. One position costs O(n^3) and what is kept does not grow.

    Args:
        q: ``(..., T, n)``, the next T positions; T is 1 in decoding.
        k: ``(..., T, n)``.
        v: ``(..., T, p)``.
        l2: As in :func:`causal_ridge`, the same for all pieces.
        state: What the last call returned; None at the start.
        decay: A number or ``(..., T)``.

    Returns:
        The output ``(..., T, p)`` and the new state, both differentiable in all arguments, the state included.

    Raises:
        ValueError: As :func:`causal_ridge`, or for a state of other dimensions.
        TypeError: Likewise.

    Example:
        >>> import mlx.core as mx
        >>> import pinvnn
        >>> one, state = mx.ones((1, 1)), None
        >>> for value in (1.0, 2.0, 6.0):
        ...     out, state = pinvnn.causal_ridge_step(one, one, value * one, 1e-6, state)
        >>> out.round(3)
        array([[3]], dtype=float32)
    """
    problem = _checked("causal_ridge_step", q, k, v, l2, decay, state)
    return _solve(problem), _next_state(problem)


class _Problem(NamedTuple):
    """Checked arguments, float64 and finite; what was not is in the masks."""

    q: mx.array
    k: mx.array
    v: mx.array
    l2: mx.array
    decay: mx.array
    state: CausalState
    batch: tuple[int, ...]
    out: mx.Dtype
    output_mask: mx.array  # (..., T, 1): 1, or NaN
    state_mask: mx.array  # (..., 1, 1)


def _checked(name, q, k, v, l2, decay, state) -> _Problem:
    q, k, v = (checks.array(name, label, x, 2) for label, x in (("q", q), ("k", k), ("v", v)))
    for label, x in (("q", q), ("k", k), ("v", v)):
        checks.real_array(name, label, x, x.dtype)
    (positions, n), p = k.shape[-2:], v.shape[-1]
    if q.shape[-2:] != k.shape[-2:]:
        got = f"{q.shape} and {k.shape}"
        checks.fail(name, "q and k must have the same positions and features (..., T, n)", got, "Reshape one of them.")
    if v.shape[-2] != positions:
        remedy = "v is (..., T, p), one row for each key."
        checks.fail(name, "k and v must have the same number of positions", f"{positions} and {v.shape[-2]}", remedy)
    out = dtypes.result(q, k, v)
    l2, decay = _penalty(name, l2, n), _decay(name, decay, positions)
    state = _state(name, state, n, p)
    arrays = [("q", q, 2), ("k", k, 2), ("v", v, 2), ("l2", l2, 2), ("decay", decay, 1), ("state", state.kk, 2)]
    batch = checks.batch_shape(name, *((label, x.shape[: x.ndim - core]) for label, x, core in arrays),
                               ("state", state.kv.shape[:-2]))
    with on_cpu():
        q, k, v = (x.astype(mx.float64) for x in (q, k, v))
        (q, good_q), (k, good_k), (v, good_v) = _finite(q), _finite(k), _finite(v)
        in_range = _all(decay >= 0, decay <= 1)
        decay = mx.where(in_range, decay, mx.ones_like(decay))
        good = _all(good_k, good_v, in_range[..., None])
        until = mx.cumsum(mx.logical_not(good).astype(mx.int32), axis=-2) == 0
        positive = mx.all(_all(l2 > 0, mx.isfinite(l2)), axis=(-2, -1), keepdims=True)
        l2 = mx.where(positive, l2, mx.ones_like(l2))
        (kk, good_kk), (kv, good_kv) = (_finite(x, (-2, -1)) for x in state)
        start = _all(positive, good_kk, good_kv)
        end = _all(mx.all(good, axis=-2, keepdims=True), start)
        masks = _nan_unless(_all(until, good_q, start)), _nan_unless(end)
        return _Problem(q, k, v, l2.mT, decay, CausalState(kk, kv), batch, out, *masks)


def _finite(x, axes=(-1,)):
    """``x`` without what is not finite, and where all of it was: a masked 0 times NaN would be NaN in a product."""
    finite = mx.isfinite(x)
    return mx.where(finite, x, mx.zeros_like(x)), mx.all(finite, axis=axes, keepdims=True)


def _all(*conditions):
    # Not `a & b`, which MLX 0.32's vmap gets wrong where only one of the two is mapped.
    return reduce(mx.logical_and, conditions)


def _nan_unless(good):
    return mx.where(good, mx.array(1.0, mx.float64), mx.array(float("nan"), mx.float64))


def _double(name, label, x):
    return mx.array(float(x), mx.float64) if isinstance(x, Real) else checks.real_array(name, label, x, mx.float64)


def _penalty(name, l2, n):
    """``l2`` as ``(..., 1 or n, 1)``, float64."""
    remedy = "A small one, 1e-6, is close to none."
    if isinstance(l2, Real) and not 0 < float(l2) < float("inf"):
        checks.fail(name, "l2 must be positive and finite", f"{l2}", remedy)
    l2 = _double(name, "l2", l2)
    with on_cpu():
        l2 = l2.reshape(*(1,) * (2 - l2.ndim), *l2.shape)
    if l2.shape[-1] != 1 or l2.shape[-2] not in (1, n):
        rule = f"l2 must broadcast against {(n, 1)}, one penalty for all targets"
        checks.fail(name, rule, f"shape {l2.shape}", "Pass a scalar, (n, 1), or (heads, 1, 1) for one a head.")
    return l2


def _decay(name, decay, positions):
    """``decay`` as ``(..., T)``, float64."""
    if isinstance(decay, Real) and not 0 <= float(decay) <= 1:
        checks.fail(name, "decay must be in [0, 1]", f"{decay}", "Pass 1 or None to forget nothing.")
    decay = _double(name, "decay", 1.0 if decay is None else decay)
    if decay.ndim and decay.shape[-1] != positions:
        rule = f"decay must have one entry for each of the {positions} positions"
        checks.fail(name, rule, f"shape {decay.shape}", "Pass a number, or an array (..., T).")
    with on_cpu():
        return mx.broadcast_to(decay, (positions,)) if decay.ndim == 0 else decay


def _state(name, state, n, p) -> CausalState:
    if state is None:
        with on_cpu():
            return CausalState(mx.zeros((n, n), mx.float64), mx.zeros((n, p), mx.float64))
    kk = checks.real_array(name, "state.kk", state[0], mx.float64)
    kv = checks.real_array(name, "state.kv", state[1], mx.float64)
    if kk.shape[-2:] != (n, n) or kv.shape[-2:] != (n, p):
        rule = f"state must hold kk {(n, n)} and kv {(n, p)}"
        checks.fail(name, rule, f"shapes {kk.shape} and {kv.shape}", "Pass the state of a sequence like this one.")
    return CausalState(kk, kv)


def _solve(a: _Problem) -> mx.array:
    positions, n, p = *a.k.shape[-2:], a.v.shape[-1]
    with on_cpu():
        if 0 in (positions, n, p, *a.batch):
            x = mx.zeros((*a.batch, positions, p), mx.float64)
        else:
            q = mx.broadcast_to(a.q, (*a.batch, positions, n))
            x = causal_solve(a.k, a.decay, a.l2, a.state.kk, q)
            x = attention(x, a.k, a.v, a.decay, a.state.kv)
        return (x * a.output_mask).astype(a.out)


def _next_state(a: _Problem) -> CausalState:
    positions, n, p = *a.k.shape[-2:], a.v.shape[-1]
    with on_cpu():
        shapes = (*a.batch, n, n), (*a.batch, n, p)
        kk, kv = (mx.broadcast_to(x, shape) for x, shape in zip(a.state, shapes, strict=True))
        if 0 not in (positions, n, *a.batch):
            kk = end_state(a.k, a.k, a.decay, kk)
            kv = end_state(a.k, a.v, a.decay, kv) if p else kv
        return CausalState(kk * a.state_mask, kv * a.state_mask)
