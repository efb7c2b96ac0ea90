"""The studies of docs/evidence.md: they run small, keep to their rules, and the page shows their stored results."""

import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from benchmarks.evidence import drift, page, reservoirs, tabular
from benchmarks.evidence.__main__ import STUDIES
from benchmarks.evidence.search import Choice, Log, draws, nested
from benchmarks.evidence.table import Row, Table, markdown, paired
from pinvnn.nn import LeastSquaresReadout

ESTIMATORS = ("sklearn linear", "sklearn splines", "sklearn trees")
ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.example
@pytest.mark.parametrize("study", STUDIES)
def test_study_runs_small(study):
    command = [sys.executable, "-m", "benchmarks.evidence", study, "--small"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "|---" in done.stdout and "nan" not in done.stdout


def test_page_shows_the_stored_results():
    text = page.PAGE.read_text()
    assert page.with_results(text) == text, "run: python -m benchmarks.evidence --page"
    stored = {path.stem for path in page.RESULTS.glob("*.json")}
    assert stored == set(re.findall("<!-- results of (\\w+) -->", text)) and stored <= {*STUDIES}
    for study in stored:
        assert (page.IMAGES / f"evidence_{study}.png").exists()


def test_draws_cover_each_range():
    found = draws({"a": Log(1e-3, 1e3), "b": Choice((0, 1)), "c": 7}, 6)
    assert sorted(int(np.log10(s["a"]) + 3) for s in found) == [0, 1, 2, 3, 4, 5]
    assert sorted(s["b"] for s in found) == [0, 0, 0, 1, 1, 1] and {s["c"] for s in found} == {7}
    assert found == draws({"a": Log(1e-3, 1e3), "b": Choice((0, 1)), "c": 7}, 6)


def test_nested_splits():
    labels = np.repeat([0, 1, 2], [20, 30, 10])
    splits = nested(60, 5, 3, repeats=2, labels=labels)
    for repeat in (splits[:5], splits[5:]):
        assert (np.sum([s.test for s in repeat], axis=0) == 1).all()
    for split in splits:
        assert (np.sum(split.inner, axis=0) == split.train).all()
        assert np.bincount(labels[split.test]).tolist() == [4, 6, 2]


def _with_other_test_rows(data, split):
    x, y = data.x.astype(float).copy(), data.y.copy()
    x[split.test] = 3 - 2 * x[split.test]
    y[split.test] = y[split.test][::-1] if data.classes else 1000 - y[split.test]
    return tabular.Data(x, y)


@pytest.mark.parametrize(("name", "rival"), [
    (name, rival) for name in ("linnerud", "spector") for rival in (*ESTIMATORS, *tabular.HEADS.values())
    if (name, rival) not in {("spector", "projected")}  # of targets only
])
def test_nothing_is_learned_from_test_rows(name, rival):
    data = tabular.load(name)
    split = nested(len(data.x), 2, 2, labels=data.y if data.classes else None)[0]
    other = _with_other_test_rows(data, split)
    if rival in tabular.HEADS.values():
        found = [tabular.by_network(rival, d, [split], 2, 2)[0] for d in (data, other)]
    else:
        space, build = list(tabular.estimators(data).values())[ESTIMATORS.index(rival)]
        found = [tabular.by_estimator(space, build, d, [split], 2)[0] for d in (data, other)]
    np.testing.assert_allclose(found[0][split.train], found[1][split.train], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rival", drift.RIVALS)
def test_forecasts_do_not_see_the_future(rival):
    predict, space = drift.RIVALS[rival]
    settings = draws(space, 1)[0]
    x, y = drift.rows(drift.series("unemployment")[:60], 2, 4)
    later = np.where(np.arange(len(y)) < 30, y, -y)
    np.testing.assert_array_equal(predict(x, y, **settings)[:31], predict(x, later, **settings)[:31])


def test_readouts_of_reservoirs_are_the_layers():
    with mx.stream(mx.cpu):
        series, scales = reservoirs.mackey_glass(400, 0), reservoirs.Scales(l2=1e-9)
        states = reservoirs.Reservoirs(20, [3, 4]).driven(series[:-1], scales, keep=100)
        weights, bias = reservoirs.readouts(states, series[101:], scales.l2)
        for i in range(2):
            layer = LeastSquaresReadout(20, 1, l2=scales.l2).fit(
                mx.array(states[:, i], mx.float64), mx.array(series[101:], mx.float64))
            np.testing.assert_allclose(np.array(layer.weight)[0], weights[i], rtol=1e-5)
            np.testing.assert_allclose(layer.bias.item(), bias[i], rtol=1e-6)


def test_error_of_pairs():
    a, b = np.random.default_rng(0).normal(size=(2, 8))
    mean, error = paired(a, b)
    found = stats.ttest_rel(a, b)
    np.testing.assert_allclose(mean / error, found.statistic)
    np.testing.assert_allclose(paired(a, b, 0.25)[1] / error, np.sqrt(8 * (1 / 8 + 0.25)))


def test_markdown_marks_the_best_and_the_differences():
    rows = [Row("wine", {"ridge": [1.0, 3.0], "trees": [2.0, 2.0]})]
    table = Table("Tables", "error", "lower", "ridge", rows, {"ridge": 1.0, "trees": 12.34})
    assert markdown(table)[2:] == ["| wine | **2** | **2** (+0.0 ± 1.0) |", "| seconds in all | 1 | 12 |"]
    table = Table("Tables", "error", "higher", "ridge", [Row("wine", {"ridge": [1.0, 1.0], "trees": [2.0, 2.0]})],
                  ratios=True)
    assert markdown(table)[2:] == ["| wine | 1 | **2** (× 2.00 ± 0.00) |"]


def test_runs_of_single_rivals_are_put_together():
    def run(**scores):
        row = {"name": "wine", "overlap": 0.0, "scores": scores}
        return {"seconds": 9, "tables": [{"rows": [row], "seconds": dict.fromkeys(scores, 1.0), "notes": {}}]}

    found = page.together(run(a=[1.0], b=[2.0]), run(b=[3.0], c=[4.0]))
    assert found["tables"][0]["rows"][0]["scores"] == {"a": [1.0], "b": [3.0], "c": [4.0]} and found["seconds"] == 3
