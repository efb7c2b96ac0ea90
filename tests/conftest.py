"""Runs the suite on the device that the environment variable DEVICE names: cpu (the default), gpu, or emulated.

"emulated" is a GPU without one: see ``tests/support/emulated_gpu.py``. Processes that a test starts with
``tests.support.launch.environment()`` have the same device.
"""

import os
from contextlib import nullcontext

import mlx.core as mx
import pytest

from tests.support.emulated_gpu import EmulatedGpu, set_device

DEVICE = os.environ.get("DEVICE", "cpu")
set_device()


def pytest_report_header(config):
    return f"default device: {mx.default_device()}{' (emulated)' * (DEVICE == 'emulated')}, mlx {mx.__version__}"


@pytest.fixture
def gpu(monkeypatch):
    """The :class:`EmulatedGpu` as the default device of one test."""
    with monkeypatch.context() as patches:
        yield EmulatedGpu(patches)


@pytest.fixture
def own_gpu():
    """For a test that makes an :class:`EmulatedGpu` of its own.

    Two at once would patch each other, and what was imported under one does not know the next.
    """
    if DEVICE == "emulated":
        pytest.skip("runs with the CPU as device")


@pytest.fixture
def on_cpu():
    """Everything stands on the CPU: pytestmark = pytest.mark.usefixtures("on_cpu")."""
    with mx.stream(mx.cpu):
        yield


@pytest.fixture
def float64_on_the_cpu(request):
    """Tests with a parameter dtype of float64, and those without a dtype, stand on the CPU.

    What a test does itself with float64 arrays (take a row, say) MLX refuses on a GPU, and its transforms copy them to
    the default device.
    """
    parameters = getattr(request.node, "callspec", None)
    dtype = mx.float64 if parameters is None else parameters.params.get("dtype", mx.float64)
    with mx.stream(mx.cpu) if dtype == mx.float64 else nullcontext():
        yield
