"""LoRA trained through a closed-form readout: the model learns features for which the best readout is good.

The head is the readout of SmolLM2-135M's final norm. At each step a ridge readout is fitted to a batch of WordNet's
definitions, exactly, and its leave-one-out error (each text predicted from all the others) is differentiated through
that fit into the LoRA layers of mlx_lm.tuner. No classifier has weights of its own to train, so a handful of steps is
enough. Before and after, the readout is fitted to all training texts, and scored on texts that were never seen.

    python examples/llm_lora.py      (see llm_atlas.py for what to install, and for the environment)
"""

import argparse
import random
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from _common import SMALL, picture
from llm_atlas import INVENTED, invented_rows, prepare_model, wordnet_rows
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from pinvnn.heads import Head, HeadConfig, hidden_states, load_model
from pinvnn.nn import LeastSquaresReadout

CLASSES = sorted(INVENTED) if SMALL else "act animal artifact attribute body food location person plant state".split()


def make_head(l2: float) -> Head:
    """A head without weights yet, on the final norm."""
    source = load_model(prepare_model())
    states = hidden_states(source.model, mx.array([[0]]))
    config = HeadConfig(
        model=source.name,
        model_type=source.model_type,
        states=len(states),
        dims=states[-1].shape[-1],
        layer=len(states) - 1,
        pooling="mean",
        max_length=source.max_length,
        task="classification",
        labels=tuple(CLASSES),
        l2=l2,
    )
    return Head(config, source, LeastSquaresReadout(config.dims, len(CLASSES), l2=l2))


def targets(rows) -> mx.array:
    index = mx.array([CLASSES.index(row["label"]) for row in rows])[:, None]
    return mx.where(index == mx.arange(len(CLASSES)), 1.0, -1.0)


def features(head: Head, rows, batch_size: int = 16) -> mx.array:
    parts = []
    for first in range(0, len(rows), batch_size):
        texts = [row["text"] for row in rows[first : first + batch_size]]
        parts.append(head.features(*head.tokenize(texts)))
        mx.eval(parts[-1])
    return mx.concatenate(parts)


def accuracy(head: Head, train, test) -> float:
    """Fit the readout to all training texts; score it on the test texts."""
    head.readout.fit(features(head, train), targets(train))
    predicted = mx.argmax(head.readout(features(head, test)), axis=1)
    return float(mx.mean(predicted == mx.argmax(targets(test), axis=1)))


def loss(head: Head, rows) -> mx.array:
    """Mean squared error on each row of the readout that is fitted to the others."""
    return head.readout.loo_loss(head.features(*head.tokenize([row["text"] for row in rows])), targets(rows))


def main():
    parser = argparse.ArgumentParser(description="LoRA layers trained through a closed-form readout.")
    parser.add_argument("--iters", type=int, default=40 if SMALL else 30, help="Iterations to train for.")
    parser.add_argument("--batch-size", type=int, default=64, help="Texts a step.")
    parser.add_argument("--num-layers", type=int, default=3 if SMALL else 8, help="Number of layers to fine-tune.")
    parser.add_argument("--learning-rate", type=float, default=1e-3 if SMALL else 5e-4, help="Adam learning rate.")
    parser.add_argument("--l2", type=float, default=5.0 if SMALL else 30.0, help="Penalty of the readout.")
    args = parser.parse_args()

    mx.random.seed(0)
    rng = random.Random(0)
    rows = invented_rows(400, rng) if SMALL else [row for row in wordnet_rows() if row["label"] in CLASSES]
    rng.shuffle(rows)
    train, test = (rows[:200], rows[200:400]) if SMALL else (rows[:500], rows[500:1000])

    head = make_head(args.l2)
    before = accuracy(head, train, test)
    head.freeze()
    linear_to_lora_layers(head.model, args.num_layers, {"rank": 8, "scale": 10.0, "dropout": 0.0})
    parameters: dict[str, Any] = dict(tree_flatten(head.trainable_parameters()))
    size = sum(p.size for p in parameters.values())
    print(f"test accuracy before: {before:.3f}; training {size} LoRA parameters of the last {args.num_layers} layers")

    optimizer, step = optim.Adam(args.learning_rate), nn.value_and_grad(head, loss)
    losses = []
    for i in range(args.iters):
        value, gradient = step(head, rng.sample(train, args.batch_size))
        optimizer.update(head, gradient)
        mx.eval(head.trainable_parameters(), optimizer.state)
        losses.append(value.item())
        if (i + 1) % 10 == 0:
            print(f"Iter {i + 1}: leave-one-out loss {sum(losses[-10:]) / 10:.4f}", flush=True)
    print(f"test accuracy after:  {accuracy(head, train, test):.3f}")

    folder = picture("llm") / "lora"
    head.save(folder / "head")
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(head.trainable_parameters())))
    print(f"Wrote {folder}: the head, and the adapters that it belongs to")


if __name__ == "__main__":
    main()
