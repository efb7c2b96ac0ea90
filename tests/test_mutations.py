"""The sign of each term of each derivative rule is flipped, one at a time, and the checks must notice.

A term is what stands in a sum, is returned, or goes into a list of parts; they are found in the syntax tree. The checks
compare the values and six derivatives of small problems with differences of NumPy's values, up to the first that is
off. A mutant is a fresh copy of the package's modules, one of them changed; no file is touched.
"""

import ast
import sys
import types
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from importlib.util import spec_from_loader
from itertools import product
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import pinvnn
from tests.support.cases import array, gaussian, inner, numpy, real, with_values
from tests.support.emulated_gpu import EmulatedGpu

PACKAGE = Path(pinvnn.__file__).parent
ROOM = "_rules"
FUNCTIONS = {
    "pinv": "_pinv", "lstsq": "_lstsq", "ridge": "_ridge", "normal_ridge": "_ridge", "normal_lstsq": "_lstsq",
    "causal_ridge_step": "_causal", "factorize": "_factorize", "LeastSquaresReadout": "nn", "LogisticReadout": "nn",
    "nnls": "_nnls", "lsq_linear": "_nnls", "gcv_moments": "streaming", "moments": "streaming",
    "mean_cross_entropy": "_rules.logistic",
}

# These build rules or hand constants on: what they return is no array.
BUILDERS = {"_eigen", "through_numpy", "value", "kept_shrinkage", "squares_and_degrees"}
# Terms whose sign no derivative can depend on, by (file, function, term), and why.
EQUIVALENT = {
    ("spectral", "_eigenvectors", "_EIGEN[twins][1](k, f, f.v)"): "V stands twice in every term",
    ("spectral", "split", "mx.zeros_like(x)"): "zero has no sign",
    ("rows", "inverse_root", "mx.stop_gradient(root)"): "W stands twice in every term",
    **{("causal", rule, "l2"): "its slope does not depend on it" for rule in ("_vjp", "_jvp")},
    ("bounded", "_either", "unknown"): "neither NaN nor zero has a sign",
    ("logistic", "softmax", "mx.max(v, axis=-1, keepdims=True)"): "a shift of all logits changes nothing",
    ("logistic", "inverse", "0 * k"): "zero has no sign",
    ("logistic", "_like_penalty", "x[..., n:, :]"): "the penalty of the intercept is constant",
    ("decayed", "decay_matrix", "mx.zeros_like(first)"): "zero has no sign",
    ("decayed", "prefix", "mx.zeros_like(ends[..., :1, :])"): "zero has no sign",
    ("decayed", "states", "mx.ones_like(faded[..., :1])"): "the decay before the start, of a sum that is zero",
}


# --- Mutants ----------------------------------------------------------------------------------------------------------


def is_sum(node):
    return isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub))


def is_array(node):
    """Whether this may be one: no list, tuple, plain number or truth value."""
    if isinstance(node, ast.IfExp):
        return is_array(node.body) and is_array(node.orelse)
    if isinstance(node, ast.BinOp):
        return is_array(node.left) or is_array(node.right)
    others = (ast.BoolOp, ast.Compare, ast.List, ast.Tuple, ast.ListComp, ast.Constant, ast.Starred, ast.GeneratorExp)
    return not isinstance(node, others)


class Terms(ast.NodeVisitor):
    """Collects (parent, field, index) of the terms of a function."""

    def __init__(self):
        self.found = []

    def add(self, parent, field, index=None):
        node = get(parent, field, index)
        if is_array(node) and not is_sum(node):
            self.found.append((parent, field, index))

    def visit_BinOp(self, node):
        if is_sum(node) and is_array(node.left) and is_array(node.right):
            self.add(node, "left")
            self.add(node, "right")
        self.generic_visit(node)

    def visit_Return(self, node):
        if isinstance(node.value, ast.Tuple):
            for i in range(len(node.value.elts)):
                self.add(node.value, "elts", i)
        elif node.value is not None:
            self.add(node, "value")
        self.generic_visit(node)

    def visit_List(self, node):
        for i in range(len(node.elts)):
            self.add(node, "elts", i)
        self.generic_visit(node)

    def visit_Call(self, node):
        if isinstance(node.func, ast.Attribute) and node.func.attr == "append":
            self.add(node, "args", 0)
        self.generic_visit(node)

    def visit_Subscript(self, node):
        self.visit(node.value)  # The arithmetic of an index is no term.

    def visit_FunctionDef(self, node):
        """A function inside has an entry of its own."""


def get(parent, field, index):
    return getattr(parent, field) if index is None else getattr(parent, field)[index]


def put(parent, field, index, node):
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


@cache
def terms(name):
    """The syntax tree of a file, and its terms as (function, (parent, field, index))."""
    tree = ast.parse((PACKAGE / ROOM / f"{name}.py").read_text())
    found = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name not in BUILDERS:
            visitor = Terms()
            for statement in function.body:
                visitor.visit(statement)
            found += [(function.name, place) for place in visitor.found]
    return tree, found


def mutants(name):
    """(file, function, term) and the code of the file in which that term has the other sign."""
    tree, found = terms(name)
    for function, place in found:
        node = get(*place)
        put(*place, ast.copy_location(ast.UnaryOp(ast.USub(), node), node))
        yield (name, function, ast.unparse(node)), compile(ast.fix_missing_locations(tree), f"mutant of {name}", "exec")
        put(*place, node)


class Copy:
    """A fresh copy of the package, in which one file of the rules may have other code: a context."""

    name = "pinvnn_copy"

    def __init__(self, file=None, code=None):
        self.mutant, self.code = f"{self.name}.{ROOM}.{file}", code

    def __enter__(self):
        package = types.ModuleType(self.name)
        package.__path__ = [str(PACKAGE)]
        sys.modules[self.name] = package
        sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *error):
        sys.meta_path.remove(self)
        for key in [key for key in sys.modules if key.split(".")[0] == self.name]:
            del sys.modules[key]

    def find_spec(self, name, path=None, target=None):
        """Of the changed file alone: the others are found as always."""
        return spec_from_loader(name, self) if name == self.mutant else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(self.code, module.__dict__)

    def __getitem__(self, name):
        """One of FUNCTIONS."""
        return getattr(import_module(f"{self.name}.{FUNCTIONS[name]}"), name)

    @contextmanager
    def truncating(self):
        """Singular values below CUT are dropped by functions that take no tolerance."""
        rank = import_module(f"{self.name}._factor.rank")
        default, rank.default_rtol = rank.default_rtol, lambda *args: CUT
        try:
            yield
        finally:
            rank.default_rtol = default


# --- Checks -----------------------------------------------------------------------------------------------------------

CUT = 0.4  # Drops one singular value of each matrix below, and not a zero one.


def numpy_pinv(a, cut=CUT):
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    kept = s > cut * s[0]
    return (np.conj(vt[kept].T) / s[kept]) @ np.conj(u[:, kept].T)


def numpy_lstsq(a, b, w=None, cut=CUT):
    root = np.ones((len(a), 1)) if w is None else np.sqrt(w)[:, None]
    return numpy_pinv(root * a, cut) @ (root * b)


def numpy_residuals(a, b, w):
    return np.sum(w[:, None] * np.abs(b - a @ numpy_lstsq(a, b, w)) ** 2, axis=0)


def numpy_values(a, w):
    return np.linalg.svd(np.sqrt(w)[:, None] * a, compute_uv=False)


def numpy_ridge(a, b, l2, w):
    return numpy_normal_ridge((np.conj(a.T) * w) @ a, (np.conj(a.T) * w) @ b, l2)


def numpy_normal_ridge(k, h, l2):
    k, l2 = (k + np.conj(k.T)) / 2, np.broadcast_to(l2, h.shape)
    return np.stack([np.linalg.solve(k + np.diag(l2[:, t]), h[:, t]) for t in range(h.shape[1])], axis=1)


def numpy_normal_lstsq(k, h):
    values, v = np.linalg.eigh((k + k.T) / 2)
    kept = values > CUT**2 * values[-1]
    return (v[:, kept] / values[kept]) @ v[:, kept].T @ h


def numpy_inverse(a, w, l2):
    """(K + L)^-1, or K^+ truncated."""
    root = np.sqrt(w)[:, None] * a
    if l2 is None:
        p = numpy_pinv(root)
        return p @ p.T
    return np.linalg.inv(root.T @ root + np.diag(np.broadcast_to(l2, (a.shape[1], 1))[:, 0]))


def numpy_rows(a, b, w, l2):
    """Residuals and leverages."""
    inverse = numpy_inverse(a, w, l2)
    return b - a @ inverse @ (a.T * w) @ b, np.sum(a @ inverse * a, axis=1)


def numpy_left_out(a, b, w, l2):
    rest, leverage = numpy_rows(a, b, w, l2)
    return b - rest / (1 - w * leverage)[:, None]


def numpy_spread(a, b, w, l2):
    """Of the covariance, the first row for the first target: what Uncertainty.weight_covariance says."""
    rest, leverage = numpy_rows(a, b, w, l2)
    free = w.sum() - np.sum(w * leverage)
    return (w @ rest**2 / free)[:, None, None] * numpy_inverse(a, w, l2)


def numpy_causal(q, k, v, l2, decay):
    out, gram, cross = [], np.diag(np.full(k.shape[1], l2)), np.zeros((k.shape[1], v.shape[1]))
    for t in range(len(k)):
        gram = decay[t] * (gram - l2 * np.eye(len(gram))) + np.outer(k[t], k[t]) + l2 * np.eye(len(gram))
        cross = decay[t] * cross + np.outer(k[t], v[t])
        out.append(cross.T @ np.linalg.solve(gram, q[t]))
    return np.concatenate([np.stack(out), cross])


def causal(p, q, k, v, l2, decay):
    """The last three positions from the state that the first two left, in chunks of two, and the state at the end."""
    import_module(f"{p.name}.{ROOM}.decayed").CHUNK = 2
    first, last = zip(*(mx.split(x, [2]) for x in (q, k, v, decay)), strict=True)
    before, state = p["causal_ridge_step"](*first[:3], l2, decay=first[3])
    after, state = p["causal_ridge_step"](*last[:3], l2, state, decay=last[3])
    return mx.concatenate([before, after, state.kv])


def numpy_objective(a, b, w, l2):
    rest = w[:, None] * (b - a @ (x := numpy_ridge(a, b, l2, w))) ** 2
    return (rest.sum() + np.sum(l2 * x**2)) / b.size


def adapt(p, a, b, w=None):
    """With an intercept."""
    return p["LeastSquaresReadout"](a.shape[-1], b.shape[-1], l2=0.5).adapt(a, b, a, w)


def numpy_adapt(a, b, w):
    mean, target = (w @ x / w.sum() for x in (a, b))
    return (a - mean) @ numpy_ridge(a - mean, b - target, 0.5, w) + target


def readout(method, *args):
    """``method(layer, a, b, w)`` for a readout without an intercept whose penalty is differentiable."""

    def fn(p, a, b, w=None, l2=None):
        layer = p["LeastSquaresReadout"]
        if l2 is None:
            with p.truncating():
                return method(layer(a.shape[-1], b.shape[-1], bias=False), a, b, w)
        layer = layer(a.shape[-1], b.shape[-1], bias=False, l2=1.0, learn_l2=True)
        layer.log_l2 = mx.log(l2)
        return method(layer, a, b, w)

    return fn


def numpy_gcv(a, b, w, l2):
    rest, leverage = numpy_rows(a, b, w, l2)
    return np.mean(w.sum() * (w @ rest**2) / (w.sum() - np.sum(w * leverage)) ** 2)


def numpy_streamed_gcv(a, b, w, l2):
    """With an intercept."""
    a, b = (x - w @ x / w.sum() for x in (a, b))
    rest, leverage = numpy_rows(a, b, w, l2)
    return np.mean(w.sum() * (w @ rest**2) / (w.sum() - np.sum(w * leverage) - 1) ** 2)


def streamed_gcv(p, a, b, w, l2):
    return p["gcv_moments"](p["moments"](a, b, w), l2)


def numpy_bounded(a, b, w, l2, lower, upper):
    """The best of the solutions with each choice of variables on their bounds that keeps the others within."""
    n, root = a.shape[1], np.sqrt(w)[:, None]
    rows = np.vstack([root * a, np.sqrt(l2) * np.eye(n)])
    columns = []
    for t in range(b.shape[1]):
        right, found = np.append(root[:, 0] * b[:, t], np.zeros(n)), []
        for held in product((-1, 0, 1), repeat=n):
            free = np.array(held) == 0
            x = np.where(free, 0.0, np.where(np.array(held) < 0, lower[:, 0], upper[:, 0]))
            x[free] = np.linalg.lstsq(rows[:, free], right - rows @ x, rcond=None)[0]
            if np.all(np.isfinite(x)) and np.all(lower[:, 0] - 1e-9 <= x) and np.all(x <= upper[:, 0] + 1e-9):
                found.append((np.sum((right - rows @ x) ** 2), x))
        columns.append(min(found, key=lambda pair: pair[0])[1])
    return np.stack(columns, axis=1)


def bounded(p, a, b, w, l2, lower, upper):
    return p["lsq_linear"](a, b, (lower, upper), l2=l2, weights=w)


def numpy_shortest(a, b, w, lower, upper):
    """Of the solutions within the bounds without a penalty, the shortest."""
    n, root, columns = a.shape[1], np.sqrt(w), []
    for t in range(b.shape[1]):
        found = []
        for held in product((-1, 0, 1), repeat=n):
            free = np.array(held) == 0
            x = np.where(free, 0.0, np.where(np.array(held) < 0, lower[:, 0], upper[:, 0]))
            x[free] = np.linalg.lstsq(root[:, None] * a[:, free], root * (b[:, t] - a @ x), rcond=None)[0]
            if np.all(lower[:, 0] - 1e-9 <= x) and np.all(x <= upper[:, 0] + 1e-9):
                found.append((np.sum((root * (b[:, t] - a @ x)) ** 2), np.sum(x * x), x))
        least = min(squares for squares, _, _ in found) + 1e-9
        columns.append(min((length, i) for i, (squares, length, _) in enumerate(found) if squares <= least)[1])
        columns[-1] = found[columns[-1]][2]
    return np.stack(columns, axis=1)


def numpy_nnls(a, b, w, l2):
    n = a.shape[1]
    return numpy_bounded(a, b, w, l2, np.zeros((n, 1)), np.full((n, 1), 1e9))


LABELS = np.eye(3)[[0, 1, 2, 0, 1]]


def numpy_logistic(a, w, l2):
    """The minimizer (n, c), the probabilities and the inverse of the Hessian (n, c, n, c)."""
    n, c = a.shape[1], LABELS.shape[1]
    t, eye = np.zeros((n, c)), np.eye(c)
    for _ in range(40):
        p = np.exp(a @ t)
        p /= p.sum(axis=1, keepdims=True)
        s = w[:, None, None] * (p[:, :, None] * eye - p[:, :, None] * p[:, None, :])
        hessian = np.einsum("ij,icd,ik->jckd", a, s, a).reshape(n * c, n * c)
        hessian += np.diag(np.broadcast_to(l2, (n, c)).ravel())
        inverse = np.linalg.inv(hessian)
        t = t - (inverse @ (a.T @ (w[:, None] * (p - LABELS)) + l2 * t).ravel()).reshape(n, c)
    return t, p, s, inverse.reshape(n, c, n, c)


def numpy_logistic_objective(a, w, l2):
    t, p, *_ = numpy_logistic(a, w, l2)
    return (-w @ np.log(np.sum(p * LABELS, axis=1)) + l2 * np.sum(t * t) / 2) / len(a)


def numpy_logistic_left_out(a, w, l2):
    """Rad and Maleki's step."""
    t, p, s, inverse = numpy_logistic(a, w, l2)
    m = np.einsum("ij,jckd,ik->icd", a, inverse, a)
    step = np.linalg.solve(np.linalg.inv(m) - s, (w[:, None] * (p - LABELS))[..., None])[..., 0]
    return a @ t + step


def numpy_logistic_refits(a, w, l2):
    return np.stack([a[i] @ numpy_logistic(a, np.where(np.arange(5) == i, 0.0, w), l2)[0] for i in range(5)])


def numpy_logistic_loss(a, w, l2):
    return numpy_cross_entropy(numpy_logistic_left_out(a, w, l2), w)


def numpy_cross_entropy(v, w):
    losses = np.log(np.exp(v).sum(axis=1)) - np.sum(v * LABELS, axis=1)
    return w @ losses / w.sum()


def logistic(method):
    """``method(layer, a, labels, w)`` for a readout of three classes whose penalty is differentiable."""

    def fn(p, a, w, l2):
        layer = p["LogisticReadout"](a.shape[-1], 3, bias=False, l2=1.0, learn_l2=True)
        layer.log_l2 = mx.log(l2)
        return method(layer, a, mx.array([0, 1, 2, 0, 1]), w)

    return fn


LOGISTIC = logistic(lambda layer, *args: layer.solve(*args)[0].T)
REFITS = logistic(lambda layer, *args: layer.loo_predictions(*args))
LEFT_OUT = readout(lambda layer, a, b, w: layer.loo_predictions(a, b, w))
SPREAD = readout(lambda layer, a, b, w: layer.uncertainty(a, b, w).weight_covariance)
OBJECTIVE = readout(lambda layer, a, b, w: layer.projected_loss(a, b, w))
ONES = np.ones(5)


def numpy_logdet(a, l2, w):
    return np.linalg.slogdet((np.conj(a.T) * w) @ a + np.diag(np.broadcast_to(l2, (a.shape[1], 1))[:, 0]))[1]


# name: (a function of the copy, the same in NumPy, letters of its arguments)
PROBLEMS = {
    "pinv": (lambda p, a: p["pinv"](a, rtol=CUT), numpy_pinv, "a"),
    "full pinv": (lambda p, a: p["pinv"](a), partial(numpy_pinv, cut=1e-6), "a"),
    "lstsq": (lambda p, a, b: p["lstsq"](a, b, rtol=CUT).solution, numpy_lstsq, "ab"),
    "full lstsq": (lambda p, a, b: p["lstsq"](a, b).solution, partial(numpy_lstsq, cut=1e-6), "ab"),
    "full weighted": (lambda p, *args: p["lstsq"](*args[:2], weights=args[2]).solution,
                      partial(numpy_lstsq, cut=1e-6), "abw"),
    "weighted": (lambda p, a, b, w: p["lstsq"](a, b, weights=w, rtol=CUT).solution, numpy_lstsq, "abw"),
    "residuals": (lambda p, a, b, w: p["lstsq"](a, b, weights=w, rtol=CUT).residuals, numpy_residuals, "abw"),
    "values": (lambda p, a, w: p["lstsq"](a, mx.zeros(len(a)), weights=w).singular_values, numpy_values, "aw"),
    "ridge": (lambda p, a, b, l2, w: p["ridge"](a, b, l2, weights=w, method="primal"), numpy_ridge, "ablw"),
    "dual": (lambda p, a, b, l2, w: p["ridge"](a, b, l2, weights=w, method="dual"), numpy_ridge, "ablw"),
    "dual, no weights": (lambda p, a, b, l2: p["ridge"](a, b, l2, method="dual"),
                         lambda a, b, l2: numpy_ridge(a, b, l2, np.ones(len(a))), "abl"),
    "dual, a weight 0": (lambda p, a, b, l2, w: p["ridge"](a, b, l2, weights=w, method="dual"), numpy_ridge, "ablz"),
    "feature": (lambda p, a, b, l2, w: p["ridge"](a, b, l2, weights=w), numpy_ridge, "abfw"),
    "feature and target": (lambda p, a, b, l2, w: p["ridge"](a, b, l2, weights=w), numpy_ridge, "abgw"),
    "logdet": (lambda p, a, w: p["factorize"](a, weights=w).logdet(), lambda a, w: numpy_logdet(a, 0.0, w), "aw"),
    "penalized logdet": (lambda p, a, l2, w: p["factorize"](a, weights=w, l2=l2).logdet(), numpy_logdet, "afw"),
    "normal ridge": (lambda p, k, h, l2: p["normal_ridge"]((k + k.T) / 2, h, l2), numpy_normal_ridge, "khl"),
    "normal feature": (lambda p, k, h, l2: p["normal_ridge"]((k + k.T) / 2, h, l2), numpy_normal_ridge, "khf"),
    "normal lstsq": (lambda p, k, h: p["normal_lstsq"]((k + k.T) / 2, h, rtol=CUT), numpy_normal_lstsq, "kh"),
    "left out": (LEFT_OUT, partial(numpy_left_out, l2=None), "abw"),
    "left out, no weights": (LEFT_OUT, partial(numpy_left_out, w=ONES, l2=None), "ab"),
    "left out, penalty": (lambda p, a, b, w, l2: LEFT_OUT(p, a, b, w, l2), numpy_left_out, "abws"),
    "left out, penalty, no weights": (lambda p, a, b, l2: LEFT_OUT(p, a, b, None, l2),
                                      lambda a, b, l2: numpy_left_out(a, b, ONES, l2), "abs"),
    "left out, feature": (LEFT_OUT, numpy_left_out, "abwf"),
    "spread": (SPREAD, partial(numpy_spread, l2=None), "abw"),
    "spread, penalty": (SPREAD, numpy_spread, "abws"),
    "logistic": (LOGISTIC, lambda *args: numpy_logistic(*args)[0], "aws"),
    "logistic, feature": (LOGISTIC, lambda *args: numpy_logistic(*args)[0], "awf"),
    "logistic, objective": (logistic(lambda layer, *args: layer.projected_loss(*args)),
                            numpy_logistic_objective, "aws"),
    "logistic, left out": (logistic(lambda layer, *args: layer.loo_predictions(*args, refits=0)),
                           numpy_logistic_left_out, "aws"),
    "logistic, left-out loss": (logistic(lambda layer, *args: layer.loo_loss(*args, refits=0)),
                                numpy_logistic_loss, "aws"),
    "logistic, refits": (lambda p, a, l2: REFITS(p, a, None, l2),
                         lambda a, l2: numpy_logistic_refits(a, ONES, l2), "as"),
    "logistic, mean loss": (lambda p, v: p["mean_cross_entropy"](v, mx.array(LABELS), None),
                            lambda v: numpy_cross_entropy(v, ONES), "a"),
    "gcv": (readout(lambda layer, *args: layer.gcv(*args)), numpy_gcv, "abws"),
    "gcv, truncated": (readout(lambda layer, *args: layer.gcv(*args)), partial(numpy_gcv, l2=None), "abw"),
    "gcv, streamed": (streamed_gcv, numpy_streamed_gcv, "abws"),
    "bounded": (bounded, numpy_bounded, "abwsou"),
    "bounded, from zero": (lambda p, a, b, w, l2: p["nnls"](a, b, l2=l2, weights=w), numpy_nnls, "abws"),
    "bounded, shortest": (lambda p, a, b, w, low, high: p["lsq_linear"](a, b, (low, high), weights=w),
                          numpy_shortest, "abwou"),
    "causal": (causal, numpy_causal, "qabsd"),
    "adapt": (adapt, numpy_adapt, "abw"),
    "adapt, no weights": (adapt, lambda a, b: numpy_adapt(a, b, ONES), "ab"),
    "objective, truncated": (OBJECTIVE, lambda a, b, w: np.sum(numpy_residuals(a, b, w)) / b.size, "abw"),
    "objective": (OBJECTIVE, numpy_objective, "abwl"),
    "objective, no weights": (lambda p, a, b, l2: OBJECTIVE(p, a, b, None, l2),
                              lambda a, b, l2: numpy_objective(a, b, np.ones(len(a)), l2), "abl"),
    "objective, feature": (OBJECTIVE, numpy_objective, "abwf"),
}
TOLERANCE = {mx.float64: 1e-5, mx.float32: 1e-2, mx.complex64: 1e-2}


def along_by_vjp(fn, moving, direction):
    """The derivative of ``fn`` with respect to the arguments ``moving`` along a direction, as a function again."""

    def along(*args):
        grads = mx.grad(fn, list(moving))(*args)
        return sum(inner(direction[i], g) for i, g in zip(moving, grads if len(moving) > 1 else [grads], strict=True))

    return along


def along_by_jvp(fn, moving, direction):
    """The same; to ``fn`` the other arguments are constants."""

    def along(*args):
        def moved(*some):
            full = list(args)
            for i, x in zip(moving, some, strict=True):
                full[i] = x
            return fn(*full)

        return mx.jvp(moved, [args[i] for i in moving], [direction[i] for i in moving])[1][0]

    return along


class Problem:
    """A function at a point, two directions and a cotangent, and its derivatives by differences in NumPy."""

    def __init__(self, name, shape, dtype, device="cpu"):
        self.fn, self.reference, letters = PROBLEMS[name]
        self.name, self.dtype, self.device = f"{name}, {shape}, {dtype}, {device}", dtype, device
        rng, (m, n) = np.random.default_rng(0), shape
        turn = np.linalg.qr(numpy(gaussian((m, m), dtype)))[0]
        every = {
            "a": turn @ with_values(m, n, [2.0, 1.2, 0.4]),
            "b": numpy(gaussian((m, 2), dtype, 1)),
            "w": np.linspace(0.9, 1.1, m),
            "z": np.linspace(0, 1.1, m),
            "l": np.array([0.3, 0.7]),
            "s": np.array(0.5),
            "o": np.linspace(-0.3, 0.0, n)[:, None],
            "u": np.linspace(0.1, 0.4, n)[:, None],
            "q": numpy(gaussian((m, n), dtype, 2)),
            "d": np.linspace(0.5, 0.9, m),
            "f": np.linspace(0.3, 0.7, n)[:, None],
            "g": np.linspace(0.3, 0.7, 2 * n).reshape(n, 2),
            "k": np.diag([4.0, 1.5, 0.2]) + 0.05 * rng.standard_normal((3, 3)),
            "h": rng.standard_normal((3, 2)),
        }
        self.args = [every[letter] for letter in letters]
        self.directions = [[self.like(x, rng) for x in self.args] for _ in range(2)]
        self.bar = self.like(self.reference(*self.args), rng)
        everything = tuple(range(len(letters)))
        # Which arguments move first and which second: all, each by itself, and a beside another.
        moving = {(everything, everything), *(((i,), (i,)) for i in everything)}
        moving |= {((0,), (i,)) for i in everything} | {((i,), (0,)) for i in everything}
        self.expected = {pair: self.differences(*pair) for pair in sorted(moving, reverse=True)}

    @staticmethod
    def like(x, rng):
        return rng.standard_normal(x.shape) + (1j * rng.standard_normal(x.shape) if np.iscomplexobj(x) else 0)

    def differences(self, first_moving, second_moving, h=1e-4):
        """The loss, its derivative along the first direction and its mixed one along both."""

        def loss(s, t):
            d, e = self.directions
            steps = [s * (i in first_moving) * d[i] + t * (i in second_moving) * e[i] for i in range(len(d))]
            args = [x + step for x, step in zip(self.args, steps, strict=True)]
            return np.sum(np.real(np.conj(self.bar) * self.reference(*args)))

        first = (loss(h, 0) - loss(-h, 0)) / (2 * h)
        return loss(0, 0), first, (loss(h, h) - loss(h, -h) - loss(-h, h) + loss(-h, -h)) / (4 * h * h)

    def array(self, x):
        return array(x, self.dtype if np.iscomplexobj(x) or self.dtype != mx.complex64 else real(self.dtype))

    def derivatives(self, package, first_moving, second_moving):
        """(what, its order, a function that computes it by the rules of the copy)."""
        args, bar = [self.array(x) for x in self.args], self.array(self.bar)
        d, e = ([self.array(x) for x in direction] for direction in self.directions)

        def loss(*args):
            return inner(bar, self.fn(package, *args))

        first = {"vjp": along_by_vjp(loss, first_moving, d), "jvp": along_by_jvp(loss, first_moving, d)}
        yield "value", 0, lambda: loss(*args)
        for name, fn in first.items():
            yield name, 1, lambda fn=fn: fn(*args)
        for name, fn in first.items():
            yield f"vjp of {name}", 2, lambda fn=fn: along_by_vjp(fn, second_moving, e)(*args)
            yield f"jvp of {name}", 2, lambda fn=fn: along_by_jvp(fn, second_moving, e)(*args)

    def fault(self, package):
        """What is wrong with a copy, None if nothing is."""
        if self.device == "cpu":
            with mx.stream(mx.cpu):
                return self.first_fault(package)
        with pytest.MonkeyPatch.context() as patch:
            EmulatedGpu(patch, tf32=False)
            return self.first_fault(package)

    def first_fault(self, package):
        for moving, expected in self.expected.items():
            for what, order, compute in self.derivatives(package, *moving):
                got, want = float(compute()), expected[order]
                if not abs(got - want) <= TOLERANCE[self.dtype] * max(abs(want), 1.0):
                    return f"{what} of {self.name}: got {got:.6g}, expected {want:.6g}"
        return None


def grid(names, shapes, dtypes, *device):
    return [(name, shape, dtype, *device) for dtype in dtypes for name in names for shape in shapes]


TALL, BOTH, SQUARE = [(5, 3)], [(5, 3), (3, 4)], [(3, 3)]
WIDE, NARROW = [mx.float64], [mx.complex64, mx.float32]
LSTSQ = grid(["pinv", "lstsq", "weighted"], BOTH, WIDE) + grid(["residuals", "values"], TALL, WIDE)
FULL = grid(["full pinv", "full lstsq"], BOTH, WIDE) + grid(["full weighted"], TALL, WIDE)
RIDGE = grid(["ridge", "feature", "feature and target"], BOTH, WIDE) + grid(["ridge", "feature"], TALL, NARROW)
NORMAL = grid(["normal ridge", "normal feature", "normal lstsq"], TALL, WIDE)
CHECKS = {
    "spectral": LSTSQ + FULL + NORMAL[2:] + grid(["values"], TALL, [mx.complex64]),
    "pinv": LSTSQ + FULL + grid(["pinv"], BOTH, NARROW) + grid(["pinv"], TALL, [mx.float32], "emulated GPU"),
    "solve": LSTSQ + FULL + grid(["lstsq", "weighted"], BOTH, NARROW) + RIDGE,
    "square": grid(["full pinv", "full lstsq"], SQUARE, [*WIDE, mx.float32]),
    "dual": grid(["dual", "dual, a weight 0", "dual, no weights"], BOTH, WIDE),
    "ridge": RIDGE + NORMAL,
    "logdet": grid(["logdet", "penalized logdet"], TALL, WIDE) + grid(["penalized logdet"], TALL, [mx.complex64]),
    "products": grid(["weighted", "ridge"], TALL, WIDE) + grid(["pinv", "residuals"], TALL, [mx.complex64])
    + grid(["objective"], TALL, WIDE) + grid(["ridge", "objective"], TALL, [mx.float32], "emulated GPU"),
    "residuals": grid(["residuals"], TALL, [*WIDE, mx.complex64]) + grid(["objective"], TALL, WIDE),
    "rows": grid([name for name in PROBLEMS if name.startswith("left out")], TALL, [*WIDE, mx.float32])
    + grid(["spread", "spread, penalty"], TALL, [*WIDE, mx.float32]),
    "validation": grid(["gcv", "gcv, truncated", "gcv, streamed"], TALL, WIDE),
    "bounded": grid(["bounded", "bounded, from zero"], TALL, WIDE) + grid(["bounded, shortest"], BOTH[1:], WIDE),
    "logistic": grid([name for name in PROBLEMS if name.startswith("logistic")], TALL, WIDE),
    "centring": grid(["adapt", "adapt, no weights"], TALL, [mx.float32, *WIDE]),
    "causal": grid(["causal"], TALL, WIDE),
    "decayed": grid(["causal"], TALL, WIDE),
    "envelope": grid([name for name in PROBLEMS if name.startswith("objective")], BOTH, [*WIDE, mx.float32]),
}


@cache
def problem(*case):
    return Problem(*case)


def fault(package, checks):
    """What is wrong with a copy, None if nothing is. The check that finds it comes first from then on."""
    for case in checks:
        found = problem(*case).fault(package)
        if found:
            checks.remove(case)
            checks.insert(0, case)
            return found
    return None


def test_the_checks_pass_without_a_mutation():
    with Copy() as package:
        assert package["pinv"] is not pinvnn.pinv
        assert fault(package, list(dict.fromkeys(case for checks in CHECKS.values() for case in checks))) is None


def test_every_file_of_rules_is_mutated():
    files = {path.stem for path in (PACKAGE / ROOM).glob("*.py")} - {"__init__"}
    assert files == set(CHECKS)
    assert {name for name, *_ in EQUIVALENT} <= files


@pytest.mark.parametrize("name", CHECKS)
def test_every_flipped_sign_is_noticed(name):
    survivors, excused, count, checks = [], set(), 0, list(CHECKS[name])
    for mutant, code in mutants(name):
        count += 1
        try:
            with Copy(name, code) as package:
                killed = fault(package, checks)
        except (TypeError, ValueError) as error:
            killed = error
        if mutant in EQUIVALENT:
            assert not killed, f"{mutant} is no longer equivalent"
            excused.add(mutant)
        elif not killed:
            survivors.append(mutant)
    assert not survivors, f"{len(survivors)} of {count} survive:\n" + "\n".join(map(str, survivors))
    assert excused == {mutant for mutant in EQUIVALENT if mutant[0] == name}
    assert count >= 8, "the terms were not found"
