"""Each subpackage through `import pinvnn` alone, for pyright's strict mode: what a user's editor sees."""

import mlx.core as mx

import pinvnn


def decay(rate: mx.array, t: mx.array) -> mx.array:
    return mx.exp(-rate * t)[:, None]


def use_everything(folder: str) -> None:
    x, y = mx.random.normal((50, 4)), mx.random.normal((50, 2))
    solution: mx.array = pinvnn.lstsq(x, y, method="svd").solution
    readout: pinvnn.nn.LeastSquaresReadout = pinvnn.nn.LeastSquaresReadout(4, 2, l2=0.1).fit(x, y)
    statistics: pinvnn.streaming.ReadoutStatistics = pinvnn.streaming.ReadoutStatistics(4, 2).update(x, y)
    t = mx.arange(50) / 10
    fit: pinvnn.varpro.VarProResult = pinvnn.varpro.varpro(decay, mx.array(1.0), mx.exp(-2 * t), inputs=(t,))
    pinvnn.testing.gradcheck(pinvnn.pinv, pinvnn.testing.random_matrix((4, 3)))
    head: pinvnn.heads.Head = pinvnn.heads.Head.load(folder)
    eraser: pinvnn.surgery.Eraser = pinvnn.surgery.Eraser.load(folder)
    print(eraser.weight, solution, readout.weight, statistics.solve(0.1), fit.alpha, head.config)
