"""Results as data, and their Markdown: a score for each rival and its difference to the reference, by pairs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np


@dataclass
class Row:
    """One data set: for each rival as many scores as there are pairs (folds, seeds, reservoirs, stretches of time).

    ``overlap`` is the number of test rows over that of training rows where the pairs are folds of cross-validation,
    whose training rows overlap (Nadeau and Bengio 2003); 0 for independent pairs.
    """

    name: str
    scores: dict[str, list[float]]
    overlap: float = 0.0


@dataclass
class Table:
    """The result of a study, or one of several: ``rows`` of scores, and the seconds of each rival for all of them."""

    title: str
    metric: str
    better: str  # "lower" or "higher"
    reference: str  # the rival to which differences are taken
    rows: list[Row]
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # by rival: what its search chose
    ratios: bool = False  # medians, and ratios in place of differences: for errors over orders of magnitude

    def asdict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict) -> Table:
        return cls(**{**found, "rows": [Row(**row) for row in found["rows"]]})


def paired(scores, reference, overlap: float = 0.0) -> tuple[float, float]:
    r"""Mean of the differences ``scores - reference``, and its standard error.

    Folds of cross-validation share training rows, and the usual variance of a mean, s^2 / n, is too small; with
    ``overlap`` it is s^2 (1 / n + n_test / n_train).

    References:
        C. Nadeau and Y. Bengio, Inference for the generalization error, Machine Learning 52 (2003), Eq. 9.
    """
    d = np.asarray(scores, float) - np.asarray(reference, float)
    if len(d) < 2:
        return float(d.mean()), float("nan")
    return float(d.mean()), float(np.sqrt(d.var(ddof=1) * (1 / len(d) + overlap)))


def markdown(table: Table) -> list[str]:
    """Lines of a Markdown table; the best score of a row is bold."""
    rivals = list(table.rows[0].scores)
    lines = [f"| {' | '.join(['', *rivals])} |", "|---" * (1 + len(rivals)) + "|"]
    for row in table.rows:
        middle = np.median if table.ratios else np.mean
        scores = {rival: float(middle(values)) for rival, values in row.scores.items()}
        best = (min if table.better == "lower" else max)(scores.values())
        cells = [_cell(table, row, rival, scores[rival], scores[rival] == best) for rival in rivals]
        lines.append(f"| {' | '.join([row.name, *cells])} |")
    if table.seconds:
        cells = [_number(table.seconds[rival], 2) for rival in rivals]
        lines.append(f"| {' | '.join(['seconds in all', *cells])} |")
    return lines


def caption(table: Table) -> str:
    what = "median" if table.ratios else "mean"
    difference = f"geometric mean of the ratios to {table.reference}" if table.ratios else (
        f"mean difference to {table.reference} by pairs")
    pairs = sorted({len(values) for row in table.rows for values in row.scores.values()})
    count = f"{pairs[0]}" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    return (f"{table.title}: {table.metric}, {table.better} is better; {what} over {count} pairs, and in brackets the "
            f"{difference}, ± its standard error.")


def _cell(table, row, rival, score, best):
    text = f"**{_number(score)}**" if best else _number(score)
    if rival == table.reference:
        return text
    if table.reference not in row.scores:
        return text
    mine, theirs = row.scores[rival], row.scores[table.reference]
    if not table.ratios:
        mean, error = paired(mine, theirs, row.overlap)
        digits = max(0, 1 - int(np.floor(np.log10(error)))) if np.isfinite(error) and error > 0 else 3
        return f"{text} ({mean:+.{min(digits, 6)}f} ± {error:.{min(digits, 6)}f})"
    mean, error = paired(np.log(mine), np.log(theirs), row.overlap)
    return f"{text} (× {np.exp(mean):.2f} ± {np.exp(mean) * error:.2f})"


def _number(x, digits=3):
    if not np.isfinite(x):
        return str(x)
    if 0 < abs(x) < 1e-3:
        return f"{x:.1e}"
    return np.format_float_positional(x, digits, unique=False, fractional=False, trim="-") if abs(x) < 10 ** digits \
        else f"{x:.0f}"
