"""`LogisticReadout.fit` beside scikit-learn's lbfgs: `python -m benchmarks.logistic [STATES.npz]`, some minutes.

3,000 rows, 576 features, 26 classes. Both run in turn in one process; times are CPU seconds, medians of three. "Equal
tolerance" is the norm of the gradient of F that is reached: lbfgs runs at its default tolerance, and at the first one
at which its gradient is no larger than ours or, where there is none, at the last one that makes it smaller. The
probabilities of both are compared with those of lbfgs in float64 with tol=1e-12, which stands for the minimizer.
A second table has the times of both to the smallest gradient that lbfgs reaches, ours with a looser accuracy.
`STATES.npz` holds states of a language model, `f` (layers, rows, 576), of which the last layer counts, and `labels`.
"""

import sys
import time
import warnings
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
from sklearn.linear_model import LogisticRegression

from pinvnn.nn import LogisticReadout
from pinvnn.nn._logistic_rows import Rows

ROWS, FEATURES, CLASSES = 3000, 576, 26
TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-8, 1e-10)


def clusters():
    """Classes of unequal size about means, in directions of unequal length: separable."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(FEATURES, FEATURES)))[0]
    means = rng.normal(size=(CLASSES, FEATURES)) * 1.2 * (rng.random((CLASSES, FEATURES)) < 0.3)
    y = rng.choice(CLASSES, ROWS, p=rng.dirichlet(np.ones(CLASSES)))
    y[:CLASSES] = np.arange(CLASSES)
    x = (means[y] + rng.normal(size=(ROWS, FEATURES))) * np.arange(1, FEATURES + 1) ** -0.7 @ turn
    return standardised(x), y


def teacher():
    """Standard normal features, and classes drawn from a logistic model."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, FEATURES))
    logits = 2 * x @ rng.normal(size=(FEATURES, CLASSES)) / FEATURES**0.5
    return x.astype(np.float32), (logits + rng.gumbel(size=(ROWS, CLASSES))).argmax(axis=1)


def noise():
    """Standard normal features, and labels that have nothing to do with them."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(ROWS, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, ROWS)


def standardised(x):
    return ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)


def objective_and_gradient(x, y, l2, weight, bias):
    """F and the norm of its gradient, in float64."""
    x, weight, bias = (np.asarray(v, np.float64) for v in (x, weight, bias))
    v = x @ weight.T + bias
    v -= v.max(axis=1, keepdims=True)
    p, rows = np.exp(v) / np.exp(v).sum(axis=1, keepdims=True), np.arange(len(y))
    value = (np.log(np.exp(v).sum(axis=1)) - v[rows, y]).sum() + l2 / 2 * np.sum(weight**2)
    p[rows, y] -= 1
    return value, np.sqrt(np.sum((p.T @ x + l2 * weight) ** 2) + np.sum(p.sum(axis=0) ** 2))


def timed(fit):
    start = time.process_time()
    fitted = fit()
    return time.process_time() - start, fitted


def compare(name, x, y, l2, dtype, exact):
    """Print one line of the table for lbfgs at its default tolerance, and one at ours; ``exact`` probabilities."""
    x, classes = x.astype(dtype), int(y.max()) + 1
    rows, labels = mx.array(x, dtype=getattr(mx, dtype)), mx.array(y)

    def ours():
        return timed(lambda: LogisticReadout(x.shape[1], classes, l2=l2).fit(rows, labels))

    def theirs(tol):
        model = LogisticRegression(C=1 / l2, tol=tol, max_iter=2000)
        return timed(lambda: model.fit(x, y))

    def reached(model):
        return objective_and_gradient(x, y, l2, model.coef_, model.intercept_)

    readout = ours()[1]
    value, gradient = objective_and_gradient(x, y, l2, readout.weight, readout.bias)
    apart = np.abs(np.array(readout.predict_proba(rows)) - exact).max()
    equal, best = None, np.inf
    for tol in TOLERANCES:
        now = reached(theirs(tol)[1])[1]
        if not now < 0.9 * best:
            break
        equal, best = tol, now
        if now <= gradient:
            break
    for tol in (1e-4, equal):
        pairs = [(ours()[0], theirs(tol)) for _ in range(3)]
        model = pairs[0][1][1]
        their_value, their_gradient = reached(model)
        times = np.median([p[0] for p in pairs]), np.median([p[1][0] for p in pairs])
        theirs_apart = np.abs(model.predict_proba(x) - exact).max()
        print(
            f"| {name} | {dtype} | {l2:g} | {times[0]:.2f} | {gradient:.1e} | {apart:.1e} | {tol:g} | {times[1]:.2f} "
            f"| {their_gradient:.1e} | {theirs_apart:.1e} | {their_value / value - 1:.1e} |",
            flush=True,
        )


@contextmanager
def loose(bound):
    """Fits of large problems end where a bound of the Newton decrement is ``bound`` F."""
    exact = Rows.accuracy
    Rows.accuracy = property(lambda p: exact.fget(p)._replace(bound=bound))
    yield
    Rows.accuracy = exact


def compare_at_equal_gradients(name, x, y, l2, dtype):
    """Print one line of the second table."""
    x, classes = x.astype(dtype), int(y.max()) + 1
    rows, labels = mx.array(x, dtype=getattr(mx, dtype)), mx.array(y)

    def theirs(tol):
        return timed(lambda: LogisticRegression(C=1 / l2, tol=tol, max_iter=2000).fit(x, y))

    def ours(bound):
        with loose(bound):
            return timed(lambda: LogisticReadout(x.shape[1], classes, l2=l2).fit(rows, labels))

    reached = {}
    for tol in TOLERANCES:
        model = theirs(tol)[1]
        reached[objective_and_gradient(x, y, l2, model.coef_, model.intercept_)[1]] = tol
    goal = min(reached)
    for bound in 10.0 ** np.arange(-2, -16, -0.5):
        readout = ours(bound)[1]
        gradient = objective_and_gradient(x, y, l2, readout.weight, readout.bias)[1]
        if gradient <= goal:
            break
    pairs = np.array([(ours(bound)[0], theirs(reached[goal])[0]) for _ in range(5)])
    times, ratio = np.median(pairs, axis=0), np.median(pairs[:, 0] / pairs[:, 1])
    print(
        f"| {name} | {dtype} | {l2:g} | {gradient:.1e} | {times[0]:.2f} | {goal:.1e} | {times[1]:.2f} | {ratio:.2f} |",
        flush=True,
    )


def main(paths):
    made = {"teacher": teacher(), "noise": noise(), "clusters": clusters()}
    problems = [(name, *data, l2) for name, data in made.items() for l2 in (1.0, 30.0)]
    for path in paths:
        file = np.load(path)
        problems.append(
            ("states", standardised(file["f"][-1]), np.unique(file["labels"], return_inverse=True)[1], 100.0)
        )
    print(
        "| data | dtype | l2 | pinvnn, s | gradient | off by | lbfgs tol | lbfgs, s | gradient | off by | excess of F |"
    )
    print("|" + "---|" * 11)
    for name, x, y, l2 in problems:
        wide = x.astype(np.float64)
        exact = LogisticRegression(C=1 / l2, tol=1e-12, max_iter=20000).fit(wide, y).predict_proba(wide)
        for dtype in ("float32", "float64"):
            compare(name, x, y, l2, dtype, exact)
    print("\n| data | dtype | l2 | gradient | pinvnn, s | gradient | lbfgs, s | ratio |\n|" + "---|" * 8)
    problems += [(name, *data, 0.01) for name, data in made.items()]
    for problem in problems:
        for dtype in ("float32", "float64"):
            compare_at_equal_gradients(*problem, dtype)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
