"""Runs the suite on the device that the environment variable DEVICE names (cpu by default, or gpu)."""

import os

import mlx.core as mx

DEVICE = os.environ.get("DEVICE", "cpu")
mx.set_default_device({"cpu": mx.cpu, "gpu": mx.gpu}[DEVICE])


def pytest_report_header(config):
    return f"default device: {mx.default_device()}, mlx {mx.__version__}"
