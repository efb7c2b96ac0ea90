"""The benchmark harness: it runs on tiny shapes, its references are right, and its verdicts follow its rules."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cases
from benchmarks.__main__ import together
from benchmarks.exact import Exact, inverse
from benchmarks.problems import problem
from benchmarks.reference import reference
from benchmarks.targets import Row, checklist

ROOT = Path(__file__).resolve().parent.parent


def test_harness_runs(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--ops", "lstsq", "--peers", "mx.linalg,numpy,torch,jax"]
    done = subprocess.run([*command, "--out", tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "results.json").read_text())
    assert len(report["rows"]) == 2 * len(cases.QUICK_SHAPES)
    for row in report["rows"]:
        ours = row["results"]["pinvnn"]
        assert ours["turns"] == 2 and ours["errors"]["10"]["value"] < 1e-6
        assert "ms" in row["results"]["floor"] and "errors" in row["results"]["LAPACK"]
        for name in report["missing"]:
            assert f"{name}: skipped" in done.stdout
    assert "bytes" in report["memory"][0]["results"]["pinvnn"]
    assert "import pinvnn adds less than 60 ms" in done.stdout


def test_exact_products_and_inverse():
    # 1 + 2^-80 - 1 and a Hilbert matrix, whose inverse is known in integers.
    big, tiny = Exact(np.array([[1.0, 2.0**-80]])), Exact(np.array([[1.0], [1.0]]))
    assert ((big @ tiny) - Exact(np.ones((1, 1)))).hi.item() == 2.0**-80
    n = 5
    hilbert = Exact.of(1 / (np.arange(n)[:, None] + np.arange(n) + np.longdouble(1)))
    right = [[25, -300, 1050, -1400, 630], [-300, 4800, -18900, 26880, -12600], [1050, -18900, 79380, -117600, 56700],
             [-1400, 26880, -117600, 179200, -88200], [630, -12600, 56700, -88200, 44100]]
    np.testing.assert_allclose(inverse(hilbert).hi, right, rtol=1e-12)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("shape", [(1, 12, 5), (1, 5, 12), (1, 6, 6), (2, 9, 4)])
@pytest.mark.parametrize("op", ["pinv", "lstsq", "ridge"])
def test_reference(op, shape, dtype):
    """Its value is NumPy's; its gradient passes finite differences of NumPy's value."""
    data = problem(cases.Case(op, *shape, dtype), 10.0)
    a, b, bar = (data[name].astype(np.float64) for name in ("a", "b", "bar"))
    l2 = data["l2"] * np.eye(shape[2])
    value = {"pinv": lambda a, b: np.linalg.pinv(a), "lstsq": lambda a, b: np.linalg.pinv(a) @ b,
             "ridge": lambda a, b: np.linalg.solve(a.mT @ a + l2, a.mT @ b)}[op]
    found = reference(op, data)
    np.testing.assert_allclose(found[0], value(a, b), rtol=1e-10, atol=1e-12)
    rng = np.random.default_rng(0)
    steps = [rng.standard_normal(x.shape) for x in (a, b)][: len(found) - 1]
    eps = 1e-6
    shifted = [value(*(x + sign * eps * d for x, d in zip((a, b), [*steps, 0], strict=False))) for sign in (1, -1)]
    slope = sum(np.sum(g * d) for g, d in zip(found[1:], steps, strict=True))
    np.testing.assert_allclose(slope, np.sum(bar * (shifted[0] - shifted[1])) / (2 * eps), rtol=1e-6)


def test_reference_of_readout():
    data = problem(cases.Case("readout", 1, 40, 6, "float64"), 10.0)

    def loss(w, c):
        h = np.tanh(data["x"] @ w + c)
        h, y = h - h.mean(0), data["y"] - data["y"].mean(0)
        weight = np.linalg.solve(h.T @ h + data["l2"] * np.eye(6), h.T @ y)
        return (np.sum((y - h @ weight) ** 2) + data["l2"] * np.sum(weight**2)) / y.size

    value, *gradients = reference("readout", data)
    w, c, eps = data["w"], data["c"], 1e-6
    dw, dc = np.random.default_rng(0).standard_normal(w.shape), np.ones_like(c)
    np.testing.assert_allclose(value, loss(w, c), rtol=1e-12)
    slope = (loss(w + eps * dw, c + eps * dc) - loss(w - eps * dw, c - eps * dc)) / (2 * eps)
    np.testing.assert_allclose(np.sum(gradients[0] * dw) + np.sum(gradients[1] * dc), slope, rtol=1e-7)


def _row(op, shape, results, mode="backward"):
    return {"case": cases.Case(op, *shape, "float32").asdict(), "mode": mode, "results": results}


def _result(ratio, error):
    return {"ms": [1.0, ratio, 1.0], "ratio": [1.0, ratio, 1.0], "errors": {"10": {"value": 0.0, "gradient": error}}}


def test_inaccurate_rows_and_peers_do_not_count():
    results = {"pinvnn": _result(1.0, 1e-5), "LAPACK": {"errors": {"10": {"value": 0.0, "gradient": 6e-6}}},
               "torch": _result(0.5, 2e-4), "jax": _result(3.0, 5e-5)}
    row = Row(_row("lstsq", (1, 256, 64), results))
    assert row.counts and row.peers() == {"jax": 3.0}
    results["LAPACK"]["errors"]["10"]["gradient"] = 4e-6
    assert not row.counts


def test_two_runs_make_one_report():
    def run(seconds, **ratios):
        results = {op: {"pinvnn": _result(ratio, 0.0)} for op, ratio in ratios.items()}
        rows = [_row(op, (1, 256, 64), result) | {"shape": "256x64"} for op, result in results.items()]
        left_out = ["ridge 256x64 float32"]
        return {"rows": rows, "memory": [], "left_out": left_out, "command": f"{seconds}", "seconds": seconds}

    found = together(run(1, pinv=1.0, lstsq=2.0), run(2, lstsq=3.0, ridge=4.0))
    assert [Row(row).ratio("pinvnn") for row in found["rows"]] == [1.0, 3.0, 4.0]
    assert found["left_out"] == [] and found["seconds"] == 3


@pytest.mark.parametrize(("ratio", "mark"), [(25.0, "[x]"), (15.0, "[ ]")])
def test_checklist(ratio, mark):
    results = {"pinvnn": _result(1.0, 1e-6), "LAPACK": {"errors": {"10": {"value": 0.0, "gradient": 1e-6}}},
               "torch": _result(ratio, 1e-6), "gram": _result(1 / 4, 0.0)}
    memory = {"case": {"op": "ridge"}, "shape": "1000000x64", "input": 100, "results": {"pinvnn": {"bytes": 399}}}
    rows = [_row("lstsq", (1, 100_000, 64), results)]
    report = {"rows": rows, "memory": [memory], "preload": None, "imports": {}}
    lines = [str(verdict) for verdict in checklist(report)]
    assert next(x for x in lines if "over torch" in x).startswith(mark)
    assert "[x] lstsq (100000, 64) float32, forward + backward, at most 5 Gram products: 4.0" in lines
    assert "[x] ridge (1000000, 64) float32, forward + backward, peak memory below 4 times the input: 3.99" in lines
    assert next(x for x in lines if x[4:].startswith("import")).startswith("[?]")
