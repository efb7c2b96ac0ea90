"""The command ``repair``: from two models and some text to an adapter, a report and a picture."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlx.core as mx

from .._lm import LanguageModel, ModelLike, Split, load_model, read_texts, write_whole
from ._adapter import Adapter, applied
from ._collect import ActivationStatistics, collect
from ._compensate import check_rank, compensate, quantized_layers
from ._perplexity import perplexity_of
from ._report import Panel, as_json, picture, seconds_of, short_names

REPAIR = "repair"  # names of the report and the picture


def repair(
    model: ModelLike, original: ModelLike, data: str | Path, output: Path, *, rank: int, **options: Any
) -> str | None:
    """Write an adapter, ``repair.json`` and ``repair.png`` into ``output``; what to say, or None on other ranks than 0.

    Args:
        model: The quantized model.
        original: What it was made of.
        data: Folder with ``train.jsonl`` and, if there is one, ``valid.jsonl``.
        output: Folder to write into.
        rank: Rank of the corrections.
        **options: Of :func:`collect`.
    """
    check_rank(rank)
    length = options["max_length"]
    source, quantized = load_model(original, length), load_model(model, length)
    packed = quantized_layers(quantized.model, source.model)
    valid = Path(data) / "valid.jsonl"
    scored = read_texts(valid, source) if valid.exists() else None
    stats = collect(source, data, output=output, progress=True, **options)
    if mx.distributed.init().rank() != 0:
        return None
    start = time.perf_counter()
    with _bar(len(packed)) as bar:
        adapter = compensate(quantized.model, source.model, stats, rank, each=lambda _: bar.update())
    stats.clock.seconds["solve"] = time.perf_counter() - start
    start = time.perf_counter()
    losses = {} if scored is None else _perplexities(source, quantized, adapter, scored, options["batch_size"])
    stats.clock.seconds["perplexity"] = time.perf_counter() - start
    files = {**adapter.writers(), f"{REPAIR}.png": _picture(adapter, losses)}
    write_whole(output, {**files, f"{REPAIR}.json": as_json(_report(source, quantized, adapter, stats, losses))})
    return _table(adapter, losses, stats)


def _bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="layer", desc="solve", dynamic_ncols=True) if total else nullcontext()


def _perplexities(
    source: LanguageModel, quantized: LanguageModel, adapter: Adapter, valid: Split, batch_size: int
) -> dict[str, float]:
    """Perplexity of the original, and of the quantized model over the rank of its corrections."""
    found = {"original": perplexity_of(source, valid, batch_size)}
    for rank in sorted({0, adapter.rank // 4, adapter.rank // 2, adapter.rank}):
        with applied(adapter.truncated(rank), quantized.model):
            found[str(rank)] = perplexity_of(quantized, valid, batch_size)
    return found


def _picture(adapter: Adapter, losses: dict[str, float]) -> Any:
    errors = adapter.errors()
    lines = {"quantized": [e[0] for e in errors.values()], f"rank {adapter.rank}": [e[1] for e in errors.values()]}
    panels = [Panel("layer", "relative error of the output", lines, short_names(list(errors)), log=True)]
    if losses:
        ranks = [rank for rank in losses if rank != "original"]
        curves = {"repaired": [losses[rank] for rank in ranks], "original": [losses["original"]] * len(ranks)}
        panels.append(Panel("rank", "perplexity", curves, [int(rank) for rank in ranks]))
    return picture("A quantized model and its repair", panels)


def _report(
    source: LanguageModel,
    quantized: LanguageModel,
    adapter: Adapter,
    stats: ActivationStatistics,
    losses: dict[str, float],
) -> dict[str, Any]:
    return {
        "model": quantized.name,
        "original": source.name,
        "rank": adapter.rank,
        "layers": [
            {"layer": name, "error_before": before, "error_after": after}
            for name, (before, after) in adapter.errors().items()
        ],
        "not_repaired": list(adapter.skipped),
        "perplexity": losses or None,
        "tokens": stats.tokens,
        "seconds": seconds_of(stats.clock.seconds),
        "resumed_texts": stats.resumed,
    }


def _table(adapter: Adapter, losses: dict[str, float], stats: ActivationStatistics) -> str:
    before, after = (sum(errors) / len(errors) for errors in zip(*adapter.errors().values(), strict=True))
    lines = [f"Mean relative error of {len(adapter.names)} layers: {before:.4f} quantized, {after:.4f} repaired."]
    if adapter.skipped:
        lines.append(f"Not repaired, for want of statistics: {', '.join(adapter.skipped)}.")
    for key, value in losses.items():
        lines.append(f"perplexity {value:10.3f}  {key if key == 'original' else f'rank {key}'}")
    spent = ", ".join(f"{part} {value:.1f} s" for part, value in stats.clock.seconds.items())
    return "\n".join([*lines, f"{stats.tokens} tokens; {spent}."])
