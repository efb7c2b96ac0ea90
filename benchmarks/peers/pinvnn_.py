import mlx.core as mx

import pinvnn
from pinvnn.nn import LeastSquaresReadout

from .base import RTOL
from .mlx_ import Peer as MlxPeer


class Peer(MlxPeer):
    """pinvnn on the default device as a user calls it: a training step is compiled, the rest is not."""

    def versions(self):
        return f"pinvnn {pinvnn.__version__}, {super().versions()}"

    def prepare(self, case, mode, data):
        if case.op == "readout":
            return self._training_step(case, data)
        function, wanted = getattr(self, case.op)(case)

        def forward(data):
            return (function(data)(*(getattr(data, x) for x in wanted)),)

        def backward(data):
            values, gradients = mx.vjp(function(data), [getattr(data, x) for x in wanted], [data.bar])
            return *values, *gradients

        return forward if mode == "forward" else backward

    def pinv(self, case):
        return lambda data: lambda a: pinvnn.pinv(a, rtol=RTOL[case.dtype]), "a"

    def lstsq(self, case):
        return lambda data: lambda a, b: pinvnn.lstsq(a, b, rtol=RTOL[case.dtype]).solution, "ab"

    def ridge(self, case):
        return lambda data: lambda a, b: pinvnn.ridge(a, b, data.l2), "ab"

    def _training_step(self, case, data):
        readout = LeastSquaresReadout(case.n, case.k, l2=data.l2)

        @mx.compile
        def step(x, y, w, c):
            def loss(w, c):
                return readout.projected_loss(mx.tanh(x @ w + c), y)

            with mx.stream(mx.cpu if case.dtype == "float64" else mx.default_device()):
                values, gradients = mx.vjp(loss, [w, c], [mx.array(1.0, x.dtype)])
                return *values, *gradients

        def call(data):
            return step(data.x, data.y, data.w, data.c)

        self.finish(call(data))  # compiles
        return call
