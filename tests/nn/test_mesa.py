"""MesaLayer: what it computes, decoding, and the manners of a layer of mlx.nn."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from pinvnn.nn import MesaLayer
from pinvnn.testing import gradcheck
from tests.support.cases import close, numpy

DIMS, HEADS, T = 12, 3, 11


def layer(seed=0, **options):
    mx.random.seed(seed)
    return MesaLayer(DIMS, HEADS, **options)


def inputs(batch=(2,), dtype=mx.float32, positions=T):
    return mx.random.normal((*batch, positions, DIMS), key=mx.random.key(1)).astype(dtype)


def by_hand(m, x):
    """One sequence, position by position, in NumPy."""
    def project(proj):
        return x @ numpy(proj.weight).T + (numpy(proj.bias) if "bias" in proj else 0)

    n = DIMS // HEADS
    q, k, v = (project(proj).reshape(T, HEADS, n) for proj in (m.q_proj, m.k_proj, m.v_proj))
    q, k = (z / np.sqrt(np.sum(z * z, -1, keepdims=True) + 1e-6) for z in (q, k))
    decay = 1 / (1 + np.exp(-project(m.decay_proj))) if "decay_proj" in m else np.ones((T, HEADS))
    l2 = np.broadcast_to(numpy(m.l2) if isinstance(m.l2, mx.array) else m.l2, (HEADS,))
    out = np.zeros((T, HEADS, n))
    for h in range(HEADS):
        kk = kv = np.zeros((n, n))
        for t in range(T):
            kk = decay[t, h] * kk + np.outer(k[t, h], k[t, h])
            kv = decay[t, h] * kv + np.outer(k[t, h], v[t, h])
            out[t, h] = kv.T @ np.linalg.solve(kk + l2[h] * np.eye(n), q[t, h])
    out = out.reshape(T, DIMS)
    return out @ numpy(m.o_proj.weight).T + (numpy(m.o_proj.bias) if "bias" in m.o_proj else 0)


OPTIONS = [{}, {"bias": True}, {"forget": False}, {"learn_l2": False, "l2": 0.1}, {"l2": 0.01}]


@pytest.mark.usefixtures("on_cpu")  # the projections are products of the user's network
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_a_ridge_regression_at_every_position(options):
    m, x = layer(**options), inputs()
    out = m(x)
    for i in range(2):
        close(out[i], by_hand(m, numpy(x)[i]), 1e-5)
    close(m(x[0]), out[0], 1e-6)  # without a batch


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
@pytest.mark.parametrize("pieces", [[1] * T, [T - 2, 1, 1], [4, 7]], ids=str)
def test_decoding_with_a_cache(options, pieces):
    m, x = layer(**options), inputs()
    cache, out, start = [None, None], [], 0
    for length in pieces:
        out.append(m(x[:, start : start + length], cache))
        start += length
    close(mx.concatenate(out, axis=1), m(x), 1e-5)
    assert [c.shape for c in cache] == [(2, HEADS, DIMS // HEADS, DIMS // HEADS)] * 2


def test_the_cache_of_mlx_lm(tmp_path):
    models = pytest.importorskip("mlx_lm.models.cache")
    m, x = layer(), inputs()
    cache = [models.ArraysCache(size=2)]
    m(x[:, :6], cache[0])
    models.save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    loaded = models.load_prompt_cache(str(tmp_path / "cache.safetensors"))
    close(m(x[:, 6:], loaded[0]), m(x)[:, 6:], 1e-5)


def test_parameters():
    names = {name: p.shape for name, p in tree_flatten(layer(bias=True).parameters())}
    n, h = (DIMS, DIMS), HEADS
    projections = {f"{letter}_proj.{part}": n if part == "weight" else n[:1] for letter in "qkvo" for part in
                   ("weight", "bias")}  # fmt: skip
    assert names == {**projections, "decay_proj.weight": (h, DIMS), "decay_proj.bias": (h,), "log_l2": (h,)}
    assert set(dict(tree_flatten(layer(learn_l2=False, forget=False).parameters()))) == {
        f"{letter}_proj.weight" for letter in "qkvo"
    }
    m = layer().freeze()
    assert not tree_flatten(m.trainable_parameters())
    m.unfreeze(keys="log_l2")
    assert [name for name, _ in tree_flatten(m.trainable_parameters())] == ["log_l2"]
    np.testing.assert_allclose(numpy(layer(l2=0.3).l2), 0.3, rtol=1e-6)
    assert str(layer(forget=False)).startswith("MesaLayer(dims=12, num_heads=3, learn_l2=True, forget=False")


def test_the_gate_starts_with_long_half_lives():
    gate = 1 / (1 + np.exp(-numpy(layer().decay_proj.bias)))
    np.testing.assert_allclose(gate, 0.5 ** (1 / np.array([16, 128, 1024])), rtol=1e-5)


def test_saved_and_loaded(tmp_path):
    m, other, x = layer(0), layer(1), inputs()
    assert not mx.allclose(other(x), m(x), atol=1e-3)
    m.save_weights(str(tmp_path / "mesa.safetensors"))
    other.load_weights(str(tmp_path / "mesa.safetensors"))
    close(other(x), m(x), 0)


@pytest.mark.parametrize(("dtype", "rtol"), [(mx.float16, 5e-3), (mx.bfloat16, 4e-2)])
def test_half(dtype, rtol):
    m, x = layer(), inputs()
    want = m(x)
    m.set_dtype(dtype)
    out = m(x.astype(dtype))
    assert out.dtype == dtype
    close(out, numpy(want), rtol)


def test_training_lowers_the_loss():
    m, x = layer(), inputs((4,))
    y, optimizer = mx.roll(x, 1, axis=1), optim.Adam(1e-2)
    gradient = nn.value_and_grad(m, lambda m: mx.mean(mx.square(m(x) - y)))

    def step():
        value, grads = gradient(m)
        optimizer.update(m, grads)
        return value

    state = [m.state, optimizer.state]
    values = []
    for _ in range(20):
        values.append(step().item())
        mx.eval(state)
    assert values[-1] < 0.8 * values[0]


@pytest.mark.usefixtures("on_cpu")
def test_every_parameter_has_its_gradient():
    mx.random.seed(0)
    m = MesaLayer(4, 2, l2=0.5)
    m.update(tree_map(lambda p: p.astype(mx.float64), m.parameters()))
    x = mx.random.normal((3, 4), key=mx.random.key(1)).astype(mx.float64)
    # log_l2 goes through an exponential of float32, too coarse for differences: test_causal.py checks that of l2.
    m.freeze(keys="log_l2", recurse=False)
    gradcheck(lambda x: m(x), x, modes=("vjp",), rtol=1e-4)
    slopes = dict(tree_flatten(nn.value_and_grad(m, lambda m: mx.sum(m(x) * x))(m)[1]))
    assert len(slopes) == 6 and all(mx.max(mx.abs(slope)).item() > 1e-6 for slope in slopes.values())
    m.unfreeze()
    slope = nn.value_and_grad(m, lambda m: mx.sum(m(x) * x))(m)[1]["log_l2"]
    values = []
    start = m.log_l2
    for step in (0.01, -0.01):
        m.log_l2 = start + mx.array([step, 0.0], mx.float64)
        values.append(mx.sum(m(x) * x).item())
    np.testing.assert_allclose(slope[0].item(), (values[0] - values[1]) / 0.02, rtol=1e-3)


def test_a_default_gpu(gpu):
    m, x = layer(), inputs()
    cache = [None, None]
    mx.eval(m(x, cache), m(x[:, :1], cache), cache)
    mx.eval(nn.value_and_grad(m, lambda m: mx.sum(m(x)))(m))
    assert gpu.calls.total() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MesaLayer(0, 1), "dims must be a positive integer, but got 0"),
        (lambda: MesaLayer(4, 2.0), "num_heads must be a positive integer, but got 2.0"),
        (lambda: MesaLayer(10, 4), "num_heads must divide dims, but got 4 and 10"),
        (lambda: MesaLayer(4, 2, l2=0.0), "l2 must be positive and finite, but got 0.0"),
        (lambda: layer()(mx.ones((5, 3))), r"x must have 12 features, but got shape \(5, 3\)"),
        (lambda: layer()(mx.ones((DIMS,))), r"x must have at least 2 dimensions"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=rf"^\[pinvnn.MesaLayer\] {message}"):
        call()
