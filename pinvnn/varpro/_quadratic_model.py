r"""The quadratic model that a step minimises, and its exact minimum in a ball and a box.

In scaled variables, for min ||f||^2 / 2 around f with f' = J = Q R:

    model(p) = ||R p + Q^T f||^2 / 2 + p^T S p / 2,

where S is zero (Gauss-Newton) or a secant estimate of the second-order term sum_i f_i f_i'' (Dennis, Gay and Welsch
1981, doi 10.1145/355958.355965), which makes the last steps of a fit with large residuals superlinear instead of
linear.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class QuadraticModel:
    """The model around one point: ``r`` (min(M, p), p), ``qtf`` = Q^T f, ``s`` (p, p) or None for Gauss-Newton."""

    r: np.ndarray
    qtf: np.ndarray
    s: np.ndarray | None = None
    _axes: dict = field(default_factory=dict, repr=False)

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
        """Curvatures h, gradient b and axes V (columns) in the ``free`` variables, the others at ``step``."""
        r, qtf = self.r[:, free], self.qtf + self.r @ step
        key = free.tobytes()  # A step that failed is followed by a shorter one in the same model.
        if self.s is None:  # From R and not from R^T R, which would square its condition.
            if key not in self._axes:
                self._axes[key] = np.linalg.svd(r, full_matrices=False)
            u, s, vt = self._axes[key]
            kept = s > s[0] * s.size * np.finfo(float).eps
            return s[kept] ** 2, s[kept] * (u.T @ qtf)[kept], vt[kept].T
        if key not in self._axes:
            self._axes[key] = np.linalg.eigh(r.T @ r + self.s[np.ix_(free, free)])
        h, v = self._axes[key]
        return h, v.T @ (r.T @ qtf + self.s[free] @ step), v


def in_ball(h: np.ndarray, b: np.ndarray, v: np.ndarray, radius: float) -> tuple[np.ndarray, bool]:
    """Minimise sum h_i z_i^2 / 2 + b_i z_i, ||z|| <= radius: p = V z, and whether the radius is felt. Every h_i > 0.

    z = -b / (h + t) with t = 0 if that is short enough, otherwise the root of 1 / ||z(t)|| = 1 / radius, which Newton's
    method finds from below in a few steps (Hebden 1973).
    """
    z = -b / h
    size = float(np.linalg.norm(z))
    if size <= radius:
        return v @ z, False
    t = 0.0
    for _ in range(50):
        if size <= 1.001 * radius:
            break
        slope = float(np.sum(z**2 / (h + t))) / size
        t += (size - radius) / slope * size / radius
        z = -b / (h + t)
        size = float(np.linalg.norm(z))
    return v @ z * min(1.0, radius / size), True
