"""Mackey-Glass, 84 steps ahead: scales of an echo-state network searched on one reservoir, or on eight at once.

400 units and 3,000 training steps, the task of Jaeger (2001), who reports a normalized root mean square error of
0.00028. The readout is solved for in closed form for every setting, and judged by free runs of 84 steps on series that
the fit has not seen. Both searches try 32 settings: Jaeger's, a third from the whole space, the rest around the best so
far. What they found is judged on 20 reservoirs and 50 series that no search has seen.
"""

from __future__ import annotations

import time

import numpy as np

from .reservoirs import HORIZON, Reservoirs, Scales, mackey_glass, nrmse
from .search import Log, draws
from .table import Row, Table

UNITS, TRAINING, WASHOUT = 400, 3000, 1000
TRIALS, JUDGED, TESTS, VALID, WARM = 32, 20, 50, 20, 300
PUBLISHED = 0.00028
SPACE = {"recurrent": Log(0.5, 1.6), "feedback": Log(0.2, 3.0), "bias": Log(0.05, 1.0), "leak": Log(0.2, 1.0),
         "decay": Log(0.1, 0.9), "l2": Log(1e-15, 1e-10)}


def new_series(count: int, steps: int, first: int) -> np.ndarray:
    return np.stack([mackey_glass(steps, first + i) for i in range(count)])


def search(reservoirs: Reservoirs, series, valid, washout: int, trials: int, say) -> Scales:
    """The scales of the smallest geometric mean of the error over the reservoirs; Jaeger's take part."""
    rng = np.random.default_rng(0)
    spread = np.array([0.1, 0.2, 0.2, 0.15, 0.15, 1.0])
    tried = [Scales(), *(Scales(**s) for s in draws(SPACE, max(1, trials // 3)))]
    best, least = Scales(), np.inf
    for i in range(trials):
        if i < len(tried):
            scales = tried[i]
        else:
            scales = Scales(*np.array(best) * np.exp(rng.choice([0.3, 1.0]) * spread * rng.normal(size=len(spread))))
        error = np.mean(np.log(nrmse(reservoirs, series, valid, scales, washout)))
        if error < least:  # false for NaN, where free runs diverge
            best, least = scales, error
            say(f"{reservoirs.count} reservoirs, trial {i}: {np.exp(error):.2e}")
    return best


def run(small: bool, say, only=None) -> list[Table]:
    units, training, washout, warm = (60, 700, 200, 100) if small else (UNITS, TRAINING, WASHOUT, WARM)
    trials, judged, tests, runs = (4, 2, 3, 3) if small else (TRIALS, JUDGED, TESTS, VALID)
    series = mackey_glass(training, 0)
    valid, unseen = new_series(runs, warm + HORIZON, 2000), new_series(tests, washout + HORIZON, 1000)
    scales, seconds = {"Jaeger's scales": Scales()}, {"Jaeger's scales": 0.0}
    for count in (1, 2) if small else (1, 8):
        start = time.process_time()
        name = f"searched on {count}"
        if only and name not in only:
            continue
        scales[name] = search(Reservoirs(units, range(100, 100 + count)), series, valid, washout, trials, say)
        seconds[name] = time.process_time() - start
        say(f"{name}: {scales[name]}")
    new = Reservoirs(units, range(200, 200 + judged))
    found = {name: nrmse(new, series, unseen, s, washout) for name, s in scales.items()}
    for name, errors in found.items():
        low, middle, high = np.percentile(errors, [25, 50, 75])
        verdict = "reached" if middle <= PUBLISHED else "not reached"
        say(f"{name}: quartiles {low:.2g}, {middle:.2g}, {high:.2g}; {PUBLISHED} (Jaeger 2001) is {verdict}")
    notes = {name: ", ".join(f"{k} {v:.3g}" for k, v in s._asdict().items()) for name, s in scales.items()}
    row = Row(f"{judged} reservoirs, {tests} series", {name: list(map(float, e)) for name, e in found.items()})
    return [Table(f"Mackey-Glass, {HORIZON} steps ahead", "normalized root mean square error", "lower",
                  list(scales)[-1], [row], seconds, notes, ratios=True)]
