"""Features of texts that fit into memory."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from .._mlx import fail
from ._extract import Pooling, check_pooling, hidden_states, pad, pool, tokens_needed
from ._model import LanguageModel, ModelLike, load_model


def read_features(
    model: nn.Module, tokens: mx.array, lengths: mx.array, layers: Sequence[int], pooling: Pooling
) -> list[mx.array]:
    """Pooled states ``(batch, dims)`` of each of ``layers`` for one batch, lazy and differentiable."""
    states = hidden_states(model, tokens)
    return [pool(states[layer], lengths, pooling) for layer in layers]


def encode_texts(source: LanguageModel, texts: Sequence[str], pooling: Pooling, name: str) -> list[list[int]]:
    """Token ids of some texts.

    Raises:
        TypeError: ``texts`` is one string.
        ValueError: A text is empty, too short for the pooling, or refused by the tokenizer.
    """
    if isinstance(texts, str):
        fail(name, "texts must be a list of strings", "one string", "Pass [text].", TypeError)
    rows = [source.encode(text, f"text number {i}") for i, text in enumerate(texts)]
    needed = tokens_needed(pooling)
    for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
        if len(row) < needed or not text.strip():
            rule = f"texts must not be empty and have {needed} or more tokens"
            got = f"{text!r:.40} as number {i}, with {len(row)} tokens"
            fail(name, rule, got, "Leave it out, or take another pooling.")
    return rows


def check_layers(layers: Sequence[int], states: int) -> list[int]:
    """The layers counted from 0.

    Raises:
        ValueError: The model has no such layer.
    """
    for layer in layers:
        if not -states <= layer < states:
            rule = f"layer must be between {-states} and {states - 1}"
            fail("heads", rule, layer, "0 is the embedding, -1 the final norm.")
    return [layer % states for layer in layers]


def extract(
    model: ModelLike,
    texts: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    pooling: Pooling = "last",
    batch_size: int = 16,
    max_length: int = 2048,
) -> list[mx.array]:
    """Features of some texts in every layer.

    Args:
        model: A folder or repository for ``mlx_lm.load``, or the pair (model, tokenizer) that it returned.
        texts (list(str)): The texts, none empty.
        layers (list(int)): The layers: 0 is the embedding, 1 the first layer; -1 is the final norm. Default: all.
        pooling (str or int): ``"last"`` token, ``"mean"`` of the tokens, or a token position. Default: ``"last"``.
        batch_size (int): Texts in one forward pass. Default: ``16``.
        max_length (int): Longer texts are cut to this number of tokens. Default: ``2048``.

    Returns:
        list(array): For each layer ``(len(texts), dims)`` in float32, in the order of the texts.

    Raises:
        TypeError: ``texts`` is one string.
        ValueError: About the model, the layers, the pooling or a text, which the message names.
    """
    source, pooling = load_model(model, max_length), check_pooling(pooling)
    states = len(source.probe()[1])
    numbers = check_layers(range(states) if layers is None else layers, states)
    rows = encode_texts(source, texts, pooling, "extract")
    # Texts of one length in a batch need little padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts = []
    for first in range(0, len(rows), batch_size):
        batch = [rows[i] for i in order[first : first + batch_size]]
        parts.append(read_features(source.model, *pad(batch), numbers, pooling))
        mx.eval(parts[-1])
    back = mx.argsort(mx.array(order))
    return [mx.concatenate(list(layer))[back] for layer in zip(*parts, strict=True)]
