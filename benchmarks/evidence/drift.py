"""Online forecasts of series that drift: recursive least squares with forgetting, beside SGD and rolling refits.

Series of statsmodels, one step ahead: the next change from the last p changes and those around a season ago, in units
of their standard deviation over the first tenth; of CO2 the last 1,000 weeks. Each rival sees a row only after it has
predicted it. Eight settings of each are judged by the errors from the first tenth to the middle of the series; the best
is judged once, from the middle to the end, where pairs are ten stretches of time.
"""

from __future__ import annotations

import time

import mlx.core as mx
import numpy as np
from sklearn.linear_model import Ridge

from pinvnn.streaming import RecursiveLeastSquares

from .search import Choice, Log, draws
from .table import Row, Table

BUDGET, STRETCHES, LONGEST = 8, 10, 1000
SEASONS = {"sunspots": 11, "unemployment": 4, "El Niño": 12, "CO2": 52}


def series(name: str) -> np.ndarray:
    from statsmodels import datasets

    if name == "CO2":
        return datasets.co2.load_pandas().data["co2"].dropna().to_numpy(float)
    if name == "unemployment":
        return datasets.macrodata.load_pandas().data["unemp"].to_numpy(float)
    if name == "El Niño":
        return datasets.elnino.load_pandas().data.drop(columns="YEAR").to_numpy(float).ravel()
    return datasets.sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(float)


def rows(values: np.ndarray, lags: int, season: int) -> tuple[np.ndarray, np.ndarray]:
    """Features ``(m, n)`` and targets ``(m,)`` in the order of time; the same rows whatever the lags."""
    changes = np.diff(values)
    changes = changes / changes[: len(changes) // 10].std()
    back = [*range(1, lags + 1), *(season + k for k in (-1, 0, 1) if season + k > lags)]
    start = 2 * season + 2
    x = np.stack([changes[start - b : len(changes) - b] for b in back], axis=1)
    return x, changes[start:]


# Each rival predicts every row before it sees it: (x, y, settings) -> predictions (m,).


def recursive(x, y, l2, forget=0.0):
    model = RecursiveLeastSquares(x.shape[1], 1, l2=l2, forgetting=1 - forget)
    found = np.zeros(len(y))
    for i, (row, target) in enumerate(zip(mx.array(x, mx.float32), mx.array(y, mx.float32), strict=True)):
        found[i] = model(row).item()
        model.update(row, target)
    return found


def sgd(x, y, rate, normalized):
    weight, bias, found = np.zeros(x.shape[1]), 0.0, np.zeros(len(y))
    for i, (row, target) in enumerate(zip(x, y, strict=True)):
        found[i] = row @ weight + bias
        move = rate * (target - found[i]) / (1 + row @ row if normalized else 1)
        weight, bias = weight + move * row, bias + move
        if not np.isfinite(weight).all():
            return np.full(len(y), np.inf)
    return found


def refits(x, y, window, l2):
    """Ridge on the last ``window`` rows, again before every row."""
    found = np.zeros(len(y))
    for i in range(2, len(y)):
        part = slice(max(0, i - int(window)), i)
        found[i] = Ridge(l2).fit(x[part], y[part]).predict(x[i : i + 1])[0]
    return found


RIVALS = {
    "no model": (lambda x, y: np.zeros(len(y)), {}),
    "SGD": (sgd, {"rate": Log(1e-3, 1.0), "normalized": Choice((False, True))}),
    "refit of a window": (refits, {"window": Log(30, 1000), "l2": Log(0.1, 100.0)}),
    "recursive, no forgetting": (recursive, {"l2": Log(0.1, 100.0)}),
    "recursive, forgetting": (recursive, {"l2": Log(0.1, 100.0), "forget": Log(1e-3, 0.1)}),
}


def run(small: bool, say, only=None) -> list[Table]:
    names, budget = (("unemployment",), 2) if small else (tuple(SEASONS), BUDGET)
    found, seconds = [], {}
    for name in names:
        season = SEASONS[name]
        values = series(name)[:80] if small else series(name)[-LONGEST:]
        cut = [rows(values, lags, season) for lags in (2, season)]
        m = len(cut[0][1])
        # As for everything else that is chosen: targets before the middle only.
        first, middle = m // 10, m // 2
        found.append(Row(f"{name} ({m} steps)", {}))
        for rival, (predict, space) in RIVALS.items():
            if only and rival not in only:
                continue
            start = time.process_time()
            best = (np.inf, None, None)
            for s in draws(space | {"data": Choice((0, 1))}, budget if space else 1):
                x, y = cut[s.pop("data")]
                error = np.mean((predict(x[:middle], y[:middle], **s)[first:] - y[first:middle]) ** 2)
                if error < best[0]:
                    best = error, s, x
            _, s, x = best
            y = cut[0][1]
            judged = slice(m - (m - middle) // STRETCHES * STRETCHES, m)  # stretches of one length
            squares = (predict(x, y, **s) - y)[judged] ** 2 / np.mean(y[judged] ** 2)
            found[-1].scores[rival] = squares.reshape(STRETCHES, -1).mean(axis=1).tolist()
            seconds[rival] = seconds.get(rival, 0.0) + time.process_time() - start
            say(f"{name}, {rival}: {np.mean(squares):.4f} with {x.shape[1]} features, {s}")
    return [Table("Drifting series", "mean square error of forecasts over that of no change", "lower",
                  "recursive, forgetting", found, seconds)]
