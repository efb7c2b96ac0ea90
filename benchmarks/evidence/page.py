"""``docs/evidence.md``: its tables are those of the results, between marks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from .table import Table, caption, markdown, paired

RESULTS = Path(__file__).with_name("results")
PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"
IMAGES = PAGE.parent / "images"
_BLOCK = re.compile(r"(<!-- results of (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def rounded(found):
    """Floats to six digits: what a study prints does not need more."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return float(f"{found:.6g}") if isinstance(found, float) else found


def together(earlier: dict, later: dict) -> dict:
    """One result of two runs of a study: the rivals of the later one are added, or replace those of the earlier one."""
    found = json.loads(json.dumps(later))
    for old, new in zip(earlier["tables"], found["tables"], strict=True):
        for part in ("seconds", "notes"):
            new[part] = old[part] | new[part]
        for before, row in zip(old["rows"], new["rows"], strict=True):
            row["scores"] = before["scores"] | row["scores"]
    found["seconds"] = round(sum(found["tables"][0]["seconds"].values()))
    return found


def block(study: str) -> str:
    """What stands between the marks of a study."""
    found = json.loads((RESULTS / f"{study}.json").read_text())
    lines = []
    for entry in found["tables"]:
        table = Table.from_dict(entry)
        lines += ["", caption(table), "", *markdown(table)]
        lines += ["", "The search chose:", "", *(f"- {rival}: {note}" for rival, note in table.notes.items())] * bool(
            table.notes)
    command = f"python -m benchmarks.evidence {study}"
    lines += ["", f"![{found['tables'][0]['title']}: differences to the reference](images/evidence_{study}.png)"]
    lines += ["", f"`{command}`: {found['seconds']} seconds, {found['machine']}, {found['date']}.", "", ""]
    return "\n".join(lines)


def with_results(text: str) -> str:
    """The page with the tables of the stored results."""
    return _BLOCK.sub(lambda match: match[1] + block(match[2]) + match[3] if _known(match[2]) else match[0], text)


def _known(study):
    return (RESULTS / f"{study}.json").exists()


def draw(study: str) -> None:
    """Of each rival, how far its score is from the reference's, relative to it, with the standard error by pairs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    table = Table.from_dict(json.loads((RESULTS / f"{study}.json").read_text())["tables"][0])
    rivals = [rival for rival in table.rows[0].scores if rival != table.reference]
    figure, axes = plt.subplots(figsize=(7.5, 1.2 + 0.6 * len(table.rows)), layout="constrained")
    axes.axvline(0, color="black", linewidth=1)
    for j, rival in enumerate(rivals):
        points = [_relative(row, rival, table) for row in table.rows]
        means, errors = np.array(points).T
        places = -np.arange(len(points)) - 0.6 * (j / max(1, len(rivals) - 1) - 0.5)
        axes.errorbar(means, places, xerr=errors, fmt="o", markersize=4, capsize=2, label=rival)
    axes.set_yticks(-np.arange(len(table.rows)), [row.name for row in table.rows])
    axes.set_xscale("symlog", linthresh=0.2)
    axes.set(xlabel=f"{table.metric}, relative to {table.reference} at 0 ({table.better} is better)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / f"evidence_{study}.png", dpi=110)
    plt.close(figure)


def _relative(row, rival, table):
    mine, theirs = row.scores[rival], row.scores[table.reference]
    if table.ratios:
        mean, error = paired(np.log(mine), np.log(theirs), row.overlap)
        return np.exp(mean) - 1, np.exp(mean) * error
    mean, error = paired(mine, theirs, row.overlap)
    return mean / np.mean(theirs), error / np.mean(theirs)


def write() -> None:
    """Tables and pictures of all stored results."""
    for path in sorted(RESULTS.glob("*.json")):
        draw(path.stem)
    PAGE.write_text(with_results(PAGE.read_text()))
