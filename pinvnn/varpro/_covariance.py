"""The covariance of all parameters of a separable fit, and which of them the data determine."""

from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from .._mlx import dtypes
from ._determined import INVOLVED, Determined
from ._projection import Derivatives, Projection


@dataclass(frozen=True)
class ParameterCovariance:
    r"""The covariance s^2 (F^T F)^+ of alpha and c, F = [dA c, A] the Jacobian of the full problem, in parts.

    With K = (I - A A^+) dA c and T = -A^+ dA c the pseudo-inverse has the blocks

        alpha: s^2 (K^T K)^+ = E E^T,    linear, alpha: T E E^T,    linear: s^2 Z Z^T + T E E^T T^T.

    A parameter with a part in the null space of F is not determined: its variance is NaN. For the others the
    pseudo-inverse has the variance that any choice of the undetermined ones would give them.

    Attributes:
        alpha_root: E, (p, p'); zero rows for the alpha held by equal bounds.
        mixed_root: T E, (n, k, p').
        linear_root: s Z for each right-hand side, k arrays (n, r); zero rows for linear parameters on bounds.
        alpha_null: directions of alpha that change nothing, (p, q).
        mixed_null: the answer of the linear parameters to these, (n, k, q).
        linear_null: combinations of the columns that vanish, for each right-hand side, k arrays (n, q).
        alpha_unknown: mask (p,) of the alpha that are not determined.
        linear_unknown: mask (n, k) of the linear parameters that are not determined.
    """

    alpha_root: np.ndarray
    mixed_root: np.ndarray
    linear_root: list[np.ndarray]
    alpha_null: np.ndarray
    mixed_null: np.ndarray
    linear_null: list[np.ndarray]
    alpha_unknown: np.ndarray
    linear_unknown: np.ndarray

    @classmethod
    def of(cls, projection: Projection, d: Derivatives, free: np.ndarray, dtype: mx.Dtype) -> "ParameterCovariance":
        """From the projection at the solution and its derivatives, for s = 1; ``free`` (p,) marks the alpha fitted."""
        n, k = projection.linear.shape
        p, eps = free.size, dtypes.eps(dtype)
        alpha_unknown, linear_unknown = np.zeros(p, bool), np.zeros((n, k), bool)
        if not all(np.isfinite(part).all() for part in d):
            null = np.zeros((p, 0))
            root = np.full((p, 1), np.nan) * free[:, None]
            d = d._replace(sensitivity=np.zeros_like(d.sensitivity))
        else:
            determined = Determined.of(d.kaufman[:, free], eps * d.rounding[free])
            root, null = np.zeros((p, determined.kept.sum())), np.zeros((p, (~determined.kept).sum()))
            root[free] = determined.inverse_root(d.kaufman[:, free])
            inside = determined.null
            null[free] = inside / determined.unit[:, None]
            alpha_unknown[free] = (np.abs(inside) > INVOLVED).any(axis=1)
            # How far each term A_l c_l moves along a null direction, relative to all terms that move.
            moved = projection.lengths.reshape(-1, 1) * np.abs(d.sensitivity @ null)
            share = eps * moved / np.maximum(np.sum(np.abs(inside), axis=0), INVOLVED)
            linear_unknown |= (share > INVOLVED).any(axis=1).reshape(n, k)
        linear_root, linear_null = [np.zeros(0)] * k, [np.zeros(0)] * k
        for f in projection.factors:
            dependent = (np.abs(f.null) > INVOLVED).any(axis=1)
            for t in f.columns:
                linear_root[t] = f.z
                lengths = projection.lengths[:, t]
                linear_null[t] = f.null / np.where(lengths > 0, lengths, 1.0)[:, None]
                linear_unknown[:, t] |= dependent
        mixed = [(d.sensitivity @ part).reshape(n, k, -1) for part in (root, null)]
        return cls(root, mixed[0], linear_root, null, mixed[1], linear_null, alpha_unknown, linear_unknown)

    def scaled(self, std: float, unit: float) -> "ParameterCovariance":
        """For the standard deviation ``std`` of the residuals, with c, r and std in units of ``unit``."""
        return replace(
            self,
            alpha_root=self.alpha_root * std,
            mixed_root=self.mixed_root * (std * unit),
            linear_root=[z * (std * unit) for z in self.linear_root],
            mixed_null=self.mixed_null * unit,
        )

    def covariance(self) -> np.ndarray:
        """All of it, (p + n k, p + n k): alpha first, then the linear parameters in row-major order."""
        n, k, _ = self.mixed_root.shape
        root = np.vstack([self.alpha_root, self.mixed_root.reshape(n * k, -1)])
        result = root @ root.T
        p = len(self.alpha_root)
        for t, z in enumerate(self.linear_root):
            result[p + t :: k, p + t :: k] += z @ z.T
        unknown = np.concatenate([self.alpha_unknown, self.linear_unknown.ravel()])
        result[unknown], result[:, unknown] = np.nan, np.nan
        return result

    def standard_errors(self) -> tuple[np.ndarray, np.ndarray]:
        """Square roots of the diagonal: of alpha, (p,), and of the linear parameters, (n, k)."""
        linear = np.stack([np.sum(z**2, axis=1) for z in self.linear_root], axis=1)
        linear = np.sqrt(np.sum(self.mixed_root**2, axis=2) + linear)
        alpha = np.linalg.norm(self.alpha_root, axis=1)
        return np.where(self.alpha_unknown, np.nan, alpha), np.where(self.linear_unknown, np.nan, linear)

    def of_curve(self, phi: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Standard error (m', k) of Phi c, from ``phi`` (m', n) and its derivatives ``slopes`` = D_j c, (m', k, p).

        NaN where the curve depends on what the data do not determine.
        """
        through_alpha = slopes @ self.alpha_root + np.einsum("mn,nkp->mkp", phi, self.mixed_root)
        through_linear = np.stack([np.sum((phi @ z) ** 2, axis=1) for z in self.linear_root], axis=1)
        error = np.sqrt(np.sum(through_alpha**2, axis=2) + through_linear)
        terms = np.abs(slopes) @ np.abs(self.alpha_null)
        terms = terms + np.einsum("mn,nkp->mkp", np.abs(phi), np.abs(self.mixed_null))
        change = np.abs(slopes @ self.alpha_null + np.einsum("mn,nkp->mkp", phi, self.mixed_null))
        unknown = (change > INVOLVED * terms).any(axis=2)
        for t, null in enumerate(self.linear_null):
            unknown[:, t] |= (np.abs(phi @ null) > INVOLVED * (np.abs(phi) @ np.abs(null))).any(axis=1)
        return np.where(unknown, np.nan, error)
