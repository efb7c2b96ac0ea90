"""The command ``shorten``: from a model and some text to a model with fewer layers, a report and a picture."""

import math
import time
from pathlib import Path
from typing import Any

import mlx.core as mx

from .._lm import LanguageModel, ModelLike, Split, load_model, read_texts, write_whole
from ._perplexity import perplexity_of
from ._replace import Shortened, replace_layers
from ._report import Panel, as_json, picture, seconds_of

SHORTEN = "shorten"  # names of the report and the picture


def shorten(model: ModelLike, data: str | Path, output: Path, **options: Any) -> str | None:
    """Write a shorter model, ``shorten.json`` and ``shorten.png``; what to say, or None on other ranks than 0.

    Args:
        model: The model.
        data: Folder with ``train.jsonl`` and, if there is one, ``valid.jsonl``.
        output: Folder to write into.
        **options: Of :func:`replace_layers`.
    """
    source = load_model(model, options["max_length"])
    valid = Path(data) / "valid.jsonl"
    scored = read_texts(valid, source) if valid.exists() else None
    found = replace_layers(source, data, output=output, progress=True, **options)
    if mx.distributed.init().rank() != 0:
        return None
    start = time.perf_counter()
    losses = {} if scored is None else _perplexities(source, found, scored, options["batch_size"])
    found.clock.seconds["perplexity"] = time.perf_counter() - start
    found.save(output)
    report = {
        "model": source.name,
        "removed": found.removed,
        "refitted": found.start,
        "l2": found.l2 if math.isfinite(found.l2) else None,
        "spans": [{key: None if value != value else value for key, value in fit.items()} for fit in _finite(found)],
        "perplexity": losses or None,
        "tokens": found.tokens,
        "seconds": seconds_of(found.clock.seconds),
        "resumed_texts": found.resumed,
    }
    write_whole(output, {f"{SHORTEN}.png": _picture(found, losses), f"{SHORTEN}.json": as_json(report)})
    return _table(found, losses)


def _finite(found: Shortened) -> list[dict[str, float]]:
    """The fits, with NaN for what JSON cannot hold."""
    return [{key: value if math.isfinite(value) else math.nan for key, value in fit.items()} for fit in found.fits]


def _perplexities(source: LanguageModel, found: Shortened, valid: Split, batch_size: int) -> dict[str, float]:
    losses = {"original": perplexity_of(source, valid, batch_size)}
    for name, shortened in {"dropped": found.with_l2(math.inf), "shortened": found}.items():
        with shortened.applied():
            losses[name] = perplexity_of(source, valid, batch_size)
    return losses


def _picture(found: Shortened, losses: dict[str, float]) -> Any:
    lines = {
        name: [fit[key] for fit in found.fits]
        for name, key in [("layers dropped", "dropped"), ("replaced", "fitted"), ("replaced, predicted", "predicted")]
    }
    label = f"layer before the {found.skip} that are removed"
    panels = [Panel(label, "relative error of the state", lines, [int(fit["start"]) for fit in found.fits])]
    if losses:
        removed = [0, found.skip]
        curves = {key: [losses["original"], losses[key]] for key in ("dropped", "shortened")}
        panels.append(Panel("layers removed", "perplexity", curves, removed, log=True))
    return picture(f"Layers {found.removed[0]} to {found.removed[-1]} removed", panels)


def _table(found: Shortened, losses: dict[str, float]) -> str:
    best = next(fit for fit in found.fits if fit["start"] == found.start)
    lines = [
        f"Layers {found.removed[0]} to {found.removed[-1]} removed; layer {found.start} refitted, l2 {found.l2:.3g}.",
        f"Relative error of the state: {best['dropped']:.4f} dropped, {best['fitted']:.4f} replaced, "
        f"{best['predicted']:.4f} predicted for other texts.",
    ]
    lines += [f"perplexity {value:10.3f}  {key}" for key, value in losses.items()]
    spent = ", ".join(f"{part} {value:.1f} s" for part, value in found.clock.seconds.items())
    return "\n".join([*lines, f"{found.tokens} tokens; {spent}."])
