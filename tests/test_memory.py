"""Memory stays flat over training steps through a fit, and nothing of a step is held once it is done.

(Compiled steps: test_transforms.py.)
"""

import gc
import weakref

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

from pinvnn import lstsq, pinv, ridge
from tests.support.cases import gaussian

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

FITS = {
    "lstsq": lambda h, y: lstsq(h, y).solution,
    "weighted lstsq": lambda h, y: lstsq(h, y, weights=mx.softmax(h[:, 0]), rtol=0.1).solution,
    "ridge": lambda h, y: ridge(h, y, 0.1),
    "pinv": lambda h, y: pinv(h) @ y,
}


def training(fit):
    """A step of training a network through ``fit`` on one half of a batch, with the loss on the other."""
    mx.random.seed(0)
    x, y = gaussian((64, 8), mx.float32), gaussian((64, 3), mx.float32, 1)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh())
    optimizer = optim.Adam(learning_rate=1e-3)
    state = [model.state, optimizer.state]

    def loss(model):
        h = model(x)
        return mx.mean(mx.square(h[32:] @ fit(h[:32], y[:32]) - y[32:]))

    def step():
        value, grads = nn.value_and_grad(model, loss)(model)
        optimizer.update(model, grads)
        return value

    def run(steps):
        for _ in range(steps):
            mx.eval(step(), state)
        gc.collect()
        return mx.get_active_memory()

    return run


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_training_steps(fit):
    run = training(fit)
    before = run(5)
    assert run(100) < before + 1000  # less than one array a step


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_no_array_outlives_its_step(fit):
    """Neither in a closure nor in a cache of a custom function."""
    a, y = gaussian((16, 4), mx.float32), gaussian((16, 2), mx.float32, 1)
    before = mx.get_active_memory()

    def step():
        h = mx.tanh(a)
        value, grads = mx.value_and_grad(lambda h: mx.sum(mx.square(fit(h, y))))(h)
        second = mx.grad(lambda h: mx.sum(mx.square(mx.grad(lambda h: mx.sum(fit(h, y)))(h))))(h)
        mx.eval(value, grads, second)

    for _ in range(3):
        step()
    gc.collect()
    assert mx.get_active_memory() <= before


def test_a_differentiated_closure_is_freed():
    class Held:
        """Dies with the closure that holds it."""

    held = Held()
    alive = weakref.ref(held)
    a, y = gaussian((16, 4), mx.float32), gaussian((16, 2), mx.float32, 1)
    gradient = mx.grad(lambda a, held=held: mx.sum(lstsq(a, y).solution))
    mx.eval(gradient(a))
    del gradient, held
    gc.collect()
    assert alive() is None
