import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

from .base import RTOL, hand_written_ridge
from .base import Peer as Base

jax.config.update("jax_enable_x64", True)


class Peer(Base):
    """JAX on the CPU, compiled ahead of the first timed call."""

    uses_numpy = False

    def versions(self):
        return f"jax {jax.__version__}"

    def load(self, path):
        return jax.device_put(super().load(path))

    def prepare(self, case, mode, data):
        function = getattr(self, case.op)(case)
        wanted, others = {"pinv": ("a", ""), "readout": ("wc", "xy")}.get(case.op, ("ab", ""))

        def arguments(data):
            l2 = jnp.asarray(data.l2, case.dtype)
            return [getattr(data, x) for x in wanted], [*(getattr(data, x) for x in others), l2], vars(data).get("bar")

        def forward(wanted, others, bar):
            return (function(*wanted, *others),)

        def backward(wanted, others, bar):
            value, pullback = jax.vjp(lambda *x: function(*x, *others), *wanted)
            return value, *pullback(jnp.ones_like(value) if bar is None else bar)

        compiled = jax.jit(forward if mode == "forward" else backward).lower(*arguments(data)).compile()
        return lambda data: compiled(*arguments(data))

    def finish(self, outputs):
        jax.block_until_ready(outputs)

    def pinv(self, case):
        return lambda a, l2: jnp.linalg.pinv(a, rtol=RTOL[case.dtype])

    def lstsq(self, case):
        return self._batched(case, lambda a, b: jnp.linalg.lstsq(a, b, rcond=RTOL[case.dtype])[0])

    def ridge(self, case):
        def solve(a, b, l2):
            eye = jnp.eye(min(case.m, case.n), dtype=a.dtype)
            return hand_written_ridge(jnp.linalg.solve, a, a.mT, b, l2, eye)

        return solve

    def readout(self, case):
        def loss(w, c, x, y, l2):
            h = jnp.tanh(x @ w + c)
            h, y = h - h.mean(0), y - y.mean(0)
            weight = jnp.linalg.solve(h.T @ h + l2 * jnp.eye(case.n, dtype=x.dtype), h.T @ y)
            return (((y - h @ weight) ** 2).sum() + l2 * (weight**2).sum()) / y.size

        return loss

    def _batched(self, case, solve):
        """``solve(a, b)`` over a batch, as a function of ``(a, b, l2)``."""
        over_batch = jax.vmap(solve) if case.batch > 1 else solve
        return lambda a, b, l2: over_batch(a, b)
