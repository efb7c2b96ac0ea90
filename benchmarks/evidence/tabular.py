"""Tables: ridge, boosted trees, and a small network under a head that is trained or solved for.

Nested cross-validation: in every outer split each rival gets the same number of random settings, judged on three inner
folds, and is fitted again with the best of them; the outer fold is only predicted. A network also chooses by the inner
folds when to stop, and the prediction is the mean of four networks from different starts. A step of nn.Linear costs
about a fourth of one through a fit: it takes four times as many.
"""

from __future__ import annotations

import time
from functools import partial
from typing import NamedTuple

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler

from . import networks
from .search import Choice, Log, Split, draws, nested
from .table import Row, Table

BUDGET, STEPS, STARTS = 6, 60, 4
LARGEST = 200  # rows with labels: of larger data sets a random sample is taken, to keep the study short
HEADS = {"nn.Linear": "linear", "projected_loss": "projected", "loo_loss": "loo",
         "log_evidence": "evidence"}


class Data(NamedTuple):
    x: np.ndarray  # (m, n)
    y: np.ndarray  # (m, k), or labels (m,)

    @property
    def classes(self) -> int | None:
        return None if self.y.ndim == 2 else int(self.y.max()) + 1


def load(name: str) -> Data:
    x, y = _whole(name)
    if y.ndim == 1 and len(x) > LARGEST:
        rows = np.random.default_rng(0).choice(len(x), LARGEST, replace=False)
        x, y = x[rows], y[rows]
    return Data(x, y)


def _whole(name: str) -> Data:
    import statsmodels.api as sm
    from sklearn import datasets

    if name in ("linnerud", "diabetes", "wine", "breast cancer"):
        x, y = getattr(datasets, f"load_{name.replace(' ', '_')}")(return_X_y=True)
        return Data(x, y.reshape(len(y), -1) if name in ("linnerud", "diabetes") else y)
    frame = getattr(sm.datasets, name).load_pandas().data
    if name == "grunfeld":
        firms = frame.pop("firm")
        frame = frame.assign(**{firm: (firms == firm) * 1.0 for firm in firms.unique()})
    if name == "star98":  # the share of pupils above the median in mathematics
        above, below = frame.pop("NABOVE"), frame.pop("NBELOW")
        frame = frame.assign(share=above / (above + below))
    target = {"statecrime": "murder", "ccard": "AVGEXP", "grunfeld": "invest", "star98": "share",
              "spector": "GRADE", "anes96": "vote"}[name]
    y = frame.pop(target).to_numpy(float)
    return Data(frame.to_numpy(float), y.astype(int) if name in ("spector", "anes96") else y[:, None])


def misfit(predicted, data: Data, rows) -> float:
    """Mean square error over the variance of the target; of labels the cross-entropy."""
    found, wanted = predicted[rows], data.y[rows]
    if data.classes:
        return float(-np.log(np.maximum(found[np.arange(len(wanted)), wanted], 1e-6)).mean())
    return float(np.mean((found - wanted) ** 2 / data.y.var(axis=0)))


def wrong(predicted, data: Data, rows) -> float:
    return float(np.mean(predicted[rows].argmax(axis=-1) != data.y[rows]))


# Rivals of scikit-learn: a space and how to build the estimator.


def _linear(classes, alpha=None, knots=0):
    """RidgeCV finds its penalty by leave-one-out among 61, whatever the budget; LogisticRegression is given one."""
    maps = [SplineTransformer(knots, extrapolation="linear"), StandardScaler()] if knots else []
    model = LogisticRegression(C=1 / alpha, max_iter=1000) if classes else RidgeCV(np.logspace(-2, 4, 61))
    return make_pipeline(StandardScaler(), *maps, model)


def _trees(classes, targets, **settings):
    if classes:
        return HistGradientBoostingClassifier(**settings, random_state=0)
    model = HistGradientBoostingRegressor(**settings, random_state=0)
    return MultiOutputRegressor(model) if targets > 1 else model


TREES = {"learning_rate": Log(0.03, 0.5), "max_iter": Choice((25, 50, 100)), "max_leaf_nodes": Choice((3, 6, 15)),
         "min_samples_leaf": Choice((2, 5, 20)), "l2_regularization": Log(1e-2, 10.0)}


def estimators(data: Data):
    """Name: (space, estimator from settings)."""
    linear = "LogisticRegression" if data.classes else "RidgeCV"
    targets = 1 if data.classes else data.y.shape[1]
    alpha = {"alpha": Log(1e-3, 1e3)} if data.classes else {}
    return {
        linear: (alpha, partial(_linear, data.classes)),
        f"{linear}, splines": (alpha | {"knots": Choice((3, 4, 5, 6))}, partial(_linear, data.classes)),
        "boosted trees": (TREES, partial(_trees, data.classes, targets)),
    }


def _fitted(model, data: Data, train) -> np.ndarray:
    y = data.y[:, 0] if data.y.ndim == 2 and data.y.shape[1] == 1 else data.y
    model.fit(data.x[train], y[train])
    if data.classes:
        found = np.zeros((len(data.x), data.classes))
        found[:, model.classes_] = model.predict_proba(data.x)
        return found
    return model.predict(data.x).reshape(len(data.x), -1)


def by_estimator(space, build, data: Data, splits: list[Split], budget: int) -> list[np.ndarray]:
    """Predictions of all rows for each outer split."""
    tried, found = draws(space, budget if space else 1), []
    for split in splits:
        errors = [np.mean([misfit(_fitted(build(**s), data, split.train & ~v), data, v) for v in split.inner])
                  for s in tried]
        found.append(_fitted(build(**tried[int(np.argmin(errors))]), data, split.train))
    return found


def _trained(head, settings, data: Data, trains, steps, keep):
    """The networks after ``steps`` steps, and their predictions at each step in ``keep``; in units of the target."""
    x = np.stack([networks.standardized(data.x, t) for t in trains])
    y = np.broadcast_to(data.y, (len(trains), *data.y.shape))
    if not data.classes:
        y = np.stack([networks.standardized(data.y, t) for t in trains])
    batch = networks.Networks(head, settings, x, y, np.stack(trains), data.classes, seed=0)
    found = {}
    for i in range(1, steps + 1):
        batch.step()
        if i in keep:
            predicted = batch.predict()
            if not data.classes:
                mean, deviation = (np.stack([f(data.y[t]) for t in trains])[:, None] for f in (_mean, _deviation))
                predicted = predicted * deviation + mean
            found[i] = np.nan_to_num(predicted, nan=1 / (data.classes or 1))
    return found


def _mean(y):
    return y.mean(axis=0)


def _deviation(y):
    return y.std(axis=0)


def by_network(head: str, data: Data, splits: list[Split], budget: int, steps: int) -> list[np.ndarray]:
    """Predictions of all rows for each outer split; all settings and splits are trained as one batch."""
    steps = 4 * steps if head == "linear" else steps
    keep = sorted({max(1, steps * part // 100) for part in (10, 25, 50, 100)})
    tried = draws(networks.SPACE, budget)
    problems = [(f, s, v) for f in range(len(splits)) for s in range(budget) for v in splits[f].inner]
    trains = [splits[f].train & ~v for f, _, v in problems]
    predicted = _trained(head, [tried[s] for _, s, _ in problems], data, trains, steps, keep)
    errors = np.array([[misfit(predicted[i][p], data, v) for i in keep] for p, (_, _, v) in enumerate(problems)])
    errors = errors.reshape(len(splits), budget, -1, len(keep)).mean(axis=2)
    best = [np.unravel_index(e.argmin(), e.shape) for e in errors]
    again = [tried[s] for s, _ in best for _ in range(STARTS)]
    trains = [split.train for split in splits for _ in range(STARTS)]
    predicted = _trained(head, again, data, trains, max(keep[i] for _, i in best), keep)
    return [predicted[keep[i]][STARTS * f : STARTS * (f + 1)].mean(axis=0) for f, (_, i) in enumerate(best)]


def study(names, budget: int, outer: int, steps: int, say, only=None) -> tuple[list[Row], list[Row], dict[str, float]]:
    """Rows of misfits and of error rates, and the seconds of each rival."""
    rows, errors, seconds = [], [], {}
    for name in names:
        data = load(name)
        m, n = data.x.shape
        splits = nested(m, outer, 3, 2 if m < 100 else 1, data.y if data.classes else None)
        overlap = 1 / (outer - 1)
        rivals = {rival: partial(by_estimator, space, build) for rival, (space, build) in estimators(data).items()}
        rivals |= {f"network, {label}": partial(by_network, head) for label, head in HEADS.items()
                   if not (data.classes and head == "projected")}
        kind = f"{data.classes} classes" if data.classes else f"{data.y.shape[1]} target{'s' * (data.y.shape[1] > 1)}"
        title = f"{name} ({m} × {n}, {kind})"
        rows.append(Row(title, {}, overlap))
        errors.append(Row(title, {}, overlap))
        for rival, predict in rivals.items():
            if only and rival not in only:
                continue
            start = time.process_time()
            extra = {"steps": steps} if rival.startswith("network") else {}
            found = predict(data, splits, budget, **extra)
            seconds[rival] = seconds.get(rival, 0.0) + time.process_time() - start
            rows[-1].scores[rival] = [misfit(p, data, s.test) for p, s in zip(found, splits, strict=True)]
            if data.classes:
                errors[-1].scores[rival] = [wrong(p, data, s.test) for p, s in zip(found, splits, strict=True)]
            say(f"{title}, {rival}: {np.mean(rows[-1].scores[rival]):.4f}, {time.process_time() - start:.1f} s")
    return rows, errors, seconds


def regression(small: bool, say, only=None) -> list[Table]:
    names = ("linnerud",) if small else ("linnerud", "statecrime", "ccard", "grunfeld", "star98", "diabetes")
    rows, _, seconds = study(names, *((2, 2, 4) if small else (BUDGET, 5, STEPS)), say, only)
    return [Table("Regression on tables", "mean square error over the variance of the target", "lower",
                  "network, loo_loss", rows, seconds)]


def classification(small: bool, say, only=None) -> list[Table]:
    names = ("spector",) if small else ("spector", "wine", "breast cancer", "anes96")
    rows, errors, seconds = study(names, *((2, 2, 4) if small else (BUDGET, 5, STEPS)), say, only)
    return [Table("Classification on tables", "cross-entropy", "lower", "network, loo_loss", rows, seconds),
            Table("Classification on tables", "error rate", "lower", "network, loo_loss", errors)]
