"""NIST's reference data for linear regression, as digits of agreement with the certified coefficients.

``python -m tests.support.nist_linear`` prints the table of docs/math.md.

Source: NIST Statistical Reference Datasets, Linear Least Squares Regression, https://www.itl.nist.gov/div898/strd/.
Longley's data come from the copy in statsmodels.
"""

import csv
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx
import numpy as np

import pinvnn

CERTIFIED_LONGLEY = [
    -3482258.63459582,
    15.0618722713733,
    -0.358191792925910e-01,
    -2.02022980381683,
    -1.03322686717359,
    -0.511041056535807e-01,
    1829.15146461355,
]


def longley():
    """Total employment on six collinear series and a constant, 16 years: (16, 7), condition 5e9."""
    spec = find_spec("statsmodels")
    assert spec is not None and spec.submodule_search_locations
    # The file alone: importing statsmodels takes seconds.
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "longley" / "longley.csv"
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ["GNPDEFL", "GNP", "UNEMP", "ARMED", "POP", "YEAR"]
    x = np.array([[1.0, *(float(row[c]) for c in columns)] for row in rows])
    return x, np.array([float(row["TOTEMP"]) for row in rows]), np.array(CERTIFIED_LONGLEY)


def wampler1():
    """y = 1 + x + ... + x^5 at x = 0 .. 20: (21, 6), condition 6e6."""
    x = np.vander(np.arange(21.0), 6, increasing=True)
    return x, x.sum(axis=1), np.ones(6)


DATA = {"Longley": longley, "Wampler1": wampler1}


def _wide(x):
    return mx.array(x, dtype=mx.float64)


def _pinv(x, y):
    with mx.stream(mx.cpu):
        return pinvnn.pinv(_wide(x)) @ _wide(y)


METHODS = {
    "pinvnn lstsq": lambda x, y: pinvnn.lstsq(_wide(x), _wide(y)).solution,
    "pinvnn ridge, l2=0": lambda x, y: pinvnn.ridge(_wide(x), _wide(y), 0.0),
    "pinvnn pinv": _pinv,
    "NumPy lstsq": lambda x, y: np.linalg.lstsq(x, y, rcond=None)[0],
    "NumPy pinv": lambda x, y: np.linalg.pinv(x) @ y,
}


def digits(data, method):
    """Decimal digits to which the worst coefficient agrees with the certified one, at most 15."""
    x, y, certified = DATA[data]()
    got = np.array(METHODS[method](x, y))
    worst = np.max(np.abs(got - certified) / np.abs(certified))
    return min(15.0, -float(np.log10(max(worst, 1e-300))))


if __name__ == "__main__":
    print("| | " + " | ".join(DATA) + " |\n|---|" + "---|" * len(DATA))
    for name in METHODS:
        print(f"| {name} | " + " | ".join(f"{digits(data, name):.1f}" for data in DATA) + " |")
