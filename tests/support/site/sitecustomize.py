"""Python runs this at its start wherever ``launch.environment()`` is the environment: the device of the tests."""

from tests.support.emulated_gpu import set_device

set_device()
