"""Gauss-Newton training of a network with a linear output; the mathematics is in `_network_loss.py`."""

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .._mlx import dtypes, fail
from ..streaming import ReadoutStatistics
from ._basis import Basis, arrays, to_mlx, to_numpy
from ._network_loss import Batch, NetworkLoss, ReadoutFit, conjugate_gradients
from ._types import StepMethod

NAME = "SeparableGaussNewton"
DENSE_PARAMETERS = 200
"""Parameters up to which ``method="auto"`` forms the Gauss-Newton matrix: p forward products, where CG takes tens."""

MAX_DAMPING = 1e100
"""Steps refused again and again would otherwise drive the damping to infinity, from which it never returns."""


class SeparableStep(NamedTuple):
    """What a step of :class:`SeparableGaussNewton` did.

    Attributes:
        loss: the loss on the rows after the step, with the output solved for.
        trial: the loss at the trial point; higher than ``loss`` where the step was refused, NaN where it was not
            finite.
        accepted: whether the features were moved.
        damping: the damping of the next step.
        products: products with the Gauss-Newton matrix that conjugate gradients took; 0 where the matrix was formed.
    """

    loss: float
    trial: float
    accepted: bool
    damping: float
    products: int


class SeparableGaussNewton:
    r"""Trains ``readout(features(x))`` by Levenberg-Marquardt steps in the parameters of ``features`` alone.

    The linear ``readout`` is solved for exactly in every step, so that it is never behind the features. A call of
    :meth:`step` tries one step on its rows. The step is accepted if it lowers the loss there; the damping of the next
    one follows from the ratio of the actual to the predicted reduction. The loss is the objective of
    :func:`pinvnn.ridge` divided by m k, the number of entries of the targets.

    Args:
        features: module ``(m, ...) -> (m, n)`` whose trainable parameters are trained; deterministic (no dropout).
        readout: ``nn.Linear`` or :class:`pinvnn.nn.LeastSquaresReadout`, ``n -> k``. Every step sets it.
        l2: penalty of the readout's weights, positive; the intercept is free. A sum and not a mean.
        damping: first damping, relative to the curvature of the loss along its gradient.
        memory: weight, between 0 and 1, that earlier rows keep from step to step in the fit of the readout. 0 is for
            training on all rows at once. Minibatches want about 1 - 1 / (batches to remember): the readout then fits
            those too, from their streaming statistics, and not the last batch alone.
        method: ``"dense"`` forms the Gauss-Newton matrix; ``"cg"`` solves by conjugate gradients and never does;
            ``"auto"`` decides by size.
        cg_tol: relative residual at which conjugate gradients stop.
        cg_steps: products after which they stop in any case.

    Example:
        >>> import mlx.core as mx, mlx.nn as nn
        >>> from pinvnn.varpro import SeparableGaussNewton
        >>> mx.random.seed(0)
        >>> x = mx.linspace(-1, 1, 50)[:, None]
        >>> y = mx.sin(4 * x)
        >>> features, readout = nn.Sequential(nn.Linear(1, 8), nn.Tanh()), nn.Linear(8, 1)
        >>> optimizer = SeparableGaussNewton(features, readout)
        >>> losses = [optimizer.step(x, y).loss for _ in range(20)]
        >>> losses[-1] < 1e-2 * losses[0], mx.abs(readout(features(x)) - y).max().item() < 0.05
        (True, True)

    References:
        Newman, Ruthotto, Hart and van Bloemen Waanders, "Train like a (Var)Pro", SIAM J. Math. Data Sci. 3 (2021), doi
        10.1137/20M1359511. With memory: Newman, Chung, Chung and Ruthotto, "slimTrain", SIAM J. Sci. Comput. 44 (2022),
        doi 10.1137/21M1452512.
    """

    def __init__(
        self,
        features: nn.Module,
        readout: nn.Module,
        l2: float = 1e-3,
        *,
        damping: float = 1e-2,
        memory: float = 0.0,
        method: StepMethod = "auto",
        cg_tol: float = 0.05,
        cg_steps: int = 100,
    ) -> None:
        if not isinstance(features, nn.Module) or not arrays(features.trainable_parameters()):
            got = type(features).__name__
            fail(NAME, "features must be a module with trainable parameters", got, "Unfreeze some.", TypeError)
        if not isinstance(readout, nn.Module) or "weight" not in readout:
            fail(NAME, "readout must be a linear module", type(readout).__name__, "Use nn.Linear.", TypeError)
        for label, value in [("l2", l2), ("damping", damping)]:
            if not value > 0:
                fail(NAME, f"{label} must be positive", f"{value}", "A small one serves, such as 1e-3.")
        if not 0 <= memory <= 1:
            fail(NAME, "memory must be between 0 and 1", f"{memory}", "0 forgets all earlier rows.")
        if method not in ("auto", "dense", "cg"):
            fail(NAME, "method must be 'auto', 'dense' or 'cg'", f"{method!r}", "Use 'auto'.")
        self.features: nn.Module = features
        self.readout: nn.Module = readout
        self.l2: float = l2
        self.memory: float = memory
        self.method: StepMethod = method
        self.cg_tol: float = cg_tol
        self.cg_steps: int = cg_steps
        self._first, self._damping, self._growth = damping, 0.0, 2.0
        parameters = arrays(features.trainable_parameters())
        wide = any(a.dtype == mx.float64 for a in parameters)
        self._basis = Basis(features, None, (), mx.float64 if wide else mx.float32)
        k, n = readout["weight"].shape
        self.statistics: ReadoutStatistics = ReadoutStatistics(n, k, "bias" in readout)

    def step(self, x: Any, y: mx.array, weights: mx.array | None = None) -> SeparableStep:
        """Try one step.

        Args:
            x: what ``features`` takes, m rows.
            y: targets, ``(m, k)``.
            weights: non-negative weights of the rows, ``(m,)``.

        Raises:
            ValueError: shapes that do not fit, data or features that are not finite, negative weights.
        """
        self._basis.inputs = (x,)
        theta = np.concatenate([to_numpy(a).ravel() for a in arrays(self.features.trainable_parameters())])
        h = self._basis(theta)
        batch = self._batch(h, y, weights)
        fit = batch.fit(h)
        if not np.isfinite(fit.loss):
            fail(NAME, "features, y and weights must be finite", "NaN or Inf", "Look at the data and the parameters.")
        model = NetworkLoss(self._basis, theta, batch, fit)
        if not self._damping:
            along = model.gradient @ model.product(model.gradient) / max(model.gradient @ model.gradient, 1e-300)
            self._damping = self._first * float(along) or self._first
        move, predicted, products = self._solve(model)
        with np.errstate(over="ignore", invalid="ignore"):  # The trial point may be anywhere.
            trial_h = self._basis(theta + move)
            trial = batch.fit(trial_h)
        accepted = self._accept(fit.loss - trial.loss, predicted, dtypes.eps(self._basis.dtype) * fit.loss)
        if accepted:
            self.features.update(self._basis.tree(theta + move))
            h, fit = trial_h, trial
        self._keep(h, y, weights, fit)
        return SeparableStep(fit.loss, trial.loss, accepted, self._damping, products)

    def _batch(self, h: mx.array, y: mx.array, weights: mx.array | None) -> Batch:
        n, k = self.statistics.input_dims, self.statistics.output_dims
        if h.ndim != 2 or h.shape[1] != n:
            fail(NAME, f"features must return (m, {n}), as the readout takes", f"shape {h.shape}", "Flatten them.")
        if y.shape != (len(h), k):
            fail(NAME, f"y must have the shape {(len(h), k)}", f"shape {y.shape}", "One target is y[:, None].")
        if weights is not None and weights.shape != (len(h),):
            fail(NAME, f"weights must have the shape {(len(h),)}", f"shape {weights.shape}", "One for each row.")
        w = np.ones(len(h)) if weights is None else to_numpy(weights)
        if (w < 0).any():
            fail(NAME, "weights must be non-negative", f"{w.min()}", "Leave such rows out.")
        self.statistics.decay(self.memory)
        return Batch(to_numpy(y), np.sqrt(w)[:, None], self.statistics.moments, self.l2, self.statistics.bias)

    def _solve(self, model: NetworkLoss) -> tuple[np.ndarray, float, int]:
        """The step (B + damping) p = -g, the predicted reduction, and the number of products with B."""
        g, p = model.gradient, model.theta.size
        if self.method == "dense" or (self.method == "auto" and p <= DENSE_PARAMETERS):
            b = model.matrix()
            move = np.linalg.solve(b + self._damping * np.eye(p), -g)
            return move, -float(g @ move + 0.5 * move @ b @ move), 0
        move, left, count = conjugate_gradients(model.product, g, self._damping, self.cg_tol, self.cg_steps)
        # B move = -g + left - damping move, without another product.
        return move, 0.5 * float(move @ (left - g) + self._damping * (move @ move)), count

    def _accept(self, decrease: float, predicted: float, noise: float) -> bool:
        """Whether to accept a step; sets the next damping (Nielsen 1999, IMM-REP-1999-05)."""
        if predicted <= noise:  # Rounding says nothing about the damping, and would drive it up without end.
            return decrease > 0
        ratio = decrease / predicted
        if ratio > 1e-4:
            self._damping *= max(1 / 3, 1 - (2 * ratio - 1) ** 3)
            self._growth = 2.0
            return True
        self._damping = min(self._damping * self._growth, MAX_DAMPING)
        self._growth = min(2 * self._growth, MAX_DAMPING)
        return False

    def _keep(self, h: mx.array, y: mx.array, weights: mx.array | None, fit: ReadoutFit) -> None:
        """Set the readout, and take up the rows into the statistics."""
        self.readout.weight = to_mlx(fit.v.T, self._basis.dtype)
        if self.statistics.bias:
            self.readout.bias = to_mlx(fit.b, self._basis.dtype)
        if self.memory:
            self.statistics.update(h, y, weights)
