"""JSON reports and pictures of the commands."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._lm import versions


def as_json(values: Mapping[str, Any]) -> Callable[[Path], Any]:
    """A function that writes ``values`` and the installed versions to a path."""
    text = json.dumps({**values, "versions": versions()}, indent=4) + "\n"
    return lambda path: path.write_text(text)


def seconds_of(parts: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the parts of a run, rounded for a report."""
    return {part: round(value, 3) for part, value in parts.items()}


class Panel:
    """One diagram: its lines over the same places, and how its axes are called.

    Args:
        xlabel: What stands below the places.
        ylabel: What is drawn.
        lines: By their titles, the values; None where there is none.
        places: Names of the places, or numbers.
        log: Whether the values are drawn logarithmically.
    """

    def __init__(
        self,
        xlabel: str,
        ylabel: str,
        lines: Mapping[str, Sequence[float | None]],
        places: Sequence[str] | Sequence[int],
        log: bool = False,
    ) -> None:
        self.xlabel, self.ylabel, self.lines, self.places, self.log = xlabel, ylabel, lines, places, log


def picture(title: str, panels: Sequence[Panel]) -> Callable[[Path], Any]:
    """A function that draws the panels, one below the other, to a path."""

    def draw(path: Path) -> None:
        # matplotlib's object interface needs no display and leaves its global state alone.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        widest = max(len(panel.places) for panel in panels)
        figure = Figure(figsize=(min(max(7.0, 0.12 * widest + 3), 30), 3.8 * len(panels)), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title)
        for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
            at = range(len(panel.places))
            for name, values in panel.lines.items():
                axes.plot(at, [float("nan") if v is None else v for v in values], "o-", ms=4, label=name)
            step = max(1, len(panel.places) // 40)
            axes.set_xticks(list(at)[::step], [str(place) for place in panel.places][::step])
            axes.tick_params(axis="x", rotation=90 if isinstance(panel.places[0], str) and len(panel.places) > 6 else 0)
            axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel, yscale="log" if panel.log else "linear")
            axes.grid(alpha=0.3)
            axes.legend()
        figure.savefig(path, dpi=120)

    return draw


def short_names(names: Sequence[str]) -> list[str]:
    """Layer names without the part that all have in common: ``"0.self_attn.q_proj"``."""
    parts = [name.split(".") for name in names]
    common = 0
    while all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    return [".".join(p[common:]) for p in parts]
