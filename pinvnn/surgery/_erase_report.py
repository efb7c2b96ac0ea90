"""The command ``erase``: from a model and labelled text to an eraser, a report and a picture."""

import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .._lm import Dataset, ModelLike, Reader, Split, write_whole
from .._mlx import on_cpu
from ..streaming import Moments, ReadoutStatistics, gcv_moments, solve_moments
from ._erase import Erasure, run_erase
from ._eraser import Eraser
from ._perplexity import perplexity_of
from ._report import Panel, as_json, picture, seconds_of

ERASE = "erase"  # names of the report and the picture
# Penalties that are tried, relative to the mean variance of the states.
L2_GRID = tuple(10.0**exponent for exponent in range(-5, 3))


def erase_command(model: ModelLike, data: str | Path, output: Path, layer: int, **options: Any) -> str | None:
    """Write an eraser, ``erase.json`` and ``erase.png``; what to say, or None on other ranks than 0.

    Args:
        model: The model.
        data: Folder with ``train.jsonl`` and, if it exists, ``valid.jsonl``.
        output: Folder to write into.
        layer: As of :func:`erase`.
        **options: Of :func:`erase`.
    """
    found = run_erase(model, data, layer, output=output, progress=True, **options)
    reader, clock = found.reader, found.reader.clock
    if reader.rank != 0:
        return None
    reader.rank, reader.ranks = 0, 1  # the texts are scored here, whatever the number of processes
    start = time.perf_counter()
    splits = {name: split for name, split in reader.dataset.splits.items() if name in ("train", "valid")}
    scores, left = _scores(found, splits)
    losses: dict[str, float] = {}
    if "valid" in splits:
        losses["original"] = perplexity_of(reader.source, splits["valid"], reader.batch_size)
        with found.eraser.installed(reader.source.model):
            losses["erased"] = perplexity_of(reader.source, splits["valid"], reader.batch_size)
    clock.seconds["scores"] = time.perf_counter() - start
    report = {
        "model": reader.source.name,
        "layer": layer,
        "pooling": found.eraser.config.pooling,
        "task": reader.dataset.task,
        "labels": list(reader.dataset.classes),
        "cross_covariance_left": left,
        "scores": scores,
        "metric": _metric(reader.dataset),
        "perplexity": losses or None,
        "seconds": seconds_of(clock.seconds),
        "resumed_texts": found.resumed,
    }
    files = {**found.eraser.writers(), f"{ERASE}.png": _picture(scores, losses, _metric(reader.dataset))}
    write_whole(output, {**files, f"{ERASE}.json": as_json(report)})
    return _table(scores, losses, left, _metric(reader.dataset), clock.seconds)


def _metric(dataset: Dataset) -> str:
    return "accuracy" if dataset.classes else "R^2"


def erased_moments(m: Moments, eraser: Eraser) -> Moments:
    """Moments of mapped states from those of the states."""
    with on_cpu():
        weight, bias = eraser.weight.astype(mx.float64), eraser.bias.astype(mx.float64)
        return m._replace(x_mean=weight @ m.x_mean + bias, xx=weight @ m.xx @ weight.T, xy=weight @ m.xy)


def best_readout(m: Moments) -> tuple[mx.array, mx.array]:
    """The ridge readout whose penalty GCV chooses."""
    with on_cpu():
        variance = float(mx.mean(mx.diagonal(m.xx)).item()) or 1.0  # type: ignore[arg-type]
        scores = {step * variance: float(gcv_moments(m, step * variance).item()) for step in L2_GRID}  # type: ignore
        best = min(scores, key=lambda l2: (scores[l2] != scores[l2], scores[l2]))
        weight, bias = solve_moments(m, best)
        assert bias is not None
        return weight, bias


def _scores(found: Erasure, splits: dict[str, Split]) -> tuple[dict[str, dict[str, float]], float]:
    """For each file the scores of readouts of the states, of the mapped states, and of a constant; what is left.

    That is the cross-covariance of the mapped states of the training texts with their labels, relative to what it was.
    """
    before, eraser = found.statistics.moments, found.eraser
    readouts = {"original": best_readout(before), "erased": best_readout(erased_moments(before, eraser))}
    after = ReadoutStatistics(found.statistics.input_dims, found.statistics.output_dims)
    scores: dict[str, dict[str, float]] = {}
    for name, split in splits.items():
        rows: dict[str, list[mx.array]] = {key: [] for key in (*readouts, "constant", "truth")}
        for chunk in found.reader.chunks(split):
            states = {"original": chunk.features[0], "erased": eraser(chunk.features[0])}
            for key, (weight, bias) in readouts.items():
                rows[key].append(_decided(states[key] @ weight.T + bias, found.reader))
            constant = mx.broadcast_to(before.y_mean.astype(mx.float32, stream=mx.cpu), chunk.targets.shape)
            rows["constant"].append(_decided(constant, found.reader))
            rows["truth"].append(_decided(chunk.targets, found.reader))
            mx.eval([part[-1] for part in rows.values()])
            if name == "train":
                after.update(states["erased"], chunk.targets)
        arrays = {key: np.concatenate([np.array(part) for part in parts]) for key, parts in rows.items()}
        scores[name] = {key: _agreement(arrays[key], arrays["truth"], found.reader) for key in (*readouts, "constant")}
    xy, left = (np.array(m.xy) for m in (before, after.moments))
    return scores, float(np.linalg.norm(left) / (np.linalg.norm(xy) or 1.0))


def _decided(outputs: mx.array, reader: Reader) -> mx.array:
    return mx.argmax(outputs, axis=1) if reader.dataset.classes else outputs[:, 0]


def _agreement(predicted: np.ndarray, truth: np.ndarray, reader: Reader) -> float:
    if reader.dataset.classes:
        return float(np.mean(predicted == truth))
    return float(1 - np.sum((predicted - truth) ** 2) / np.sum((truth - truth.mean()) ** 2))


def _picture(scores: dict[str, dict[str, float]], losses: dict[str, float], metric: str) -> Any:
    lines = {name: list(row.values()) for name, row in scores.items()}
    panels = [Panel("readout of", metric, lines, list(next(iter(scores.values()))))]
    if losses:
        panels.append(Panel("model", "perplexity", {"valid": list(losses.values())}, list(losses)))
    return picture("Before and after a concept is erased", panels)


def _table(
    scores: dict[str, dict[str, float]], losses: dict[str, float], left: float, metric: str, seconds: dict[str, float]
) -> str:
    lines = [f"Cross-covariance of states and labels that is left: {left:.1e} of what it was."]
    for name, row in scores.items():
        lines.append(f"{metric} on {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in row.items()))
    lines += [f"perplexity {value:10.3f}  {key}" for key, value in losses.items()]
    return "\n".join([*lines, ", ".join(f"{part} {value:.1f} s" for part, value in seconds.items()) + "."])
