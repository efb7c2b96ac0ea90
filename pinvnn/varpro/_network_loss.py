r"""The loss of a network whose linear output is solved for, to second order in the other parameters.

Notation: H(theta) the features (m x n) and D their derivative, W = diag(weights), V the output's weights (n x k), r the
residual (m x k), and

    loss(theta) = (1 / m k) min over V of (sum w r^2 + l2 ||V||^2 + sum over the rows in memory).

With S = C C^T the sums of products of all rows plus l2, and Q = W^1/2 H C^-T, all of them centred if the output has an
intercept, which then gives Q one more column, W^1/2 1 / sqrt(sum of weights): the gradient (envelope theorem) and
Kaufman's Gauss-Newton matrix are

    g = -(2 / m k) D^T [W r V^T],        B u = (2 / m k) D^T [W^1/2 (I - Q Q^T) W^1/2 (D u) V V^T].

A product with B takes one forward and one reverse product of the network and two thin ones; the m k x p Jacobian is
never formed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import numpy as np

from ..streaming import Moments, merge_moments, moments, solve_moments
from ._basis import Basis, to_mlx, to_numpy


@dataclass(frozen=True)
class Batch:
    """The rows of one step: targets ``y`` (m, k), square roots of the weights (m, 1), moments of the rows in memory."""

    y: np.ndarray
    root: np.ndarray
    memory: Moments
    l2: float
    bias: bool

    def fit(self, h: mx.array) -> "ReadoutFit":
        """Solve for the output on the features ``h`` (m, n) of the rows and on those in memory."""
        values = to_numpy(h)
        wide = [to_mlx(part, mx.float64) for part in (values, self.y, self.root[:, 0] ** 2)]
        total = merge_moments(self.memory, moments(*wide, bias=self.bias))
        weight, bias = solve_moments(total, self.l2, bias=self.bias, dtype=mx.float64)
        v = to_numpy(weight).T
        b = np.zeros(v.shape[1]) if bias is None else to_numpy(bias)
        residual = self.y - values @ v - b
        loss = np.sum((self.root * residual) ** 2) + self.l2 * np.sum(v**2) + self._memory_loss(v, b)
        return ReadoutFit(values, v, b, residual, float(loss) / residual.size, [to_numpy(part) for part in total])

    def _memory_loss(self, v: np.ndarray, b: np.ndarray) -> float:
        count, x_mean, y_mean, xx, xy, yy = (to_numpy(part) for part in self.memory)
        spread = np.sum(yy) + np.sum(v * (xx @ v - 2 * xy))
        return float(spread + count * np.sum((y_mean - x_mean @ v - b) ** 2))


@dataclass(frozen=True)
class ReadoutFit:
    """Features ``h`` (m, n) and the output solved for: ``v`` (n, k), ``b`` (k,), ``residual`` (m, k), loss, moments."""

    h: np.ndarray
    v: np.ndarray
    b: np.ndarray
    residual: np.ndarray
    loss: float
    total: list[np.ndarray]


@dataclass(frozen=True)
class NetworkLoss:
    """The loss around ``theta`` (p,) to second order: its ``gradient``, and products with B."""

    basis: Basis
    theta: np.ndarray
    batch: Batch
    fit: ReadoutFit

    @cached_property
    def gradient(self) -> np.ndarray:
        return -self._pull(self.batch.root * self.fit.residual)

    @cached_property
    def q(self) -> np.ndarray:
        count, mean, _, xx, _, _ = self.fit.total
        c = np.linalg.cholesky(xx + self.batch.l2 * np.eye(len(xx)))
        q = self.batch.root * np.linalg.solve(c, (self.fit.h - mean).T).T
        return np.hstack([q, self.batch.root / np.sqrt(count)]) if self.batch.bias else q

    def product(self, u: np.ndarray) -> np.ndarray:
        """B u."""
        z = self.batch.root * (self.basis.push(self.theta, u) @ self.fit.v)
        return self._pull(z - self.q @ (self.q.T @ z))

    def matrix(self) -> np.ndarray:
        """B, formed from the Jacobian, (p, p)."""
        tangents = self.basis.tangents(self.theta, self.fit.h.size)
        j = np.stack([self.batch.root * (d @ self.fit.v) for d in tangents])
        inner = np.einsum("mn,pmk->pnk", self.q, j, optimize=True)
        j, inner = j.reshape(len(j), -1), inner.reshape(len(inner), -1)
        return (2 / self.fit.residual.size) * (j @ j.T - inner @ inner.T)

    def _pull(self, z: np.ndarray) -> np.ndarray:
        """(2 / m k) D^T [W^1/2 z V^T]."""
        return self.basis.pull(self.theta, (2 / z.size) * (self.batch.root * z) @ self.fit.v.T)


def conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray], g: np.ndarray, damping: float, tol: float, steps: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Solve (B + damping) p = -g from p = 0: p, the residual -g - (B + damping) p, and the number of products.

    ``product`` is u -> B u for vectors (p,), ``g`` the gradient (p,), ``tol`` relative to its norm.
    """
    p, r = np.zeros_like(g), -g
    d, square = r, float(g @ g)
    stop = tol**2 * square
    for count in range(steps):
        if square <= stop:
            return p, r, count
        bd = product(d) + damping * d
        curvature = float(d @ bd)
        if not curvature > 0:  # So small a gradient that its square has no float64.
            return p, r, count + 1
        length = square / curvature
        p, r = p + length * d, r - length * bd
        before, square = square, float(r @ r)
        d = r + (square / before) * d
    return p, r, steps
