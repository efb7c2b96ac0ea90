"""Which parameters the data determine, judged by the rounding errors of the Jacobian."""

from dataclasses import dataclass

import numpy as np

from ._projection import column_lengths

FACTOR = 4.0
"""Directions whose effect is at most this many times the rounding error are not determined."""
INVOLVED = 1e-3
"""A parameter takes part in an undetermined direction from this share of it on."""


@dataclass(frozen=True)
class Determined:
    """The directions of alpha that change the residual by more than the rounding of its derivatives does.

    Each column of K is measured in units of its own rounding error, so that the decision depends neither on the units
    of a parameter nor on those of the residual. Singular values of the result up to ``FACTOR`` are rounding noise.

    Attributes:
        unit: rounding error of each column, 1 where the column is zero, (p,).
        axes: orthonormal directions of ``unit * alpha`` by falling influence, (p, p).
        sizes: influence of the axes, (p,), in units of rounding.
    """

    unit: np.ndarray
    axes: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, k: np.ndarray, rounding: np.ndarray) -> "Determined":
        """From the columns of ``k`` (M, p) and the lengths of their rounding errors (p,)."""
        p = k.shape[1]
        unit = np.where(rounding > 0, rounding, 1.0)
        scaled = np.where(rounding > 0, k / unit, 0.0)
        r = np.linalg.qr(scaled, mode="r")
        _, s, vt = np.linalg.svd(r)
        return cls(unit, vt.T, np.concatenate([s, np.zeros(p - s.size)]))

    @property
    def kept(self) -> np.ndarray:
        """Mask of the axes that are determined, (p,)."""
        return self.sizes > FACTOR

    def clean(self, j: np.ndarray) -> np.ndarray:
        """``j`` (M, p) without the undetermined directions."""
        if self.kept.all():
            return j
        null, _ = np.linalg.qr(self.null)
        scaled = j / self.unit
        cleaned = (scaled - (scaled @ null) @ null.T) * self.unit
        alone = np.sum(null**2, axis=1) > 1 - INVOLVED**2
        return np.where(alone, 0.0, cleaned)

    @property
    def null(self) -> np.ndarray:
        """The undetermined axes, (p, q), without what rounding adds to the parameters that take no part in them."""
        null = self.axes[:, ~self.kept]
        return np.where(np.abs(null) > INVOLVED, null, 0.0)

    def inverse_root(self, k: np.ndarray) -> np.ndarray:
        """E with E E^T = (K^T K)^+ in the determined directions, (p, q), for the K (M, p) that this was made from."""
        p = len(self.unit)
        if not self.kept.all():
            return self.axes[:, self.kept] / self.sizes[self.kept] / self.unit[:, None]
        if not p:
            return np.zeros((0, 0))
        lengths = column_lengths(k)
        r = np.linalg.qr(k / lengths, mode="r")
        return np.linalg.solve(r, np.eye(p)) / lengths[:, None]
