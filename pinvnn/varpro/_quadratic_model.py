r"""The quadratic model that a step minimises, and its exact minimum in a ball and a box.

In scaled variables, for min ||f||^2 / 2 around f with f' = J = Q R:

    model(p) = ||R p + Q^T f||^2 / 2 + p^T S p / 2,

where S is zero (Gauss-Newton) or a secant estimate of the second-order term sum_i f_i f_i'' (Dennis, Gay and Welsch
1981, doi 10.1145/355958.355965), which makes the last steps of a fit with large residuals superlinear instead of
linear.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

EPS = float(np.finfo(float).eps)
TINY = 1e-100
"""Below this, relative to the largest, a curvature or a radius is zero."""


@dataclass(frozen=True)
class QuadraticModel:
    """The model around one point: ``r`` (min(M, p), p), ``qtf`` = Q^T f, ``s`` (p, p) or None for Gauss-Newton."""

    r: np.ndarray
    qtf: np.ndarray
    s: np.ndarray | None = None
    _axes: dict[Any, Any] = field(default_factory=dict, repr=False)

    def decrease(self, step: np.ndarray) -> float:
        """By how much ``step`` decreases the model."""
        along = self.r @ step
        curvature = along @ along + (0.0 if self.s is None else step @ self.s @ step)
        return -float(self.qtf @ along + 0.5 * curvature)

    def minimum(self, lower: np.ndarray, upper: np.ndarray, free: np.ndarray, radius: float) -> tuple[np.ndarray, bool]:
        """The step of the ``free`` variables within ``radius`` and the bounds, and whether either cut it short.

        Variables that would leave their bounds are set onto them, and the step is solved again for the others. Such a
        step may fail to decrease the model; a short one does not, as it goes against the gradient.
        """
        step, left, limited = np.zeros(free.size), free.copy(), False
        while left.any():
            step[left], limited = in_ball(*self._diagonal(left, step * ~left), radius)
            outside = left & ((step < lower) | (step > upper))
            if not outside.any():
                break
            step = np.where(outside, np.clip(step, lower, upper), step)
            left &= ~outside
        return step, limited or bool((left != free).any())

    def is_convex(self, free: np.ndarray) -> bool:
        """Whether the model has one minimum in the ``free`` variables."""
        return self.s is None or self._diagonal(free, np.zeros(free.size))[0].min(initial=1.0) > 0

    def _diagonal(self, free: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Curvatures h, gradient b and axes V (columns) in the ``free`` variables, the others at ``step``.

        Directions in which R vanishes are left out: no step is made along them.
        """
        r, qtf = self.r[:, free], self.qtf + self.r @ step
        key = free.tobytes()  # A step that failed is followed by a shorter one in the same model.
        if key not in self._axes:
            u, s, vt = np.linalg.svd(r, full_matrices=False)
            kept = s > s[0] * 4 * s.size * EPS
            u, s, v = u[:, kept], s[kept], vt[kept].T
            if self.s is None:  # From R and not from R^T R, which would square its condition.
                self._axes[key] = s**2, (s[:, None] * u.T, np.zeros((s.size, free.size))), v
            else:
                inside = self.s[free]
                gram = r.T @ r + inside[:, free] if kept.all() else np.diag(s**2) + v.T @ inside[:, free] @ v
                h, w = np.linalg.eigh(gram)
                v = w if kept.all() else v @ w
                self._axes[key] = h, (v.T @ r.T, v.T @ inside), v
        h, (of_residual, of_step), v = self._axes[key]
        return h, of_residual @ qtf + of_step @ step, v


def in_ball(h: np.ndarray, b: np.ndarray, v: np.ndarray, radius: float) -> tuple[np.ndarray, bool]:
    """Minimise sum h_i z_i^2 / 2 + b_i z_i, ||z|| <= radius: p = V z, and whether the radius is felt. Every h_i > 0.

    z = -b / (h + t) with t = 0 if that is short enough, otherwise the root of 1 / ||z(t)|| = 1 / radius, which Newton's
    method finds from below in a few steps (Hebden 1973).
    """
    size_b, size_h = float(np.linalg.norm(b)), float(np.max(np.abs(h), initial=0.0))
    if not size_b > 0:
        return np.zeros(v.shape[0]), False
    # Without units: no square of what follows can overflow or vanish.
    b, h, unit = b / size_b, h / size_h, size_b / size_h
    h, edge = np.where(np.abs(h) > TINY, h, TINY), radius / unit
    z = -b / h
    size = float(np.linalg.norm(z))
    if size <= edge:
        return unit * (v @ z), False
    if edge <= TINY:  # So short that the curvature is of no account.
        return -radius * (v @ b), True
    t = 0.0
    for _ in range(50):
        if size <= 1.001 * edge:
            break
        slope = float(np.sum(z * (z / (h + t)))) / size
        t += (size - edge) / slope * (size / edge)
        z = -b / (h + t)
        size = float(np.linalg.norm(z))
    return unit * min(1.0, edge / size) * (v @ z), True
