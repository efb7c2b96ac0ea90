"""How well a language model predicts some text."""

import math
from pathlib import Path

import mlx.core as mx

from .._lm import LanguageModel, ModelLike, Split, TextReader, load_model, pad, read_texts
from .._mlx import fail


def perplexity(
    model: ModelLike, data: str | Path, *, batch_size: int = 16, max_length: int = 2048, progress: bool = False
) -> float:
    """Perplexity: the exponential of the mean cross-entropy of every token of a text but the first, given those before.

    Args:
        model: A folder or repository for ``mlx_lm.load``, or the pair (model, tokenizer) that it returned.
        data (str): A ``.jsonl`` file with one object with the key ``text`` a line, or a folder with ``train.jsonl``.
        batch_size (int): Texts in one forward pass. Default: ``16``.
        max_length (int): Longer texts are cut to this number of tokens. Default: ``2048``.
        progress (bool): Whether to show a progress bar. Default: ``False``.

    Returns:
        float: The perplexity; infinity if it exceeds what a number holds.

    Raises:
        ValueError: About the data (the message names file and line) or the model.
    """
    source = load_model(model, max_length)
    return perplexity_of(source, read_texts(data, source), batch_size, progress)


def perplexity_of(source: LanguageModel, split: Split, batch_size: int, progress: bool = False) -> float:
    """:func:`perplexity` of a file that was read and checked."""
    reader = TextReader(source, batch_size, progress=progress)
    loss, count = 0.0, 0
    for texts in reader.texts(split):
        for _, encoded in reader.batches(texts):
            if max(map(len, encoded)) < 2:
                continue
            tokens, lengths = pad(encoded)
            logits = source.model(tokens[:, :-1]).astype(mx.float32)
            mine = mx.arange(tokens.shape[1] - 1) < lengths[:, None] - 1
            chosen = mx.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
            each = mx.where(mine, mx.logsumexp(logits, axis=-1) - chosen, 0.0)
            loss += float(mx.sum(each))
            count += sum(len(row) - 1 for row in encoded)
    if not count:
        rule = f"{split.path}: a text must have two or more tokens"
        fail("perplexity", rule, "none", "Pass longer texts.")
    return math.exp(loss / count) if loss / count < 700 else math.inf
