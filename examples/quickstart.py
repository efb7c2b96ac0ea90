"""The whole library in a minute: a gradient that MLX lacks, a fit, a network trained through its readout."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

import pinvnn

a, b = mx.random.normal((200, 5), key=mx.random.key(0)), mx.random.normal((200, 2), key=mx.random.key(1))
try:
    mx.eval(mx.grad(lambda a: mx.linalg.pinv(a, stream=mx.cpu).sum())(a))
except ValueError as error:
    print("mx.linalg.pinv:", error)
print("pinvnn.pinv:", mx.grad(lambda a: pinvnn.pinv(a).sum())(a).shape)
print("rank", pinvnn.lstsq(a, b).rank.item(), "residuals", pinvnn.lstsq(a, b).residuals.tolist())

x = mx.random.normal((256, 8), key=mx.random.key(2))
y = mx.sin(3 * x[:, :1]) * x[:, 1:2]
backbone, readout = nn.Sequential(nn.Linear(8, 32), nn.Tanh()), pinvnn.nn.LeastSquaresReadout(32, 1, l2=1e-2)
step, optimizer = nn.value_and_grad(backbone, lambda net: readout.projected_loss(net(x), y)), optim.Adam(1e-2)
for i in range(101):
    loss, gradient = step(backbone)
    optimizer.update(backbone, gradient)
    mx.eval(backbone.parameters(), optimizer.state)
    if i % 50 == 0:
        print(f"step {i}: loss of the best readout {loss.item():.4f}")
