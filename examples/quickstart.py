"""The whole library in a minute: a gradient that MLX lacks, a fit, a network trained through its readout."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

import pinvnn

x = mx.random.normal((256, 8), key=mx.random.key(0))
y = mx.sin(3 * x[:, :1]) * x[:, 1:2]
try:
    mx.grad(lambda x: mx.linalg.pinv(x, stream=mx.cpu).sum())(x)
except ValueError as error:
    print("mx.linalg.pinv:", error)
print("pinvnn.pinv: a gradient of shape", mx.grad(lambda x: pinvnn.pinv(x).sum())(x).shape)
print(f"pinvnn.lstsq, a linear fit: mean square error {pinvnn.lstsq(x, y).residuals.item() / 256:.4f}")

backbone, readout = nn.Sequential(nn.Linear(8, 32), nn.Tanh()), pinvnn.nn.LeastSquaresReadout(32, 1, l2=1e-2)
step, optimizer = nn.value_and_grad(backbone, lambda net: readout.projected_loss(net(x), y)), optim.Adam(1e-2)
for i in range(101):
    loss, gradient = step(backbone)
    optimizer.update(backbone, gradient)
    mx.eval(backbone.parameters(), optimizer.state)
    if i % 50 == 0:
        print(f"step {i}: loss of the best readout {loss.item():.4f}")
