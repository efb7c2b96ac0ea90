"""Errors of the gradients of pinv and lstsq in four situations, for pinvnn, PyTorch, JAX and lineax, in float64.

    python benchmarks/gradient_table.py [--peer-python PATH] [--write]

Each library runs in a process of its own (the peers in another interpreter, if --peer-python names one); one that is
missing is left out with a line that says so. --write puts the table into docs/gradients.md. The truth are differences
of NumPy's values, extrapolated (Ridders 1982): good to 1e-11 for gradients and 1e-8 for second derivatives.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

LIBRARIES = ("pinvnn", "torch", "jax", "lineax")
NAMES = {"pinvnn": "pinvnn", "torch": "PyTorch", "jax": "JAX", "lineax": "lineax"}
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "gradients.md"
BEGIN, END = "<!-- table: written by benchmarks/gradient_table.py -->", "<!-- end of the table -->"

SITUATIONS = ("full rank", "rank-deficient, rank kept", "repeated singular values", "a non-zero value dropped")
OPERATIONS = ("pinv", "lstsq")


# --- Problems and truth, in NumPy -------------------------------------------------------------------------------------


def matrix(rng, m, n, s, kind):
    def orthonormal(rows):
        x = rng.standard_normal((rows, len(s)))
        return np.linalg.qr(x + 1j * rng.standard_normal(x.shape) if kind == "complex" else x)[0]

    return (orthonormal(m) * np.asarray(s)) @ np.conj(orthonormal(n).T)


def problem(operation, situation, kind):
    """Arrays, cutoff, cotangent and two directions, as NumPy arrays."""
    rng = np.random.default_rng(SITUATIONS.index(situation))
    if situation == "rank-deficient, rank kept":
        arrays, rtol = [matrix(rng, 6, 2, [2.0, 1.0], kind), matrix(rng, 4, 2, [1.5, 1.0], kind)], 1e-6
    else:
        s, rtol = {
            "full rank": ([2.0, 1.5, 1.0, 0.5], 1e-12),
            "repeated singular values": ([2.0, 2.0, 2.0, 2.0], 1e-12),
            "a non-zero value dropped": ([2.0, 1.5, 0.5, 0.3], 0.5),
        }[situation]
        arrays = [matrix(rng, 6, 4, s, kind)]

    def gaussian(*shape):
        x = rng.standard_normal(shape)
        return x + 1j * rng.standard_normal(shape) if kind == "complex" else x

    if operation == "lstsq":
        arrays.append(gaussian(6, 2))
    bar = gaussian(*(4, 6) if operation == "pinv" else (4, 2))
    d, e = ([gaussian(*x.shape) for x in arrays] for _ in range(2))
    return {"operation": operation, "situation": situation, "kind": kind, "arrays": arrays, "rtol": rtol, "bar": bar,
            "directions": [d, e]}


def numpy_loss(task, arrays):
    *factors, b = arrays if task["operation"] == "lstsq" else (*arrays, None)
    a = factors[0] if len(factors) == 1 else factors[0] @ np.conj(factors[1].T)
    p = np.linalg.pinv(a, rcond=task["rtol"])
    return float(np.sum(np.real(np.conj(task["bar"]) * (p if b is None else p @ b))))


def extrapolated(difference, first=0.05, rows=8):
    """The limit of ``difference(h)`` as h falls, by Neville's scheme; its error series has even powers."""
    table, best, least = [], np.nan, np.inf
    for i in range(rows):
        row = [difference(first / 2**i)]
        for j in range(1, i + 1):
            row.append(row[j - 1] + (row[j - 1] - table[-1][j - 1]) / (4**j - 1))
            error = max(abs(row[j] - row[j - 1]), abs(row[j] - table[-1][j - 1]))
            if error < least:
                best, least = row[j], error
        table.append(row)
    return best


def true_gradient(task):
    """The gradient with respect to each array, entry by entry; complex as d/d Re + i d/d Im."""

    def slope(i, direction):
        def difference(h):
            ahead, behind = (
                [x + t * direction if j == i else x for j, x in enumerate(task["arrays"])] for t in (h, -h)
            )
            return (numpy_loss(task, ahead) - numpy_loss(task, behind)) / (2 * h)

        return extrapolated(difference)

    gradients = []
    for i, x in enumerate(task["arrays"]):
        g = np.zeros_like(x)
        for index in np.ndindex(x.shape):
            unit = np.zeros_like(x)
            unit[index] = 1
            g[index] = slope(i, unit) + (1j * slope(i, 1j * unit) if np.iscomplexobj(x) else 0)
        gradients.append(g)
    return gradients


def true_curvature(task):
    """The second derivative along both directions, by polarization."""

    def along(sign):
        steps = [d + sign * e for d, e in zip(*task["directions"], strict=True)]

        def difference(h):
            points = [[x + t * step for x, step in zip(task["arrays"], steps, strict=True)] for t in (h, 0, -h)]
            ahead, here, behind = (numpy_loss(task, arrays) for arrays in points)
            return (ahead - 2 * here + behind) / h**2

        return extrapolated(difference, first=0.02, rows=6)

    return (along(1) - along(-1)) / 4


# --- The libraries, each in a process of its own ----------------------------------------------------------------------


def pinvnn_worker():
    import mlx.core as mx

    import pinvnn

    def float64(x):
        return mx.array(x, dtype=mx.float64)

    def embed(x):
        re, im = x
        return mx.concatenate([mx.concatenate([re, -im], -1), mx.concatenate([im, re], -1)], -2)

    def loss_of(task):
        complex_ = task["kind"] == "complex"
        bar = task["bar"]
        bar = float64(np.concatenate([bar.real, bar.imag]) if complex_ else bar)

        def loss(*flat):
            # There is no complex128 in MLX: a complex matrix is [[Re, -Im], [Im, Re]], and of the result the first
            # columns are [Re; Im].
            arrays = [embed(flat[i : i + 2]) for i in range(0, len(flat), 2)] if complex_ else list(flat)
            b = arrays.pop() if task["operation"] == "lstsq" else None
            a = arrays[0] if len(arrays) == 1 else arrays[0] @ arrays[1].T
            out = pinvnn.pinv(a, rtol=task["rtol"]) if b is None else pinvnn.lstsq(a, b, rtol=task["rtol"]).solution
            return mx.sum(bar * (out[:, : out.shape[1] // 2] if complex_ else out))

        return loss

    def flat(task, arrays):
        if task["kind"] != "complex":
            return [float64(x) for x in arrays]
        return [float64(part) for x in arrays for part in (x.real, x.imag)]

    def gradient(task):
        args = flat(task, task["arrays"])
        grads = mx.grad(loss_of(task), list(range(len(args))))(*args)
        grads = [np.array(g) for g in (grads if len(args) > 1 else [grads])]
        if task["kind"] != "complex":
            return grads
        return [x + 1j * y for x, y in zip(grads[::2], grads[1::2], strict=True)]

    def curvature(task):
        args, (d, e) = flat(task, task["arrays"]), (flat(task, x) for x in task["directions"])

        def along(*args):
            grads = mx.grad(loss_of(task), list(range(len(args))))(*args)
            return sum(mx.sum(x * y) for x, y in zip(d, grads if len(args) > 1 else [grads], strict=True))

        return float(mx.jvp(along, args, e)[1][0])

    return f"{pinvnn.__version__} on MLX {mx.__version__}", gradient, curvature


def torch_worker():
    import torch

    def loss(task, arrays):
        arrays = list(arrays)
        b = arrays.pop() if task["operation"] == "lstsq" else None
        a = arrays[0] if len(arrays) == 1 else arrays[0] @ arrays[1].mH
        if b is None:
            out = torch.linalg.pinv(a, rtol=task["rtol"])
        else:
            out = torch.linalg.lstsq(a, b, rcond=task["rtol"], driver="gelsd").solution
        return torch.sum(torch.real(torch.conj(torch.tensor(task["bar"])) * out))

    def leaves(task):
        return [torch.tensor(x, requires_grad=True) for x in task["arrays"]]

    def gradient(task):
        args = leaves(task)
        return [g.resolve_conj().numpy() for g in torch.autograd.grad(loss(task, args), args)]

    def curvature(task):
        args, (d, e) = leaves(task), task["directions"]

        def dot(grads, direction):
            pairs = zip(direction, grads, strict=True)
            return sum(torch.sum(torch.real(torch.conj(torch.tensor(x)) * g)) for x, g in pairs)

        along = dot(torch.autograd.grad(loss(task, args), args, create_graph=True), d)
        return float(dot(torch.autograd.grad(along, args), e))

    return torch.__version__, gradient, curvature


def jax_worker(lineax=False):
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    if lineax:
        import lineax as lx

    def solve(a, b, rtol):
        if not lineax:
            return jnp.linalg.pinv(a, rtol=rtol) if b is None else jnp.linalg.lstsq(a, b, rcond=rtol)[0]
        columns = jnp.eye(a.shape[0], dtype=a.dtype) if b is None else b
        solver = lx.SVD(rcond=rtol)
        one = lambda column: lx.linear_solve(lx.MatrixLinearOperator(a), column, solver).value  # noqa: E731
        return jax.vmap(one, in_axes=1, out_axes=1)(columns)

    def loss_of(task):
        def loss(*arrays):
            arrays = list(arrays)
            b = arrays.pop() if task["operation"] == "lstsq" else None
            a = arrays[0] if len(arrays) == 1 else arrays[0] @ jnp.conj(arrays[1].T)
            return jnp.sum(jnp.real(jnp.conj(task["bar"]) * solve(a, b, task["rtol"])))

        return loss

    def gradient(task):
        args = [jnp.asarray(x) for x in task["arrays"]]
        # JAX's complex gradient is d/d Re - i d/d Im.
        return [np.conj(np.asarray(g)) for g in jax.grad(loss_of(task), tuple(range(len(args))))(*args)]

    def curvature(task):
        args, (d, e) = [jnp.asarray(x) for x in task["arrays"]], task["directions"]

        def along(*args):
            grads = jax.grad(loss_of(task), tuple(range(len(args))))(*args)
            return sum(jnp.sum(jnp.real(x * g)) for x, g in zip(d, grads, strict=True))

        return float(jax.jvp(along, tuple(args), tuple(jnp.asarray(x) for x in e))[1])

    return lx.__version__ if lineax else jax.__version__, gradient, curvature


WORKERS = {
    "pinvnn": pinvnn_worker,
    "torch": torch_worker,
    "jax": jax_worker,
    "lineax": lambda: jax_worker(lineax=True),
}


def relative(got, want):
    """Largest difference over all arrays, relative to the largest entry."""
    scale = max(np.max(np.abs(x)) for x in want)
    return float(max(np.max(np.abs(np.asarray(x) - y)) for x, y in zip(got, want, strict=True)) / scale)


def work(library):
    """All errors of one library, as JSON on standard output."""
    try:
        version, gradient, curvature = WORKERS[library]()
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
        return
    if library == "pinvnn":
        import mlx.core as mx

        mx.set_default_device(mx.cpu)  # for the loss around it, in float64; pinvnn places itself
    found = []
    for key, task in tasks():
        truth = true_gradient(task) if key[0] == "gradient" else [np.array(true_curvature(task))]
        try:
            value = relative(gradient(task) if key[0] == "gradient" else [np.array(curvature(task))], truth)
        except Exception as error:  # What a library raises is a result.
            value = type(error).__name__
        found.append([key, value])
    print(json.dumps({"version": version, "errors": found}))


def tasks():
    for order, kind in (("gradient", "real"), ("gradient", "complex"), ("second derivative", "real")):
        for operation in OPERATIONS:
            for situation in SITUATIONS:
                yield (order, kind, operation, situation), problem(operation, situation, kind)


# --- Table ------------------------------------------------------------------------------------------------------------


def cell(value):
    if isinstance(value, str):
        return f"raises {value}"
    if not np.isfinite(value):
        return "NaN"
    return f"{value:.0e}" if value < 0.01 else f"**{value:.0%} off**"


def table(results):
    present = [library for library in LIBRARIES if library in results]
    lines = [" | ".join(["", "derivative of", "where", *(NAMES[x] for x in present), ""]).strip()]
    lines.append("|" + "---|" * (len(present) + 2))
    errors = {library: {tuple(key): value for key, value in results[library]["errors"]} for library in present}
    for key, _ in tasks():
        order, kind, operation, situation = key
        what = f"{operation}, {kind}" + ("" if order == "gradient" else ", second order")
        lines.append(f"| {what} | {situation} | " + " | ".join(cell(errors[x][key]) for x in present) + " |")
    versions = ", ".join(f"{NAMES[x]} {results[x]['version']}" for x in present)
    return "\n".join([*lines, "", f"({versions}; NumPy {np.__version__} for the truth.)"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the other libraries")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/gradients.md")
    parser.add_argument("--worker", choices=LIBRARIES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.worker)
    results = {}
    for library in LIBRARIES:
        python = sys.executable if library == "pinvnn" else options.peer_python
        done = subprocess.run([python, __file__, "--worker", library], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        answer = json.loads(done.stdout.splitlines()[-1])
        if "missing" in answer:
            print(f"{NAMES[library]} is left out: {answer['missing']}")
        else:
            results[library] = answer
    text = table(results)
    print(text)
    worst = max(np.inf if isinstance(v, str) else v for k, v in results["pinvnn"]["errors"] if k[0] == "gradient")
    print(f"\nThe largest error of a gradient of pinvnn is {worst:.1e}.")
    if options.write:
        before, rest = DOCUMENT.read_text().split(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
