import mlx.core as mx

import pinvnn

from .base import RTOL, Unsupported
from .mlx_ import Peer as MlxPeer


class Peer(MlxPeer):
    """pinvnn on the default device, not compiled: as a user calls it."""

    def versions(self):
        return f"pinvnn {pinvnn.__version__}, {super().versions()}"

    def prepare(self, case, mode, data):
        function, wanted = getattr(self, case.op)(case)
        one = mx.array(1.0, getattr(mx, case.dtype))

        def forward(data):
            return (function(data)(*(getattr(data, x) for x in wanted)),)

        def backward(data):
            arrays, bar = [getattr(data, x) for x in wanted], getattr(data, "bar", one)
            values, gradients = mx.vjp(function(data), arrays, [bar])
            return *values, *gradients

        return forward if mode == "forward" else backward

    def pinv(self, case):
        return lambda data: lambda a: pinvnn.pinv(a, rtol=RTOL[case.dtype]), "a"

    def lstsq(self, case):
        return lambda data: lambda a, b: pinvnn.lstsq(a, b, rtol=RTOL[case.dtype]).solution, "ab"

    def ridge(self, case):
        return lambda data: lambda a, b: pinvnn.ridge(a, b, data.l2), "ab"

    def readout(self, case):
        try:
            from pinvnn.nn import LeastSquaresReadout
        except ImportError:
            raise Unsupported("no readout yet") from None

        def loss_of(data):
            readout = LeastSquaresReadout(case.n, case.k, l2=data.l2)

            def loss(w, c):
                with mx.stream(mx.cpu if case.dtype == "float64" else mx.default_device()):
                    return readout.projected_loss(mx.tanh(data.x @ w + c), data.y)

            return loss

        return loss_of, "wc"
