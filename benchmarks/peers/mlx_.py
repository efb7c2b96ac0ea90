import sys
from importlib.metadata import version

import mlx.core as mx
import numpy as np

from .base import ForwardPeer, hand_written_ridge


class Peer(ForwardPeer):
    """What MLX itself offers. It has no gradients, and all of ``mx.linalg`` runs on the CPU."""

    batched = ("pinv", "lstsq", "ridge")
    uses_numpy = False

    def __init__(self, name="", device="cpu"):
        super().__init__(name, device)
        mx.set_default_device(mx.gpu if device == "gpu" else mx.cpu)

    def versions(self):
        return f"mlx {version('mlx')}"

    def load(self, path):
        array = mx.load(str(path), stream=mx.cpu)
        mx.eval(array)
        return array

    def finish(self, outputs):
        mx.eval(outputs)

    def numpy(self, array):
        return np.array(array)

    def blas(self):
        return ["Accelerate"] if sys.platform == "darwin" else []

    def pinv(self, case, data):
        return mx.linalg.pinv(data.a, stream=mx.cpu)

    def lstsq(self, case, data):
        with mx.stream(mx.cpu):
            return mx.linalg.pinv(data.a) @ data.b

    def ridge(self, case, data):
        with mx.stream(mx.cpu):
            eye = mx.eye(min(case.m, case.n), dtype=data.a.dtype)
            return hand_written_ridge(mx.linalg.solve, data.a, mx.swapaxes(data.a, -1, -2), data.b, data.l2, eye)
