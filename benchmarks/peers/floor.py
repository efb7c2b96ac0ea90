"""What the algorithms cannot do without, matrix products, in the row's dtype, by MLX: the floor under any route.

With X = (A^T A + l2 I)^-1 and P = X A^T (A tall; a wide one is its transpose):

- pinv: A^T A and X A^T; its gradient G^T X - A (X M + M^T X) with M = G P^T has three more products of that size;
- lstsq and ridge: A^T A and A^T b; their gradient r z^T - y x^T with r = b - A x and y = A z;
- readout: lstsq's products, and the network's own work: the features tanh(x w + c) and their gradient in w and c.

The contender called "gram" is A^T A alone; it takes part in float32 rows.
"""

import mlx.core as mx

from .base import Unsupported
from .mlx_ import Peer as MlxPeer


class Peer(MlxPeer):
    def prepare(self, case, mode, data):
        if self.name == "gram":
            if case.dtype != "float32" or case.op == "readout":
                raise Unsupported("float32 matrices only")
            return lambda data: _gram(_tall(data.a))
        place = mx.cpu if case.dtype == "float64" else mx.default_device()
        products = {"pinv": _pinv, "readout": _readout}.get(case.op, _solve)

        def call(data):
            with mx.stream(place):
                return products(data, mode == "backward")

        return call


def _t(x):
    return mx.swapaxes(x, -1, -2)


def _tall(a):
    return a if a.shape[-2] >= a.shape[-1] else _t(a)


def _gram(a):
    return (_t(a) @ a,)


def _pinv(data, backward):
    a, g = data.a, data.bar
    if a.shape[-2] < a.shape[-1]:
        a, g = _t(a), _t(g)
    x = _t(a) @ a
    p = x @ _t(a)
    if not backward:
        return (p,)
    m = g @ _t(p)
    return p, _t(g) @ x - a @ m


def _solve(data, backward):
    a, b = data.a, data.b
    tall = a.shape[-2] >= a.shape[-1]
    gram, x = _t(a) @ a if tall else a @ _t(a), _t(a) @ b
    if not backward:
        return gram, x
    y = a @ data.bar
    # One product with twice the columns stands for r z^T - y x^T.
    left = mx.concatenate([b - a @ x if tall else b, y], axis=-1)
    return gram, left @ _t(mx.concatenate([data.bar, x], axis=-1))


def _readout(data, backward):
    h = mx.tanh(data.x @ data.w + data.c)
    back = (data.y - h @ (_t(h) @ data.y)) @ _t(_t(h) @ data.y) * (1 - h * h)
    return _t(h) @ h, _t(data.x) @ back, mx.sum(back, axis=0)
