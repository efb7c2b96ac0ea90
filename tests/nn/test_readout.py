"""LeastSquaresReadout as a layer: values, state, transformations, errors."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from sklearn.linear_model import LinearRegression, Ridge

from pinvnn.nn import LeastSquaresReadout, LogisticReadout, PseudoInverse, RidgeClassifier
from pinvnn.testing import gradcheck, random_matrix

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

N, K = 3, 2
SHAPES = {"tall": 8, "square": 3, "wide": 2}
STEPS = (0.0, 1e-4, 2e-4)
L2 = {"number": (), "target": (K,), "feature": (N, 1), "both": (N, K)}


def array(x, dtype=mx.float64):
    return mx.array(np.asarray(x), dtype)


def data(m, seed=0, dtype=mx.float64):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(m, N)) + 3, rng.normal(size=(m, K)) - 2
    return array(x, dtype), array(y, dtype), array(rng.uniform(0.5, 2, size=m), dtype)


def penalty(kind, seed=0):
    return array(np.random.default_rng(seed).uniform(0.3, 2, size=L2[kind]))


def reference(x, y, w, l2, bias):
    """Normal equations with the intercept as a column that no penalty touches; l2 (n, k)."""
    x, y, w = (np.array(v) for v in (x, y, w))
    columns = np.concatenate([x, np.ones((len(x), 1))], 1) if bias else x
    out = np.zeros((columns.shape[1], y.shape[1]))
    for t in range(y.shape[1]):
        diagonal = np.concatenate([l2[:, t], [0.0]]) if bias else l2[:, t]
        gram = columns.T @ (w[:, None] * columns) + np.diag(diagonal)
        out[:, t] = np.linalg.solve(gram, columns.T @ (w * y[:, t]))
    return out[: x.shape[1]].T, out[-1]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", L2)
@pytest.mark.parametrize("m", SHAPES.values(), ids=SHAPES)
def test_solve_is_the_solution_of_the_normal_equations(m, kind, bias):
    x, y, w = data(m)
    l2 = penalty(kind)
    readout = LeastSquaresReadout(N, K, l2=l2, bias=bias)
    weight, offset = readout.solve(x, y, w)
    expected, intercept = reference(x, y, w, np.broadcast_to(np.array(l2), (N, K)), bias)
    np.testing.assert_allclose(np.array(weight), expected, rtol=1e-9, atol=1e-10)
    if bias:
        np.testing.assert_allclose(np.array(offset), intercept, rtol=1e-9)
    else:
        assert offset is None
    predicted = x[:2] @ weight.T + (0 if offset is None else offset)
    np.testing.assert_allclose(np.array(readout.adapt(x, y, x[:2], w)), np.array(predicted), rtol=1e-9)


@pytest.mark.parametrize("m", SHAPES.values(), ids=SHAPES)
def test_no_penalty_is_the_minimum_norm_of_scikit_learn(m):
    x, y, _ = data(m)
    fitted = LeastSquaresReadout(N, K).fit(x, y)
    rival = LinearRegression().fit(np.array(x), np.array(y))
    np.testing.assert_allclose(np.array(fitted.weight), rival.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(np.array(fitted(x)), rival.predict(np.array(x)), rtol=1e-8)


def test_fit_is_ridge_of_scikit_learn_and_the_layer_is_its_linear():
    x, y, w = data(20, dtype=mx.float32)
    fitted = LeastSquaresReadout(N, K, l2=0.7).fit(x, y, w)
    rival = Ridge(alpha=0.7).fit(np.array(x), np.array(y), sample_weight=np.array(w))
    np.testing.assert_allclose(np.array(fitted(x)), rival.predict(np.array(x)), rtol=1e-4)
    linear = fitted.to_linear()
    assert isinstance(linear, nn.Linear)
    np.testing.assert_array_equal(np.array(linear(x)), np.array(fitted(x)))
    assert "bias" not in LeastSquaresReadout(N, K, bias=False).to_linear()


@pytest.mark.parametrize("l2", [0.0, 0.7])
def test_a_large_mean_costs_no_digits(l2):
    x, y, w = data(50)
    far = LeastSquaresReadout(N, K, l2=l2).solve((x + 1000).astype(mx.float32), y.astype(mx.float32))[0]
    near = LeastSquaresReadout(N, K, l2=l2).solve((x + 1000).astype(mx.float32).astype(mx.float64), y)[0]
    assert np.max(np.abs(np.array(far) - np.array(near))) < 1e-5


@pytest.mark.parametrize("l2", [0.0, 0.7])
def test_weight_two_is_the_row_twice_and_weight_zero_is_no_row(l2):
    x, y, _ = data(6)
    readout = LeastSquaresReadout(N, K, l2=l2)
    counts = [2, 1, 0, 1, 3, 1]
    rows = array(np.repeat(np.arange(6), counts), mx.int32)
    weighted, repeated = readout.solve(x, y, array(counts)), readout.solve(x[rows], y[rows])
    for a, b in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-9)
    losses = [readout.projected_loss(x, y, array(counts)) * 6, readout.projected_loss(x[rows], y[rows]) * 8]
    np.testing.assert_allclose(losses[0].item(), losses[1].item(), rtol=1e-9)


@pytest.mark.parametrize("l2", [0.0, 0.7, [0.3, 0.5]])
def test_no_rows_and_no_weight_give_zeros(l2):
    x, y, w = data(4)
    readout = LeastSquaresReadout(N, K, l2=l2 if isinstance(l2, float) else array(l2))
    for out in [readout.solve(x[:0], y[:0]), readout.solve(x, y, w * 0)]:
        assert all(np.all(np.array(v) == 0) for v in out)


@pytest.mark.parametrize("kind", ["number", "both"])
def test_batch_dimensions_and_vmap_are_episodes(kind):
    readout = LeastSquaresReadout(N, K, l2=penalty(kind))
    x, y, w = (mx.stack(v) for v in zip(*(data(5, seed, mx.float32) for seed in range(4)), strict=True))
    q = x[:, :2]
    single = mx.stack([readout.adapt(x[i], y[i], q[i], w[i]) for i in range(4)])
    losses = mx.stack([readout.projected_loss(x[i], y[i], w[i]) for i in range(4)])
    for adapt, loss in [
        (readout.adapt, readout.projected_loss),
        (mx.vmap(readout.adapt), mx.vmap(readout.projected_loss)),
    ]:
        np.testing.assert_allclose(np.array(adapt(x, y, q, w)), np.array(single), rtol=1e-5)
        np.testing.assert_allclose(np.array(loss(x, y, w)), np.array(losses), rtol=1e-5)
    weight, bias = readout.solve(x, y, w)
    assert weight.shape == (4, K, N) and bias is not None and bias.shape == (4, K)

    def gradient(x, y, w):
        return mx.grad(lambda x: readout.projected_loss(x, y, w))(x)

    looped = mx.stack([gradient(x[i], y[i], w[i]) for i in range(4)])
    np.testing.assert_allclose(np.array(mx.vmap(gradient)(x, y, w)), np.array(looped), rtol=1e-4, atol=1e-6)


def test_a_vector_gives_a_vector():
    x, y, w = data(5)
    readout = LeastSquaresReadout(N, 1, l2=0.5)
    vector, column = y[:, 0], y[:, :1]
    assert readout.adapt(x, vector, x).shape == (5,)
    assert readout.adapt(x, column, x).shape == (5, 1)
    assert readout.projected_loss(x, vector).item() == readout.projected_loss(x, column).item()
    assert readout.fit(x, vector)(x).shape == (5, 1)


HALF = [mx.float16, mx.bfloat16]


@pytest.mark.parametrize("dtype", [*HALF, mx.float32, mx.float64])
def test_dtypes_come_back_as_they_went_in(dtype):
    x, y, _ = data(5, dtype=dtype)
    readout = LeastSquaresReadout(N, K, l2=0.5)
    outputs = [*readout.solve(x, y), readout.adapt(x, y, x), readout.loo_predictions(x, y)]
    assert {out.dtype for out in outputs} == {dtype}


@pytest.mark.parametrize("dtype", HALF)
def test_losses_and_scores_of_half_input_are_float32(dtype):
    x, y, w = data(9, dtype=dtype)
    y = y * 8e3 if dtype == mx.float16 else y
    readout = LeastSquaresReadout(N, K, l2=0.5)
    single = [v.astype(mx.float32) for v in (x, y, w)]
    for method in (readout.projected_loss, readout.loo_loss, readout.gcv):
        got, want = method(x, y, w), method(*single)
        assert got.dtype == mx.float32 and np.isfinite(got.item())
        assert got.item() == pytest.approx(want.item(), rel=1e-6)
    for got, want in zip(readout.uncertainty(x, y, w), readout.uncertainty(*single), strict=True):
        assert got is not None and want is not None and got.dtype == mx.float32
        np.testing.assert_allclose(np.array(got), np.array(want), rtol=1e-6)


@pytest.mark.parametrize(
    ("features", "layer", "stored"),
    [
        (mx.bfloat16, mx.float32, mx.float32),
        (mx.float16, mx.float32, mx.float32),
        (mx.bfloat16, mx.bfloat16, mx.bfloat16),
        (mx.float32, mx.bfloat16, mx.bfloat16),
        (mx.float32, mx.float32, mx.float32),
        (mx.float64, mx.float32, mx.float64),
        (mx.float32, mx.float64, mx.float32),
    ],
    ids=str,
)
def test_the_dtype_that_a_fit_leaves(features, layer, stored):
    x, y, _ = data(9)
    readout = LeastSquaresReadout(N, K, l2=0.5)
    with mx.stream(mx.cpu):
        readout.weight, readout.bias = readout.weight.astype(layer), readout.bias.astype(layer)
        x, y = x.astype(features), y.astype(features)
    readout.fit(x, y)
    assert readout.weight.dtype == stored and readout.bias.dtype == stored
    if stored == mx.float32:  # not rounded to half on the way
        want = LeastSquaresReadout(N, K, l2=0.5).fit(x.astype(mx.float32), y.astype(mx.float32))
        np.testing.assert_array_equal(np.array(readout.weight), np.array(want.weight))


def test_rank_and_condition_of_a_fit():
    x, y, w = data(9)
    x = mx.concatenate([x[:, :2], x[:, :1] - x[:, 1:2]], axis=1)
    readout = LeastSquaresReadout(N, K)
    assert readout.rank is None and readout.cond is None and "rank" not in repr(readout)
    centred = np.array(x) - np.average(np.array(x), axis=0, weights=np.array(w))
    s = np.linalg.svd(np.sqrt(np.array(w))[:, None] * centred, compute_uv=False)
    for l2 in (0.0, 0.5):
        readout = LeastSquaresReadout(N, K, l2=l2).fit(x, y, w)
        assert readout.rank == 2 and readout.cond == pytest.approx(s[0] / s[1])
        assert f"rank=2, cond={readout.cond:.3g})" in repr(readout)
    assert copy.deepcopy(readout).rank == 2
    full = LeastSquaresReadout(N, K).fit(*data(9))
    assert full.rank == N
    x, y, _ = data(9, dtype=mx.float32)
    heavy = LeastSquaresReadout(N, K, bias=False).fit(x, y, [1e18] + [1.0] * 8)
    assert heavy.rank == 1  # beside it the other rows are rounding noise


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_float64_survives_copies_and_pickle(duplicate):
    """MLX alone pickles float64 arrays as float32."""
    x, y, _ = data(9)
    learned = LeastSquaresReadout(N, K, l2=0.3, learn_l2=True).fit(x, y)
    by_feature = LeastSquaresReadout(N, K, l2=array(np.linspace(0.1, 1, N)[:, None], mx.float64)).fit(x, y)
    for readout in (learned, by_feature):
        other = duplicate(readout)
        assert repr(other) == repr(readout) and other.weight.dtype == mx.float64
        for key, value in readout.items():
            np.testing.assert_array_equal(np.array(other[key]), np.array(value))
        np.testing.assert_array_equal(np.array(other.solve(x, y)[0]), np.array(readout.solve(x, y)[0]))
        other.unfreeze()
        assert set(other.trainable_parameters()) == set(readout.trainable_parameters())
        other.fit(2 * x, y)
        assert not np.allclose(np.array(other.weight), np.array(readout.weight))


def test_integers_beyond_float32_are_refused_with_the_remedy():
    x = mx.array([[4155915305 + 190 * i] for i in range(9)])
    y = mx.arange(9)
    readout = LeastSquaresReadout(1, 1, l2=0.5)
    for call in (readout.fit, readout.solve, readout.loo_loss, readout.gcv, readout.projected_loss):
        with pytest.raises(ValueError, match="integers in x must be exact in float32, but got 4155915305. Subtract an"):
            call(x, y)
    with pytest.raises(ValueError, match="integers in y must be exact"):
        readout.fit(y[:, None], x[:, 0])
    with pytest.raises(ValueError, match="integers in x must be exact"):
        readout(x)
    counts = mx.array([2**24 + 1] * 9)
    rule = "integers in weights must be exact in float32, but got 16777217. If rounded ones will do, cast them: weights"
    for call in (readout.fit, readout.loo_loss, RidgeClassifier(1, 9).fit, LogisticReadout(1, 9, l2=1.0).fit):
        with pytest.raises(ValueError, match=rule):
            call(y[:, None], y, counts)
        if call == readout.fit:
            call(y[:, None], y, counts - 1)
    near = readout.fit(x - 4155915305, y)
    assert near.weight.item() == pytest.approx(1 / 190, rel=1e-3)


def test_the_traps_that_the_docstring_names(tmp_path):
    learned = LeastSquaresReadout(N, K, l2=1e-6, learn_l2=True)
    optimizer = optim.AdamW(learning_rate=0.1, weight_decay=1.0)
    for _ in range(30):
        optimizer.update(learned, {"log_l2": mx.zeros_like(learned.log_l2)})
    assert 0.1 < learned.l2.item() < 1  # without any gradient
    assert "Weight decay" in LeastSquaresReadout.__doc__ and "1e18" in LeastSquaresReadout.__doc__
    fixed, other = (LeastSquaresReadout(N, K, l2=l2) for l2 in (3.0, 0.5))
    fixed.save_weights(str(tmp_path / "weights.npz"))
    other.load_weights(str(tmp_path / "weights.npz"))
    assert other.l2 == 0.5


def test_a_fit_inside_of_a_transformation_names_solve():
    x, y, _ = data(9, dtype=mx.float32)
    readout = LeastSquaresReadout(N, K)
    for transform in (mx.compile, lambda fn: lambda x, y: mx.vmap(fn)(x[None], y[None])):
        with pytest.raises(ValueError, match="fit must be called outside of mx.compile and mx.vmap.*Use solve"):
            transform(lambda x, y: readout.fit(x, y).weight)(x, y)


def test_weights_that_overflow_are_named():
    x, y, _ = data(9, dtype=mx.float32)
    with pytest.raises(ValueError, match="weights must have a finite sum, but got inf .* Divide them by the largest"):
        LeastSquaresReadout(N, K, l2=0.5).fit(x, y, mx.full((9,), 1e38))


# --- Derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["adapt", "projected_loss"])
@pytest.mark.parametrize("kind", [None, *L2])
@pytest.mark.parametrize("m", SHAPES.values(), ids=SHAPES)
def test_derivatives_in_every_argument_at_second_order(m, kind, method):
    if kind is None and m <= N:
        m += 4  # rows that are interpolated have no loss, and weights no effect
    x, y, w = data(m)
    moving = [x, y, w] + ([] if kind is None else [penalty(kind)])

    def fn(x, y, w, l2=0.0):
        readout = LeastSquaresReadout(N, K, l2=l2)
        return readout.projected_loss(x, y, w) if method == "projected_loss" else readout.adapt(x, y, x[:2], w)

    gradcheck(fn, *moving, order=2, modes=("vjp",) if m == SHAPES["square"] else ("vjp", "jvp"))


def test_derivatives_without_intercept_and_of_a_truncated_fit():
    x, y, w = data(8)
    gradcheck(lambda x, y, w: LeastSquaresReadout(N, K, l2=0.4, bias=False).projected_loss(x, y, w), x, y, w, order=2)
    u, v = random_matrix((8, 2), dtype=mx.float64), random_matrix((2, N), dtype=mx.float64, seed=1)
    gradcheck(lambda u, v: LeastSquaresReadout(N, K).projected_loss(u @ v, y), u, v)


def test_the_gradient_at_weight_zero_is_exact():
    x, y, w = data(6)
    w = w * array([1, 0, 1, 1, 1, 1])
    slope = mx.grad(lambda w: LeastSquaresReadout(N, K, l2=0.4).projected_loss(x, y, w))(w)[1].item()
    # A negative weight is refused, so the difference is taken on one side: with 3 points, second order in the step.
    at = [LeastSquaresReadout(N, K, l2=0.4).projected_loss(x, y, w + array([0, h, 0, 0, 0, 0])).item() for h in STEPS]
    np.testing.assert_allclose(slope, (-3 * at[0] + 4 * at[1] - at[2]) / (2 * STEPS[1]), rtol=1e-6)


def test_the_gradient_of_the_projected_loss_solves_nothing(monkeypatch):
    from pinvnn._rules import solve as rules

    x, y, w = data(8)
    calls = []
    original = rules.penalized_inverse
    monkeypatch.setattr(rules, "penalized_inverse", lambda *args: (calls.append(1), original(*args))[1])
    readout = LeastSquaresReadout(N, K, l2=0.4)
    mx.eval(mx.grad(readout.projected_loss)(x, y, w))
    assert not calls
    mx.eval(mx.grad(lambda x: mx.grad(readout.projected_loss)(x, y, w).sum())(x))
    assert calls


# --- As a module ----------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self, readout):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, N), nn.Tanh())
        self.readout = readout

    def __call__(self, x):
        return self.readout(self.backbone(x))


def names(tree):
    return {name for name, _ in tree_flatten(tree)}


def test_weight_and_bias_stay_frozen():
    model = Model(LeastSquaresReadout(N, K, l2=0.1, learn_l2=True))
    trained = {"backbone.layers.0.weight", "backbone.layers.0.bias", "readout.log_l2"}
    assert names(model.trainable_parameters()) == trained
    model.freeze()
    assert names(model.trainable_parameters()) == set()
    model.unfreeze()
    assert names(model.trainable_parameters()) == trained
    assert names(model.readout.parameters()) == {"weight", "bias", "log_l2"}
    model.readout.unfreeze(keys=["weight"])
    assert "readout.weight" not in names(model.trainable_parameters())
    model.readout.freeze(keys="log_l2")
    twin = copy.deepcopy(model)
    assert names(twin.trainable_parameters()) == trained - {"readout.log_l2"}
    twin.unfreeze(keys=["log_l2", "weight"])
    assert names(twin.trainable_parameters()) == trained


def test_a_penalty_array_is_no_parameter_unless_learned():
    l2 = mx.array([0.5, 2.0])
    assert names(LeastSquaresReadout(N, K, l2=l2).parameters()) == {"weight", "bias"}
    learned = LeastSquaresReadout(N, K, l2=l2, learn_l2=True)
    assert learned.log_l2.dtype == mx.float32
    np.testing.assert_allclose(np.array(learned.l2), [0.5, 2.0], rtol=1e-6)


def test_weights_survive_a_file(tmp_path):
    x, y, _ = data(9, dtype=mx.float32)
    fitted = LeastSquaresReadout(N, K, l2=0.1, learn_l2=True).fit(x, y)
    fitted.save_weights(str(tmp_path / "w.safetensors"))
    loaded = LeastSquaresReadout(N, K, l2=9.0, learn_l2=True)
    loaded.load_weights(str(tmp_path / "w.safetensors"))
    np.testing.assert_array_equal(np.array(loaded(x)), np.array(fitted(x)))
    assert loaded.l2.item() == fitted.l2.item()


def test_it_is_a_layer_of_a_sequential():
    x, y, _ = data(9, dtype=mx.float32)
    model = nn.Sequential(nn.Tanh(), LeastSquaresReadout(N, K))
    model.layers[1].fit(model.layers[0](x), y)
    assert model(x).shape == (9, K) and model(x[None]).shape == (1, 9, K)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_training_step_with_captured_state(compiled):
    mx.random.seed(0)
    rng = np.random.default_rng(0)
    x = mx.array(rng.normal(size=(40, 4)), mx.float32)
    y = mx.array(np.sin(np.array(x) @ rng.normal(size=(4, K))), mx.float32)
    model = Model(LeastSquaresReadout(N, K, l2=0.1, learn_l2=True))
    optimizer = optim.Adam(learning_rate=0.05)
    optimizer.init(model.trainable_parameters())
    gradient = nn.value_and_grad(model, lambda model, x, y: model.readout.projected_loss(model.backbone(x), y))

    def step(x, y):
        loss, grads = gradient(model, x, y)
        optimizer.update(model, grads)
        model.readout.weight, model.readout.bias = model.readout.solve(model.backbone(x), y)
        return loss

    state = [model.state, optimizer.state]
    if compiled:
        step = mx.compile(step, inputs=state, outputs=state)
    losses = []
    for _ in range(12):
        losses.append(step(x, y).item())
        mx.eval(state)
    assert losses[-1] < 0.8 * losses[0]
    fitted = model.readout.solve(model.backbone(x), y)[0]
    np.testing.assert_allclose(np.array(model.readout.weight), np.array(fitted), rtol=1e-4, atol=1e-5)


def test_what_the_layers_print():
    assert repr(LeastSquaresReadout(3, 2, l2=0.5)) == (
        "LeastSquaresReadout(input_dims=3, output_dims=2, l2=0.5, bias=True, learn_l2=False)"
    )
    assert "l2=0.25, bias=False, learn_l2=True" in repr(LeastSquaresReadout(3, 2, 0.25, False, True))
    assert "l2=(3, 1)" in repr(LeastSquaresReadout(3, 2, l2=mx.ones((3, 1))))
    assert repr(PseudoInverse(rtol=0.1)) == "PseudoInverse(rtol=0.1, hermitian=False)"


# --- Errors ---------------------------------------------------------------------------------------

X, Y = mx.zeros((5, N)), mx.zeros((5, K))
ERRORS = {
    "dims": (lambda r: LeastSquaresReadout(0, K), ValueError, "input_dims must be a positive integer, but got 0"),
    "dims type": (lambda r: LeastSquaresReadout(N, 1.5), ValueError, "output_dims must be a positive"),
    "l2": (lambda r: LeastSquaresReadout(N, K, l2=-1), ValueError, "l2 must be non-negative and finite, but got -1"),
    "l2 shape": (lambda r: LeastSquaresReadout(N, K, l2=mx.ones((N,))), ValueError, r"broadcast against .* \(3, 2\)"),
    "l2 batch": (lambda r: LeastSquaresReadout(N, K, l2=mx.ones((4, 1, 1))), ValueError, "at most 2 dimensions"),
    "l2 text": (lambda r: LeastSquaresReadout(N, K, l2="a"), TypeError, "l2 must be an array, but got str"),
    "learned": (lambda r: LeastSquaresReadout(N, K, learn_l2=True), ValueError, "learnable l2 must be positive"),
    "learned array": (lambda r: LeastSquaresReadout(N, K, mx.zeros((K,)), learn_l2=True), ValueError, "learnable l2"),
    "features": (lambda r: r.solve(X[:, :2], Y), ValueError, r"solve\] x must have 3 features, but got shape \(5, 2\)"),
    "query": (lambda r: r.adapt(X, Y, X[:, :2]), ValueError, r"adapt\] x_query must have 3 features"),
    "call": (lambda r: r(X[:, :2]), ValueError, r"LeastSquaresReadout\] x must have 3 features"),
    "targets": (lambda r: r.solve(X, Y[:, :1]), ValueError, r"y must have the shape \(..., m, 2\), but got \(5, 1\)"),
    "vector": (lambda r: r.solve(X, Y[:, 0]), ValueError, r"y must have the shape \(..., m, 2\)"),
    "rows": (lambda r: r.solve(X, Y[:4]), ValueError, "same number of rows, but got 5 and 4"),
    "weights": (lambda r: r.solve(X, Y, mx.ones((4,))), ValueError, "one entry for each of the 5 rows"),
    "batch": (lambda r: r.solve(mx.zeros((2, 5, N)), mx.zeros((3, 5, K))), ValueError, "batch dimensions must"),
    "text": (lambda r: r.solve("x", Y), TypeError, "x must be an array, but got str"),
    "complex": (lambda r: r.solve(X.astype(mx.complex64), Y), TypeError, "x and y must be real"),
    "fit batch": (lambda r: r.fit(X[None], Y[None]), ValueError, r"fit\] x and y must have two dimensions"),
    "fit nan": (lambda r: r.fit(X, Y * float("nan")), ValueError, "y must be finite"),
    "fit weights": (lambda r: r.fit(X, Y, -mx.ones((5,))), ValueError, "weights must be non-negative"),
    "fit singular": (lambda r: LeastSquaresReadout(N, K, mx.zeros((K,))).fit(X, Y), ValueError, "unique solution"),
    "rtol": (lambda r: PseudoInverse(rtol=-1), ValueError, r"PseudoInverse\] rtol must be non-negative"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_rule_value_and_remedy(case):
    call, error, message = ERRORS[case]
    with pytest.raises(error, match=message) as caught:
        call(LeastSquaresReadout(N, K, l2=0.5))
    assert str(caught.value).startswith("[pinvnn.") and str(caught.value).endswith(".")


# --- PseudoInverse --------------------------------------------------------------------------------


def test_pseudo_inverse_is_pinv():
    a = random_matrix((2, 4, 3), dtype=mx.float64)
    np.testing.assert_allclose(np.array(PseudoInverse()(a)), np.linalg.pinv(np.array(a)), atol=1e-12)
    assert names(PseudoInverse(rtol=mx.array(0.1)).parameters()) == set()
    gradcheck(nn.Sequential(PseudoInverse(rtol=1e-6)), a[0])
