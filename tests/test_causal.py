"""causal_ridge is the ridge solution at every position; its step is the same in pieces."""

import mlx.core as mx
import numpy as np
import pytest

from pinvnn import CausalState, causal_ridge, causal_ridge_step, ridge
from pinvnn.streaming import ReadoutStatistics
from pinvnn.testing import adjoint_check, gradcheck, transform_check
from tests.support.cases import (
    array,
    close,
    gaussian,
    gradients,
    numpy,
    positive,
)
from tests.support.emulated_gpu import placed

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

F64, F32 = mx.float64, mx.float32
L2 = 0.01
DECAYS = ("none", "some", "zero and one")


def rows(positions, n, p, dtype=F64, batch=()):
    """Queries, keys and values."""
    dims = (n, n, p)
    return [gaussian((*batch, positions, d), dtype, seed) for seed, d in enumerate(dims)]


def decays(kind, shape, dtype=F64):
    rng = np.random.default_rng(5)
    if kind == "none":
        return None
    values = rng.uniform(0.5, 1, shape) if kind == "some" else rng.choice([0.0, 0.9, 1.0], shape, p=[0.1, 0.5, 0.4])
    return array(values, dtype)


def by_position(q, k, v, l2, decay=None, state=None):
    """W_t q_t by a solve at every position."""
    (positions, n), p = k.shape, v.shape[1]
    kk, kv = (np.zeros((n, n)), np.zeros((n, p))) if state is None else state
    out = np.zeros((positions, p))
    for t in range(positions):
        fade = 1.0 if decay is None else decay[t]
        kk, kv = fade * kk + np.outer(k[t], k[t]), fade * kv + np.outer(k[t], v[t])
        out[t] = kv.T @ np.linalg.solve(kk + np.eye(n) * l2, q[t])
    return out


def loss(*args):
    """A sum with different weights, so that no derivative is hidden by symmetry."""
    *args, decay = args
    out = causal_ridge(*args, decay=decay)
    return mx.sum(mx.sin(mx.arange(out.size)).astype(out.dtype).reshape(out.shape) * out)


# --- Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "p"), [(1, 1), (5, 3), (64, 64)])
@pytest.mark.parametrize("positions", [1, 2, 50, 257, 300])
@pytest.mark.parametrize("kind", DECAYS)
@pytest.mark.parametrize(("dtype", "rtol"), [(F64, 1e-8), (F32, 1e-4)])
def test_it_is_a_solve_at_every_position(dtype, rtol, kind, positions, n, p):
    q, k, v = rows(positions, n, p, dtype)
    decay = decays(kind, positions, dtype)
    want = by_position(*map(numpy, (q, k, v)), L2, None if decay is None else numpy(decay))
    out = causal_ridge(q, k, v, L2, decay=decay)
    assert out.dtype == dtype
    close(out, want, rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [(mx.float16, 1e-3), (mx.bfloat16, 8e-3)])
def test_half(dtype, rtol):
    q, k, v = rows(40, 6, 3, dtype)
    out = causal_ridge(q, k, v, L2, decay=0.75)
    assert out.dtype == dtype
    close(out, by_position(*map(numpy, (q, k, v)), L2, np.full(40, 0.75)), rtol)
    assert causal_ridge(q, k, v.astype(F32), L2).dtype == F32


def test_the_last_position_is_ridge():
    q, k, v = rows(30, 4, 2)
    weight = ridge(k, v, 0.3, weights=array(0.5 ** np.arange(29, -1, -1.0), F64))
    close(causal_ridge(q, k, v, 0.3, decay=0.5)[-1:], numpy(q)[-1:] @ numpy(weight), 1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (4, 1), (3, 1, 1), (3, 4, 1)])
def test_penalties_by_head_and_by_feature(shape):
    q, k, v = rows(9, 4, 2, batch=(3,))
    l2 = positive(shape)
    each = np.broadcast_to(numpy(l2) if shape[-1:] == (1,) else numpy(l2)[..., None], (3, 4, 1))
    out = causal_ridge(q, k, v, l2, decay=0.9)
    for head in range(3):
        want = by_position(*(numpy(x)[head] for x in (q, k, v)), each[head, :, 0], np.full(9, 0.9))
        close(out[head], want, 1e-12)


def test_batches_broadcast():
    q, _, v = rows(7, 3, 2, batch=(2, 1))
    k, decay = gaussian((4, 7, 3), F64, 8), decays("some", (2, 1, 7))
    out = causal_ridge(q, k, v, 0.5, decay=decay)
    assert out.shape == (2, 4, 7, 2)
    for i in range(2):
        for j in range(4):
            want = by_position(numpy(q)[i, 0], numpy(k)[j], numpy(v)[i, 0], 0.5, numpy(decay)[i, 0])
            close(out[i, j], want, 1e-12)
    shared = gradients(lambda k: mx.sum(mx.square(causal_ridge(q, k, v, 0.5, decay=decay))), [k])[0]
    apart = gradients(lambda k: mx.sum(mx.square(causal_ridge(q, k, v, 0.5, decay=decay))), [mx.stack([k, k])])[0]
    close(shared, numpy(apart).sum(0), 1e-12)


def test_a_change_moves_nothing_before_it():
    q, k, v = rows(70, 5, 3, F32)
    decay = decays("some", 70, F32)
    before = causal_ridge(q, k, v, L2, decay=decay)
    for t in (1, 8, 37, 69):
        late = mx.arange(70)[:, None] >= t
        moved = [mx.where(late, 3 - x, x) for x in (q, k, v)]
        after = causal_ridge(*moved, L2, decay=mx.where(late[:, 0], 0.3, decay))
        assert mx.array_equal(after[:t], before[:t])
        assert not mx.any(mx.all(after[t:] == before[t:], axis=-1))


# --- Steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[1] * 29, [29], [0, 1, 20, 3, 0, 5]], ids=str)
@pytest.mark.parametrize("kind", DECAYS)
@pytest.mark.parametrize(("dtype", "rtol"), [(F64, 1e-10), (F32, 1e-5)])
def test_pieces_are_the_whole(dtype, rtol, kind, pieces):
    q, k, v = rows(29, 5, 3, dtype, batch=(2,))
    decay = decays(kind, (2, 29), dtype)
    state, out, start = None, [], 0
    for length in pieces:
        at = slice(start, start + length)
        faded = None if decay is None else decay[:, at]
        piece, state = causal_ridge_step(q[:, at], k[:, at], v[:, at], L2, state, decay=faded)
        out.append(piece)
        start += length
    close(mx.concatenate(out, axis=1), causal_ridge(q, k, v, L2, decay=decay), rtol)


def test_the_state_is_that_of_streaming():
    _, k, v = rows(12, 3, 2, F32)
    state, statistics = None, ReadoutStatistics(3, 2, bias=False)
    for t in range(0, 12, 4):
        at = slice(t, t + 4)
        _, state = causal_ridge_step(k[at], k[at], v[at], 1.0, state, decay=mx.array([0.5, 1.0, 1.0, 1.0]))
        statistics.decay(0.5).update(k[at], v[at])
    close(state.kk, numpy(statistics.moments.xx), 1e-14)
    close(state.kv, numpy(statistics.moments.xy), 1e-14)


# --- Derivatives ------------------------------------------------------------------------------------------------------


def test_gradients_at_first_and_second_order():
    q, k, v = rows(5, 2, 2)
    decay, l2 = decays("some", 5), array(0.3, F64)
    gradcheck(lambda q, k, v, l2, g: causal_ridge(q, k, v, l2, decay=g), q, k, v, l2, decay, order=2)
    gradcheck(lambda q, k, v, l2: causal_ridge(q, k, v, l2), q, k, v, array([[0.3], [0.7]], F64))


def test_gradients_over_chunks():
    q, k, v = rows(10, 2, 1)  # more than one chunk, and the last one not full
    args = q, k, v, array([[0.3]], F64), decays("some", 10)
    gradcheck(lambda q, k, v, l2, g: causal_ridge(q, k, v, l2, decay=g), *args)


def test_gradients_of_the_step_and_its_state():
    q, k, v = rows(3, 2, 2)

    def step(q, k, v, l2, decay, root, kv):
        out, state = causal_ridge_step(q, k, v, l2, CausalState(root @ root.T, kv), decay=decay)
        return out, state.kk, state.kv

    args = array(0.3, F64), decays("some", 3), gaussian((2, 2), F64, 6), gaussian((2, 2), F64, 7)
    gradcheck(step, q, k, v, *args, order=2)


def test_the_gradient_where_the_decay_is_zero():
    q, k, v = rows(9, 3, 2)
    decay = array([1.0, 0.0, 0.5, 1.0, 0.0, 0.0, 0.9, 1.0, 0.0], F64)
    got = numpy(gradients(loss, [q, k, v, array(0.2, F64), decay])[4])
    bar = np.sin(np.arange(18)).reshape(9, 2)
    for t, h in enumerate(np.eye(9) * 1e-5):
        sides = [np.sum(bar * by_position(*map(numpy, (q, k, v)), 0.2, numpy(decay) + s * h)) for s in (1, -1)]
        np.testing.assert_allclose(got[t], (sides[0] - sides[1]) / 2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [F64, F32, mx.bfloat16], ids=str)
def test_vjp_is_the_adjoint_of_jvp(dtype):
    q, k, v = rows(6, 3, 2, dtype)
    args = q, k, v, positive((), dtype), decays("some", 6, dtype)
    adjoint_check(lambda q, k, v, l2, g: causal_ridge(q, k, v, l2, decay=g), *args)


def test_float32_gradients_are_those_of_float64():
    q, k, v = rows(300, 16, 4, F32)
    args = [q, k, v, array(L2, F32), decays("some", 300, F32)]
    for got, want in zip(gradients(loss, args), gradients(loss, [x.astype(F64) for x in args]), strict=True):
        assert got.dtype == F32
        close(got, want, 1e-6)


# --- Transforms, memory, devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("transforms", [("vmap",), ("vjp", "checkpoint")])
def test_transforms(transforms):
    q, k, v = rows(3, 2, 1, F32)
    args = q, k, v, array(0.3), decays("some", 3, F32)
    transform_check(lambda q, k, v, l2, g: causal_ridge(q, k, v, l2, decay=g), *args, transforms=transforms)


def test_compiled_gradients():
    args = [*rows(20, 3, 2, F32), array(0.3), decays("some", 20, F32)]
    gradient = mx.grad(loss, argnums=list(range(5)))
    compiled = mx.compile(gradient)
    for scale in (1.0, 0.5):
        args = [scale * x for x in args]
        for got, want in zip(compiled(*args), gradient(*args), strict=True):
            close(got, want, 1e-5)


def test_no_state_is_held_for_a_position():
    positions, n, p = 2048, 48, 16
    args = [*rows(positions, n, p, F32), array(L2), decays("some", positions, F32)]
    gradient = mx.grad(loss, argnums=list(range(5)))
    mx.eval(args)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(gradient(*args))
    assert mx.get_peak_memory() - before < 0.8 * 8 * positions * n * (n + p)


def test_bfloat16_over_a_long_sequence_with_almost_no_penalty():
    rng = np.random.default_rng(0)
    common = rng.standard_normal(16)  # keys that are almost parallel, and large
    q, k, v = (array(10 * common + rng.standard_normal((4096, 16)), mx.bfloat16) for _ in range(3))
    out = causal_ridge(q, k, v, 1e-4, decay=0.999)
    assert mx.all(mx.isfinite(out))
    close(out, by_position(*map(numpy, (q, k, v)), 1e-4, np.full(4096, 0.999)), 8e-3)
    grads = mx.grad(lambda *x: mx.sum(causal_ridge(*x, 1e-4)), [0, 1, 2])(q, k, v)
    assert all(mx.all(mx.isfinite(g)) for g in grads)


@pytest.mark.parametrize("dtype", [F32, F64, mx.bfloat16], ids=str)
def test_a_default_gpu(gpu, dtype):
    with mx.stream(mx.cpu):
        args = [*rows(5, 2, 2, dtype), positive((), dtype), decays("some", 5, dtype)]
        mx.eval(args)

    def value(q, k, v, l2, g):
        out, state = causal_ridge_step(q, k, v, l2, decay=g)
        return causal_ridge_step(q, k, v, l2, state, decay=0.5)[0] + out

    def total(*args):
        with mx.stream(mx.cpu):
            return mx.sum(value(*args))

    with placed(dtype):
        mx.eval(value(*args))
        mx.eval(mx.grad(total, argnums=list(range(5)))(*args))
        mx.eval(mx.jvp(value, args, args)[1])
        mx.eval(mx.grad(lambda *x: mx.sum(mx.grad(total)(*x), stream=mx.cpu), argnums=[0, 1])(*args))
    assert gpu.calls.total() > 0


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["q", "k", "v", "decay", "l2"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_head(which, bad):
    q, k, v = rows(20, 3, 2, F32, batch=(3,))
    args = {"q": q, "k": k, "v": v, "decay": decays("some", (3, 20), F32), "l2": mx.full((3, 1, 1), 0.1)}
    right = causal_ridge(**args)
    at = {"q": (1, 11, 0), "k": (1, 11, 2), "v": (1, 11, 1), "decay": (1, 11), "l2": (1, 0, 0)}[which]
    args[which][at] = bad
    out = causal_ridge(**args)
    hit = np.zeros((3, 20), bool)
    hit[1, {"q": slice(11, 12), "l2": slice(None)}.get(which, slice(11, None))] = True
    np.testing.assert_array_equal(np.isnan(numpy(out)).all(-1), hit)
    close(out[mx.array([0, 2])], right[mx.array([0, 2])], 0)
    if which != "l2":
        close(out[1, :11], right[1, :11], 1e-6)
    piece, state = causal_ridge_step(**args)
    after = causal_ridge_step(q[:, :1] * 0 + 1, v=v[:, :1] * 0, k=k[:, :1] * 0, l2=0.1, state=state)[0]
    np.testing.assert_array_equal(np.isnan(numpy(after)).all((1, 2)), [False, which != "q", False])


@pytest.mark.parametrize(("which", "value"), [("l2", 0.0), ("l2", -1.0), ("decay", 1.01), ("decay", -0.01)])
def test_values_in_arrays_that_are_out_of_range_give_nan(which, value):
    q, k, v = rows(4, 3, 2, F32)
    out = causal_ridge(q, k, v, **{"l2": 0.1, which: mx.array(value)})
    assert mx.all(mx.isnan(out))


def test_a_singular_system_gives_nan():
    k = mx.full((3, 2), 1e9)
    assert mx.all(mx.isnan(causal_ridge(k, k, k, 1e-6)))
    assert mx.all(mx.isfinite(causal_ridge(k, k, k, 1e6)))


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3, 2), (4, 0, 2), (4, 3, 0), (0, 4, 3, 2)], ids=str)
def test_empty(shape):
    *batch, positions, n, p = shape
    args = rows(positions, n, p, F32, tuple(batch))
    assert causal_ridge(*args, 0.1, decay=0.5).shape == (*batch, positions, p)
    out, state = causal_ridge_step(*args, 0.1, decay=0.5)
    assert out.shape == (*batch, positions, p)
    assert state.kk.shape == (*batch, n, n) and state.kv.shape == (*batch, n, p)
    mx.eval(mx.grad(lambda *x: mx.sum(causal_ridge(*x, 0.1)), [0, 1, 2])(*args), out, state)


Q, V = mx.ones((4, 3)), mx.ones((4, 2))
STATE = CausalState(mx.ones((3, 3)), mx.ones((3, 2)))


@pytest.mark.parametrize(
    ("error", "args", "kwargs", "message"),
    [
        (ValueError, (Q[:3], Q, V, 1.0), {}, r"q and k must have the same positions and features"),
        (ValueError, (Q[:, :2], Q, V, 1.0), {}, r"q and k must have the same positions and features"),
        (ValueError, (Q, Q, V[:3], 1.0), {}, r"k and v must have the same number of positions, but got 4 and 3"),
        (ValueError, (Q[0], Q, V, 1.0), {}, r"q must have at least 2 dimensions"),
        (ValueError, (mx.ones((2, 4, 3)), mx.ones((3, 4, 3)), V, 1.0), {}, r"batch dimensions must broadcast"),
        (ValueError, (Q, Q, V, 0), {}, r"l2 must be positive and finite, but got 0"),
        (ValueError, (Q, Q, V, -1.0), {}, r"l2 must be positive and finite, but got -1.0"),
        (ValueError, (Q, Q, V, float("nan")), {}, r"l2 must be positive and finite, but got nan"),
        (ValueError, (Q, Q, V, mx.ones((2,))), {}, r"l2 must broadcast against \(3, 1\).*shape \(1, 2\)"),
        (ValueError, (Q, Q, V, mx.ones((2, 1))), {}, r"l2 must broadcast against \(3, 1\).*shape \(2, 1\)"),
        (ValueError, (Q, Q, V, 1.0), {"decay": 1.5}, r"decay must be in \[0, 1\], but got 1.5"),
        (ValueError, (Q, Q, V, 1.0), {"decay": -0.5}, r"decay must be in \[0, 1\], but got -0.5"),
        (ValueError, (Q, Q, V, 1.0), {"decay": mx.ones((3,))}, r"decay must have one entry for each of the 4 "),
        (TypeError, (Q * 1j, Q, V, 1.0), {}, r"q must be real, but got complex64"),
        (TypeError, ("q", Q, V, 1.0), {}, r"q must be an array, but got str"),
        (TypeError, (Q, Q, V, None), {}, r"l2 must be an array, but got NoneType"),
        (TypeError, (Q, Q, V, 1.0), {"decay": "slow"}, r"decay must be an array, but got str"),
    ],
)
def test_errors(error, args, kwargs, message):
    for fn in (causal_ridge, causal_ridge_step):
        with pytest.raises(error, match=rf"^\[pinvnn.{fn.__name__}\] {message}"):
            fn(*args, **kwargs)


def test_errors_of_the_state():
    message = r"^\[pinvnn.causal_ridge_step\] state must hold kk \(3, 3\) and kv \(3, 1\), but got shapes"
    with pytest.raises(ValueError, match=message):
        causal_ridge_step(Q, Q, V[:, :1], 1.0, STATE)
    with pytest.raises(ValueError, match="batch dimensions must broadcast"):
        causal_ridge_step(mx.ones((2, 4, 3)), Q, V, 1.0, CausalState(mx.ones((3, 3, 3)), STATE.kv))
