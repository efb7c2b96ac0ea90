"""NIST's nonlinear regression problems (StRD) that are separable, with readers for their files.

`python -m tests.support.nist_nonlinear` prints the table of docs/varpro.md: VarPro against SciPy's solver on the full
problem.
"""

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from pinvnn.varpro import VarProResult, cos, exp, sin, varpro
from tests.support.cases import float64

FOLDER = Path(__file__).parent / "nist_nonlinear"


@dataclass(frozen=True)
class Problem:
    """A separable problem; NIST's b1, b2, ... are b[0], b[1], ... here.

    `basis(alpha, x)` has alpha = split(b)[0] and linear parameters split(b)[1]. Where these are no entries of b, `join`
    goes back.
    """

    name: str
    basis: Callable
    nonlinear: list[int]  # of b
    response: Callable = lambda y: y
    split: Callable | None = None
    join: Callable | None = None
    terms: tuple[tuple[int, ...], ...] = ()  # of b: terms that may change places, as the exponentials of a sum may
    named: bool = False  # one of the eight that must agree to 6 digits

    def read(self) -> "Data":
        return read(FOLDER / f"{self.name}.dat")

    def parts(self, b: mx.array) -> tuple[mx.array, mx.array]:
        if self.split:
            return self.split(b)
        linear = [i for i in range(b.size) if i not in self.nonlinear]
        return b[mx.array(self.nonlinear)], b[mx.array(linear)]

    def whole(self, alpha: mx.array, linear: mx.array) -> mx.array:
        if self.join:
            return self.join(alpha, linear)
        order = self.nonlinear + [i for i in range(alpha.size + linear.size) if i not in self.nonlinear]
        return mx.concatenate([alpha, linear])[mx.array(np.argsort(order))]

    def arranged(self, b: np.ndarray, certified: np.ndarray) -> np.ndarray:
        """The order of b's entries in which its terms are those of the certified values."""
        best = np.arange(b.size)
        if not self.terms:
            return best
        for order in itertools.permutations(self.terms):
            indices = np.arange(b.size)
            indices[np.ravel(self.terms)] = np.ravel(order)
            if digits(b[indices], certified) > digits(b[best], certified):
                best = indices
        return best


@dataclass(frozen=True)
class Data:
    y: np.ndarray
    x: np.ndarray  # (m,) or (predictors, m)
    starts: np.ndarray  # (2, p)
    certified: np.ndarray
    standard_errors: np.ndarray
    rss: float
    residual_std: float


def read(path: Path) -> Data:
    text = path.read_text().splitlines()
    rows = [re.findall(r"=(.*)", line)[0].split() for line in text if re.match(r"\s*b\d+\s*=", line)]
    table = np.array(rows, dtype=float)

    def stated(label: str) -> float:
        return float(next(line for line in text if line.startswith(label)).split(":")[1])

    first = max(i for i, line in enumerate(text) if line.startswith("Data:")) + 1
    values = np.array([line.split() for line in text[first:] if line.strip()], dtype=float).T
    return Data(
        y=values[0],
        x=values[1] if len(values) == 2 else values[1:],
        starts=table[:, :2].T,
        certified=table[:, 2],
        standard_errors=table[:, 3],
        rss=stated("Residual Sum of Squares"),
        residual_std=stated("Residual Standard Deviation"),
    )


def digits(values, certified) -> float:
    """The least number of digits in which the values agree with the certified ones, which have 11."""
    error = np.abs(np.asarray(values) - certified) / np.abs(certified)
    return float(np.min(np.minimum(-np.log10(np.maximum(error, 1e-300)), 11)))


def columns(*parts) -> mx.array:
    shape = next(part for part in parts if isinstance(part, mx.array)).shape
    return mx.stack([mx.broadcast_to(mx.array(part, dtype=mx.float64), shape) for part in parts], axis=-1)


def ratio(x, numerator: int, a) -> mx.array:
    """x^i / (1 + a_0 x + a_1 x^2 + ...), i < numerator."""
    below = 1 + sum(a[i] * x ** (i + 1) for i in range(a.size))
    return columns(*[x**i / below for i in range(numerator)])


def gauss(a, x):
    return columns(exp(-a[0] * x), exp(-(((x - a[1]) / a[2]) ** 2)), exp(-(((x - a[3]) / a[4]) ** 2)))


def lanczos(a, x):
    return columns(*[exp(-a[i] * x) for i in range(3)])


def offset(a, x):
    return columns(mx.ones_like(x), exp(-a[0] * x), exp(-a[1] * x))


def enso(a, x):
    periods = (12.0, a[0], a[1])
    waves = [wave(2 * math.pi * x / period) for period in periods for wave in (cos, sin)]
    return columns(mx.ones_like(x), *waves)


def chwirut(a, x):  # b = (a0, 1 / c, a1 / c)
    return columns(exp(-a[0] * x) / (1 + a[1] * x))


CHWIRUT = dict(
    basis=chwirut,
    nonlinear=[],
    split=lambda b: (mx.stack([b[0], b[2] / b[1]]), 1 / b[1:2]),
    join=lambda a, c: mx.stack([a[0], 1 / c[0], a[1] / c[0]]),
)

PROBLEMS = [
    Problem("Misra1a", lambda a, x: columns(1 - exp(-a[0] * x)), [1], named=True),
    Problem("DanWood", lambda a, x: columns(x ** a[0]), [1], named=True),
    Problem("Lanczos3", lanczos, [1, 3, 5], terms=((0, 1), (2, 3), (4, 5)), named=True),
    Problem("Gauss1", gauss, [1, 3, 4, 6, 7], named=True),
    Problem("ENSO", enso, [3, 6], named=True),
    Problem("MGH17", offset, [3, 4], terms=((1, 3), (2, 4)), named=True),
    Problem("Kirby2", lambda a, x: ratio(x, 3, a), [3, 4], named=True),
    Problem(
        "Nelson", lambda a, x: columns(mx.ones_like(x[0]), -x[0] * exp(-a[0] * x[1])), [2], response=np.log, named=True
    ),
    Problem("Misra1b", lambda a, x: columns(1 - (1 + a[0] * x / 2) ** -2), [1]),
    Problem("Misra1c", lambda a, x: columns(1 - (1 + 2 * a[0] * x) ** -0.5), [1]),
    Problem(
        "Misra1d",
        lambda a, x: columns(x / (1 + a[0] * x)),
        [],
        split=lambda b: (b[1:2], b[:1] * b[1:2]),
        join=lambda a, c: mx.concatenate([c / a, a]),
    ),
    Problem("Chwirut1", **CHWIRUT),
    Problem("Chwirut2", **CHWIRUT),
    Problem("Lanczos1", lanczos, [1, 3, 5], terms=((0, 1), (2, 3), (4, 5))),
    Problem("Lanczos2", lanczos, [1, 3, 5], terms=((0, 1), (2, 3), (4, 5))),
    Problem("Gauss2", gauss, [1, 3, 4, 6, 7]),
    Problem("Gauss3", gauss, [1, 3, 4, 6, 7]),
    Problem("Hahn1", lambda a, x: ratio(x, 4, a), [4, 5, 6]),
    Problem("Thurber", lambda a, x: ratio(x, 4, a), [4, 5, 6]),
    Problem(
        "MGH09",
        lambda a, x: columns(x**2 / (x**2 + x * a[0] + a[1]), x / (x**2 + x * a[0] + a[1])),
        [],
        split=lambda b: (b[2:], mx.stack([b[0], b[0] * b[1]])),
        join=lambda a, c: mx.stack([c[0], c[1] / c[0], a[0], a[1]]),
    ),
    Problem("MGH10", lambda a, x: columns(exp(a[0] / (x + a[1]))), [1, 2]),
    Problem("BoxBOD", lambda a, x: columns(1 - exp(-a[0] * x)), [1]),
    Problem("Rat42", lambda a, x: columns(1 / (1 + exp(a[0] - a[1] * x))), [1, 2]),
    Problem("Rat43", lambda a, x: columns((1 + exp(a[0] - a[1] * x)) ** (-1 / a[2])), [1, 2, 3]),
    Problem(
        "Eckerle4",
        lambda a, x: columns(exp(-0.5 * ((x - a[1]) / a[0]) ** 2)),
        [],
        split=lambda b: (b[1:], b[:1] / b[1:2]),
        join=lambda a, c: mx.concatenate([c * a[0], a]),
    ),
    Problem("Bennett5", lambda a, x: columns((a[0] + x) ** (-1 / a[1])), [1, 2]),
]


NAMED = [problem for problem in PROBLEMS if problem.named]


@dataclass(frozen=True)
class Agreement:
    """How a fit compares with the certified values."""

    result: VarProResult
    b: float  # digits
    standard_errors: float
    rss: float
    residual_std: float


def fit(problem: Problem, start: int, **options) -> Agreement:
    """VarPro from NIST's start 1 or 2."""
    data = problem.read()
    x, y = float64(data.x), float64(problem.response(data.y))
    with mx.stream(mx.cpu):
        alpha, _ = problem.parts(float64(data.starts[start - 1]))
        mx.eval(alpha)
    result = varpro(problem.basis, alpha, y, inputs=(x,), **options)
    with mx.stream(mx.cpu):
        # From (alpha, linear) to b, and the standard errors with it.
        parts = [result.alpha, result.linear]
        b = np.array(problem.whole(*parts))
        units = np.eye(b.size)
        tangents = [[float64(unit[: alpha.size]), float64(unit[alpha.size :])] for unit in units]
        slopes = [mx.jvp(problem.whole, parts, tangent)[1][0] for tangent in tangents]
        root = np.stack([np.array(slope) for slope in slopes], axis=1)
    errors = np.sqrt(np.diag(root @ np.array(result.covariance) @ root.T))
    order = problem.arranged(b, data.certified)
    return Agreement(
        result,
        digits(b[order], data.certified),
        digits(errors[order], data.standard_errors),
        digits(result.rss.item(), data.rss),
        digits(result.residual_std.item(), data.residual_std),
    )


def full_problem(problem: Problem, start: int) -> tuple[float, int]:
    """SciPy on all parameters at once: digits of agreement, and evaluations of residual and Jacobian together."""
    from scipy.optimize import least_squares

    data = problem.read()
    x, y = float64(data.x), problem.response(data.y)

    def model(b):
        alpha, linear = problem.parts(b)
        return problem.basis(alpha, x) @ linear

    def residual(b):
        with mx.stream(mx.cpu):
            return np.array(model(float64(b))) - y

    def jacobian(b):
        with mx.stream(mx.cpu):
            slopes = [mx.jvp(model, [float64(b)], [float64(unit)])[1][0] for unit in np.eye(len(b))]
            return np.stack([np.array(slope) for slope in slopes], axis=1)

    tolerances = dict(ftol=1e-15, xtol=1e-15, gtol=1e-15)
    try:
        with np.errstate(over="ignore"):
            found = least_squares(residual, data.starts[start - 1], jacobian, method="trf", x_scale="jac", **tolerances)
    except ValueError:  # The residual is not finite.
        return -np.inf, 0
    return digits(found.x[problem.arranged(found.x, data.certified)], data.certified), found.nfev + found.njev


def full_problem_within(problem: Problem, linear: list[int], size: np.ndarray) -> float:
    """SciPy's least sum of squares with the ``linear`` entries of b within +- ``size``, from the certified values."""
    from scipy.optimize import least_squares

    data = problem.read()
    x, y = float64(data.x), problem.response(data.y)
    upper = np.full(len(data.certified), np.inf)
    upper[linear] = size

    def residual(b):
        with mx.stream(mx.cpu):
            alpha, coefficients = problem.parts(float64(b))
            return np.array(problem.basis(alpha, x) @ coefficients) - y

    start = np.clip(data.certified, -upper * (1 - 1e-9), upper * (1 - 1e-9))
    tolerances = dict(ftol=1e-15, xtol=1e-15, gtol=1e-15, max_nfev=2000)
    found = least_squares(residual, start, "3-point", (-upper, upper), x_scale=np.abs(data.certified), **tolerances)
    return 2 * float(found.cost)


def main() -> None:
    """Print the table of docs/varpro.md."""
    print("| problem | start | digits: b | standard errors | rss | evaluations | SciPy: digits of b | evaluations |")
    print("|---|---|---|---|---|---|---|---|")
    for problem in PROBLEMS:
        for start in (1, 2):
            ours, (theirs, evaluations) = fit(problem, start), full_problem(problem, start)
            name = f"**{problem.name}**" if problem.named else problem.name
            cells = [name, start, *(f"{max(d, 0):.1f}" for d in (ours.b, ours.standard_errors, ours.rss))]
            cells += [sum(ours.result.evaluations), f"{max(theirs, 0):.1f}", evaluations]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
