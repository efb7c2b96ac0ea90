"""The emulated GPU bites: it refuses what a GPU refuses, and its products have the error of TF32."""

import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from benchmarks.device import probe_exact_sums, probe_tf32
from tests.support.cases import gaussian, numpy
from tests.support.launch import environment

SHAPES = [(48, 40), (40, 30), (48, 30), (3, 5, 30)]
A, B, C, WEIGHTS = (gaussian(shape, mx.float32, i) for i, shape in enumerate(SHAPES))


def error(got, want):
    return np.max(np.abs(numpy(got) - want)) / np.max(np.abs(want))


def convolved():
    x, w = numpy(WEIGHTS), numpy(B.reshape(8, 5, 30))
    return np.einsum("bti,oti->bo", x, w)[:, None]


PRODUCTS = {
    "@": lambda: (A @ B, numpy(A) @ numpy(B)),
    "matmul": lambda: (mx.matmul(A, B), numpy(A) @ numpy(B)),
    "addmm": lambda: (mx.addmm(C, A, B, 2.0, 3.0), 3 * numpy(C) + 2 * numpy(A) @ numpy(B)),
    "einsum": lambda: (mx.einsum("ij,jk->ik", A, B), numpy(A) @ numpy(B)),
    "tensordot": lambda: (mx.tensordot(A, B, 1), numpy(A) @ numpy(B)),
    "inner": lambda: (mx.inner(A, B.T), numpy(A) @ numpy(B)),
    "gather_mm": lambda: (mx.gather_mm(A, B[None], rhs_indices=mx.array([0])), (numpy(A) @ numpy(B))[None]),
    "conv1d": lambda: (mx.conv1d(WEIGHTS, B.reshape(8, 5, 30)), convolved()),
    "complex": lambda: ((A + 1j * A) @ B, (numpy(A) + 1j * numpy(A)) @ numpy(B)),
    "nn.Linear": lambda: ((layer := nn.Linear(40, 30))(A), numpy(A) @ numpy(layer.weight).T + numpy(layer.bias)),
    "compile": lambda: (mx.compile(lambda a: a @ B)(A), numpy(A) @ numpy(B)),
    "vmap": lambda: (mx.vmap(lambda row: row @ B)(A), numpy(A) @ numpy(B)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_has_the_error_of_tf32(gpu, name):
    got, want = PRODUCTS[name]()
    assert 1e-4 < error(got, want) < 3e-3


def square(a):
    return mx.sum((a @ B) ** 2)


def linear(a):
    return mx.sum((a @ B) * C)


DERIVATIVES = {
    "vjp, of which only the product itself is rounded": lambda: mx.grad(linear)(A),
    "vjp": lambda: mx.grad(square)(A),
    "vjp, compiled": lambda: mx.compile(mx.grad(square))(A),
    "vjp under vmap": lambda: mx.vmap(mx.grad(square))(A),
    "jvp": lambda: mx.jvp(lambda a: a @ B, [A], [A])[1][0],
    "vjp of vjp": lambda: mx.grad(lambda a: mx.sum(mx.grad(square)(a) * A))(A),
    "jvp of vjp": lambda: mx.jvp(mx.grad(square), [A], [A])[1][0],
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_so_have_the_products_of_its_derivatives(gpu, name):
    of_square = 2 * numpy(A) @ numpy(B) @ numpy(B).T
    want = {0: numpy(C) @ numpy(B).T, 4: numpy(A) @ numpy(B)}.get(list(DERIVATIVES).index(name), of_square)
    assert 1e-4 < error(DERIVATIVES[name](), want) < 5e-3


def test_products_on_the_cpu_are_those_of_the_cpu(gpu):
    with mx.stream(mx.cpu):
        assert error(A @ B, numpy(A) @ numpy(B)) < 1e-6
    assert error(mx.matmul(A, B, stream=mx.cpu), numpy(A) @ numpy(B)) < 1e-6
    assert mx.default_device() == mx.gpu


def test_a_product_can_be_exported(gpu, tmp_path):
    mx.export_function(str(tmp_path / "f.mlxfn"), lambda a: a @ B, A)
    assert error(mx.import_function(str(tmp_path / "f.mlxfn"))(A)[0], numpy(A) @ numpy(B)) > 1e-4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a: mx.linalg.inv(a), "without stream=mx.cpu"),
        (lambda a: a.astype(mx.float64), "astype: float64"),
        (lambda a: a + mx.array(1.0, mx.float64), "__add__: float64"),
        (lambda a: mx.stop_gradient(mx.zeros((2, 2), mx.float64, stream=mx.cpu)), "stop_gradient: float64"),
        (lambda a: mx.zeros((2, 2), mx.float64, stream=mx.cpu).T, "T: float64"),
        (lambda a: mx.zeros((2, 2), mx.float64, stream=mx.cpu)[0], "getitem__: float64"),
        (lambda a: mx.custom_function(lambda x, h: x)(a, mx.array(1.0, mx.float64)), "custom_function: float64"),
    ],
)
def test_what_a_gpu_refuses_is_refused(gpu, wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(mx.eye(2))


def test_what_a_gpu_takes_passes(gpu):
    a = mx.eye(2) @ mx.array([[1.0, 2.0], [0.0, 1.0]])
    with mx.stream(mx.cpu):
        b = a.astype(mx.float64) * 2
        c = mx.linalg.inv(b, stream=mx.cpu)
        d = mx.custom_function(lambda x, h: x)(a, b)
    e = mx.sum(b, stream=mx.cpu)
    assert gpu.calls == {"inv": 1}
    mx.eval(c, d + 1, e)


def test_the_probes_of_the_device_benchmark(gpu):
    assert probe_tf32() and probe_exact_sums()
    with mx.stream(mx.cpu):
        assert not probe_tf32() and probe_exact_sums()


@pytest.mark.parametrize(("device", "said"), [("cpu", "Device(cpu, 0) False"), ("emulated", "Device(gpu, 0) True")])
def test_a_process_that_a_test_starts_has_the_device_of_the_tests(device, said):
    script = "import mlx.core as mx; from benchmarks.device import probe_tf32; print(mx.default_device(), probe_tf32())"
    command = [sys.executable, "-c", script]
    assert subprocess.check_output(command, env=environment(DEVICE=device), text=True).strip() == said
