"""Learning in context: one layer that fits a ridge regression as it reads, beside linear and softmax attention.

    python examples/in_context.py [--steps 900] [--recall-steps 300] [--seeds 2]

Two tasks that no weights can know in advance, with one layer of the same size each:

- Prediction of linear dynamical systems. Every sequence has a rotation W of its own, s' = W s + noise, and the layer
  sees (s_t, s_{t-1}) and predicts s_{t+1}. The oracle is the ridge regression of s_i on s_{i-1} up to t, with the
  penalty that is best on the test sequences. Rotations keep the length of a state, which suits the normalised keys of
  MesaLayer; with more noise (--noise 0.1) the states grow on the way, and the layer falls behind the oracle.
- Recall (multi-query associative recall). A sequence lists pairs of a key and a value at random, then keys in another
  order, and the layer names the value of each.

Prints a table and writes in_context.png. With PINVNN_EXAMPLE_SIZE=small it takes seconds.
"""

import argparse
import time

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from _common import SMALL, picture, spread
from matplotlib import pyplot as plt
from tqdm import tqdm

from pinvnn.nn import MesaLayer

D, NOISE, LENGTH = 8, 0.05, 48  # of the systems
PAIRS, KEYS, VALUES = 16, 32, 16  # of the recall
WIDTH, HEADS = 32, 2  # of the recall's layers
BATCH = 16


# --- Layers of the same size ------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Projections of q, k, v and of the output, as in MesaLayer; what happens between is ``attend``."""

    def __init__(self, dims, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dims, dims, bias=False) for _ in range(4))

    def __call__(self, x):
        batch, length, dims = x.shape
        projected = (proj(x) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (z.reshape(batch, length, self.num_heads, -1).swapaxes(1, 2) for z in projected)
        return self.o_proj(self.attend(q, k, v).swapaxes(1, 2).reshape(batch, length, dims))

    def attend(self, q, k, v):
        raise NotImplementedError


class Linear(Attention):
    def attend(self, q, k, v):
        seen = mx.arange(1, q.shape[-2] + 1)[:, None]  # a mean instead of a sum: it trains better
        return (mx.tril(q @ k.swapaxes(-1, -2)) @ v) / seen


class Softmax(Attention):
    def attend(self, q, k, v):
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask="causal")


def mesa(dims, num_heads):
    return MesaLayer(dims, num_heads, forget=False)  # the systems do not change on the way, nor do the pairs


KINDS = {"mesa": mesa, "linear attention": Linear, "softmax attention": Softmax}


# --- Task 1: linear dynamical systems ---------------------------------------------------------------------------------


def systems(rng, count, noise=NOISE):
    """States ``(count, LENGTH + 1, D)``."""
    turns, r = np.linalg.qr(rng.standard_normal((count, D, D)))
    turns = turns * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]  # uniform over all rotations and reflections
    states = [rng.standard_normal((count, D, 1))]
    for _ in range(LENGTH):
        states.append(turns @ states[-1] + noise * rng.standard_normal((count, D, 1)))
    return np.concatenate(states, axis=2).swapaxes(1, 2)


def now_and_before(x):
    return mx.concatenate([x, mx.pad(x[:, :-1], [(0, 0), (1, 0), (0, 0)])], axis=-1)


def prediction_errors(layer, states):
    """Squared errors at each position, ``(count, LENGTH)``."""
    predicted = layer(now_and_before(states[:, :-1]))[..., :D]
    return mx.mean(mx.square(predicted - states[:, 1:]), axis=-1)


def oracle_errors(states, l2):
    s = np.array(states, np.float64)
    before, after = s[:, :-2], s[:, 1:-1]
    gram = np.cumsum(before[..., :, None] * before[..., None, :], axis=1)
    cross = np.cumsum(before[..., :, None] * after[..., None, :], axis=1)
    weights = np.linalg.solve(gram + l2 * np.eye(D), cross)  # of position 2 and later
    predicted = (s[:, 1:-1, None] @ weights).squeeze(2)
    first = np.mean(s[:, 1] ** 2, axis=-1, keepdims=True)  # at position 1 nothing is known of the system
    return np.concatenate([first, np.mean((predicted - s[:, 2:]) ** 2, axis=-1)], axis=1)


def train_prediction(kind, seed, steps, noise, test, bar):
    mx.random.seed(seed)
    rng = np.random.default_rng(seed)
    layer = KINDS[kind](2 * D, 1)
    optimizer = optim.Adam(optim.cosine_decay(1e-2, steps, 1e-4))
    gradient = nn.value_and_grad(layer, lambda layer, s: mx.mean(prediction_errors(layer, s)))
    curve, seconds = [], 0.0
    for i in range(steps + 1):
        if i % max(1, steps // 15) == 0:
            curve.append(mx.mean(prediction_errors(layer, test)).item())
        if i < steps:
            states = mx.array(systems(rng, BATCH, noise), mx.float32)
            began = time.perf_counter()
            optimizer.update(layer, gradient(layer, states)[1])
            mx.eval(layer.parameters(), optimizer.state)
            seconds += time.perf_counter() - began
            bar.update()
    return curve, np.array(mx.mean(prediction_errors(layer, test), axis=0)), seconds / steps


# --- Task 2: recall ---------------------------------------------------------------------------------------------------


def recalls(rng, count):
    """Tokens ``(count, 3 PAIRS)``, keys below KEYS and values above, and the values asked for ``(count, PAIRS)``."""
    keys = np.argsort(rng.random((count, KEYS)), axis=1)[:, :PAIRS]
    values = rng.integers(VALUES, size=(count, PAIRS))
    order = np.argsort(rng.random((count, PAIRS)), axis=1)
    pairs = np.stack([keys, KEYS + values], axis=2).reshape(count, -1)
    asked, wanted = (np.take_along_axis(z, order, axis=1) for z in (keys, values))
    return mx.array(np.concatenate([pairs, asked], axis=1)), mx.array(wanted)


class Recall(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embedding = nn.Embedding(KEYS + VALUES, WIDTH // 2)
        self.layer, self.head = KINDS[kind](WIDTH, HEADS), nn.Linear(WIDTH, VALUES)

    def __call__(self, tokens):
        return self.head(self.layer(now_and_before(self.embedding(tokens))))[:, -PAIRS:]


def train_recall(kind, seed, steps, test, bar):
    mx.random.seed(seed)
    rng = np.random.default_rng(seed)
    model, optimizer = Recall(kind), optim.Adam(optim.cosine_decay(1e-2, steps, 1e-4))

    def loss(model, tokens, wanted):
        return nn.losses.cross_entropy(model(tokens), wanted, reduction="mean")

    gradient, curve = nn.value_and_grad(model, loss), []
    for i in range(steps + 1):
        if i % max(1, steps // 15) == 0:
            curve.append(mx.mean(mx.argmax(model(test[0]), axis=-1) == test[1]).item())
        if i < steps:
            optimizer.update(model, gradient(model, *recalls(rng, BATCH))[1])
            mx.eval(model.parameters(), optimizer.state)
            bar.update()
    return curve


# --- Both -------------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3 if SMALL else 900)
    parser.add_argument("--recall-steps", type=int, default=2 if SMALL else 300)
    parser.add_argument("--seeds", type=int, default=1 if SMALL else 2)
    parser.add_argument("--noise", type=float, default=NOISE, help="standard deviation, of the systems")
    args = parser.parse_args()
    rng = np.random.default_rng(1234)
    count = 16 if SMALL else 256
    test, test_recall = mx.array(systems(rng, count, args.noise), mx.float32), recalls(rng, count)
    l2 = min(10.0 ** np.arange(-3, 1.1, 0.25), key=lambda l2: oracle_errors(test, l2).mean())
    oracle = oracle_errors(test, l2)

    predictions, accuracies = {}, {}
    with tqdm(total=(args.steps + args.recall_steps) * args.seeds * len(KINDS), unit="step", mininterval=1) as bar:
        for kind in KINDS:
            bar.set_description(kind)
            seeds = range(args.seeds)
            predictions[kind] = [train_prediction(kind, seed, args.steps, args.noise, test, bar) for seed in seeds]
            accuracies[kind] = [train_recall(kind, seed, args.recall_steps, test_recall, bar) for seed in seeds]

    print(f"\nmean squared error of prediction ({count} systems, noise {args.noise**2:.2g}) and accuracy of recall "
          f"({PAIRS} pairs); {args.seeds} seeds")
    print(f"{'':<20}{'error':>18}{'beside the oracle':>20}{'last quarter':>15}{'ms a step':>12}{'recall':>18}")
    for kind, runs in predictions.items():
        finals = [by_position.mean() for _, by_position, _ in runs]
        recall = spread([curve[-1] for curve in accuracies[kind]])
        ratio, step = np.mean(finals) / oracle.mean() - 1, 1e3 * np.mean([s for _, _, s in runs])
        late = np.mean([by_position[-LENGTH // 4 :].mean() for _, by_position, _ in runs])
        print(f"{kind:<20}{spread(finals):>18}{ratio:>+20.1%}{late:>15.4g}{step:>12.1f}{recall:>18}")
    late = oracle[:, -LENGTH // 4 :].mean()
    chance = f"{1 / VALUES:.2g} by chance"
    print(f"{f'oracle, l2 = {l2:.2g}':<20}{oracle.mean():>18.4g}{'':>20}{late:>15.4g}{'':>12}{chance:>18}")

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    places = np.arange(1, LENGTH + 1)
    for kind, runs in predictions.items():
        curve, by_position = (np.mean([run[i] for run in runs], axis=0) for i in (0, 1))
        (line,) = axes[0].semilogy(np.linspace(0, args.steps, len(curve)), curve, marker="o", ms=3, label=kind)
        axes[1].semilogy(places, by_position, color=line.get_color())
        curve = np.mean(accuracies[kind], axis=0)
        axes[2].plot(np.linspace(0, args.recall_steps, len(curve)), curve, marker="o", ms=3)
    axes[0].axhline(oracle.mean(), color="black", linestyle="--", label="oracle (ridge)")
    axes[1].semilogy(places, oracle.mean(0), color="black", linestyle="--")
    axes[1].axhline(args.noise**2, color="gray", linestyle=":", label="noise")
    axes[2].axhline(1 / VALUES, color="gray", linestyle=":", label="chance")
    axes[0].set(title="prediction of linear systems", xlabel="training step", ylabel="mean squared error")
    axes[1].set(title="after training", xlabel="position in the sequence")
    axes[2].set(title=f"recall of {PAIRS} pairs", xlabel="training step", ylabel="accuracy", ylim=(0, 1.02))
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8) if axis.get_legend_handles_labels()[0] else None
    path = picture("in_context.png")
    figure.savefig(path, dpi=130)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
