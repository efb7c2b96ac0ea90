"""The files and the table of an atlas: heat map, JSON report, best head."""

import json
from pathlib import Path
from typing import Any

from .._lm import versions, write_whole
from ._result import Atlas

REPORT, PICTURE, BEST_HEAD = "atlas.json", "atlas.png", "head"


def metric(result: Atlas) -> str:
    """Name of the scores: ``"accuracy"`` or ``"R^2"``."""
    return "accuracy" if result.dataset.classes else "R^2"


def report(result: Atlas) -> dict[str, Any]:
    """All of an atlas except its weights, ready for JSON."""
    best, clock = result.best, result.clock
    return {
        "model": result.source.name,
        "task": result.dataset.task,
        "metric": metric(result),
        "readout": result.readout,
        "labels": list(result.dataset.classes),
        "pooling": result.pooling,
        "longest_text": result.source.max_length,
        "data": {
            name: {"file": str(split.path), "texts": split.rows, "tokens": split.tokens, "truncated": split.truncated}
            for name, split in result.dataset.splits.items()
        },
        "l2": result.l2,
        "layers": [_layer(result, i) for i in range(len(result.layers))],
        **({} if result.ridge is None else {"ridge": [_layer(result.ridge, i) for i in range(len(result.layers))]}),
        "best": {"layer": result.layers[best], "name": result.layer_name(best), "l2": result.l2[result.chosen[best]]},
        "seconds": {part: round(seconds, 3) for part, seconds in clock.seconds.items()},
        "tokens": clock.tokens,
        "tokens_per_second": round(clock.tokens / max(clock.seconds.get("forward", 0.0), 1e-9), 1),
        "resumed_texts": result.resumed,
        "versions": versions(),
    }


def _layer(result: Atlas, index: int) -> dict[str, Any]:
    """Scores of one layer."""
    return {
        "layer": result.layers[index],
        "name": result.layer_name(index),
        "l2": result.l2[result.chosen[index]],
        "valid": None if result.valid is None else result.valid[index],
        "gcv": [value if value == value else None for value in result.gcv[index]],
        "test": None if result.test is None else result.test[index],
        **_probabilities(result, index),
    }


def _probabilities(result: Atlas, index: int) -> dict[str, Any]:
    """Scores of the probabilities of one layer; none for a regression."""
    if not result.dataset.classes:
        return {}
    names = ("scale", "valid_log_loss", "valid_calibration_error", "test_log_loss", "test_calibration_error")
    return {name: None if (part := getattr(result, name)) is None else part[index] for name in names}


def table(result: Atlas) -> str:
    """A line for each layer with its best penalty and its scores."""
    kind = metric(result)
    lines = [f"{'layer':>9}  {'l2':>8}  {'valid ' + kind:>14}  {'test ' + kind:>14}"]
    held_out = [("valid", result.valid_log_loss, result.valid_calibration_error)]
    held_out += [("test", result.test_log_loss, result.test_calibration_error)]
    for name, losses, _ in held_out:
        if losses is not None:
            lines[0] += f"  {name + ' log-loss':>14}  {name + ' ECE':>9}"
    for i in range(len(result.layers)):
        column = result.chosen[i]
        valid = "" if result.valid is None else f"{result.valid[i][column]:.4f}"
        test = "" if result.test is None else f"{result.test[i]:.4f}"
        mark = "  best" if i == result.best else ""
        line = f"{result.layer_name(i):>9}  {result.l2[column]:8.3g}  {valid:>14}  {test:>14}"
        for _, *parts in held_out:
            for part, width in zip(parts, (14, 9), strict=True):
                if part is not None:
                    value = part[i]
                    line += f"  {value[column] if isinstance(value, list) else value:{width}.4f}"
        lines.append(line + mark)
    if result.ridge is not None:
        lines = [f"{result.readout} readouts:", *lines, "ridge readouts of the same texts:", table(result.ridge)]
    return "\n".join(lines)


def seconds(result: Atlas) -> str:
    """One line on how long the parts of a run took."""
    clock = result.clock
    forward = clock.seconds.get("forward", 0.0)
    head = sum(value for part, value in clock.seconds.items() if part != "forward")
    parts = ", ".join(f"{part} {value:.2f}" for part, value in clock.seconds.items() if part != "forward")
    rate = clock.tokens / max(forward, 1e-9)
    share = 100 * head / max(forward, 1e-9)
    return (
        f"Forward passes {forward:.1f} s ({clock.tokens} tokens, {rate:.0f} a second), heads {head:.2f} s "
        f"({share:.1f} %: {parts})."
    )


def plot(result: Atlas, path: str | Path) -> None:
    """Draw a heat map of the validation scores over layers and penalties, and below it the best score of each layer.

    Args:
        result (Atlas): What to draw; its GCV scores if it has no validation scores.
        path (str): The file, in the format of its suffix.
    """
    # matplotlib's object interface needs no display and leaves its global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scores = result.gcv if result.valid is None else result.valid
    kind = "GCV" if result.valid is None else f"validation {metric(result)}"
    layers = range(len(result.layers))
    figure = Figure(figsize=(max(6.0, 0.3 * len(layers) + 2.5), 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.3, 1.0])

    image = top.imshow(list(zip(*scores, strict=True)), aspect="auto", cmap="viridis", origin="lower")
    figure.colorbar(image, ax=top, label=kind)
    step = max(1, len(result.l2) // 10)
    top.set_yticks(range(0, len(result.l2), step), [f"{value:.3g}" for value in result.l2[::step]])
    top.set_ylabel("l2")
    top.plot(result.best, result.chosen[result.best], "o", ms=9, mfc="none", mec="red", mew=2)
    name, _, _ = result.source.name.rstrip("/").rpartition("/")[::-1]
    figure.suptitle(f"{name}\n{kind} of a readout of each layer, best circled" if name else f"{kind}, best circled")

    best = [scores[i][result.chosen[i]] for i in layers]
    bottom.plot(layers, best, "o-", ms=4, label=f"{kind}, best l2")
    if result.test is not None:
        bottom.plot(layers, result.test, "s--", ms=4, label=f"test {metric(result)}, the same l2")
    bottom.set_xticks(layers, [result.layer_name(i) for i in layers], rotation=90 if len(layers) > 12 else 0)
    bottom.set_xlabel("layer")
    bottom.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)


def save(result: Atlas, folder: str | Path) -> None:
    """Write ``atlas.json``, ``atlas.png`` and the best head into ``folder``, each completely or not at all."""
    folder = Path(folder)
    result.head().save(folder / BEST_HEAD)
    text = json.dumps(report(result), indent=4) + "\n"
    write_whole(folder, {PICTURE: lambda path: plot(result, path), REPORT: lambda path: path.write_text(text)})
