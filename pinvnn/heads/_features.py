"""Features of texts that fit into memory."""

from collections.abc import Sequence

import mlx.core as mx

from .._lm import (
    LanguageModel,
    ModelLike,
    Pooling,
    check_layers,
    check_pooling,
    load_model,
    pad,
    read_features,
    tokens_needed,
)
from .._mlx import fail


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
