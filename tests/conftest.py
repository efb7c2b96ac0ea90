"""Runs the suite on the device that the environment variable DEVICE names: cpu (the default), gpu, or emulated.

"emulated" is a GPU without one: see ``tests/support/emulated_gpu.py``.
"""

import os

import mlx.core as mx
import pytest

from tests.support.emulated_gpu import EmulatedGpu

DEVICE = os.environ.get("DEVICE", "cpu")
if DEVICE == "emulated":
    EmulatedGpu(pytest.MonkeyPatch())
else:
    mx.set_default_device({"cpu": mx.cpu, "gpu": mx.gpu}[DEVICE])


def pytest_report_header(config):
    return f"default device: {mx.default_device()}{' (emulated)' * (DEVICE == 'emulated')}, mlx {mx.__version__}"


@pytest.fixture
def gpu(monkeypatch):
    """The :class:`EmulatedGpu` as the default device of one test."""
    with monkeypatch.context() as patches:
        yield EmulatedGpu(patches)
