"""Finite differences that choose their own step.

A difference quotient has a truncation error, which grows with the step, and a rounding error, which grows as the step
shrinks. Neither is known beforehand: float64 ``exp``, ``sin`` and ``cos`` of MLX carry noise of 1e-7 to 1e-5, and near
a pole (a nearly singular matrix) the Taylor series converges for tiny steps only. So central differences at halved
steps are extrapolated (Ridders 1982, Advances in Engineering Software 4(2), 75-76), the error of each extrapolation is
estimated from the other steps, and the one with the smallest estimate is the answer. Where the one-sided derivatives
differ, central differences agree on their mean; see ``_kinks.py``.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from ._kinks import disagreement, flat_beside_a_kink

# Steps are relative to the size of the input, so that the check is the same at 1e-30 and at 1e30.
STEPS = 2.0 ** -np.arange(3, 37)
WITNESSES = 4  # a row needs this many rows of smaller steps before its error is believed

#: From a list of numbers t to an array (len(t), outputs): the function along a line.
Line: TypeAlias = Callable[[Sequence[float]], np.ndarray]


class Slope(NamedTuple):
    """Derivatives along a line, each with an entry for each output.

    Attributes:
        value: The derivative.
        error: An estimate of its error.
        step: The largest step that it was computed from.
        kink: How far the one-sided derivatives are apart at this step; 0 if no more than the error.
    """

    value: np.ndarray
    error: np.ndarray
    step: np.ndarray
    kink: np.ndarray


class Differences:
    """Finite differences of one function. Each search begins with the step that served best last time.

    Args:
        eps: The relative step. Default: chosen for each line.
    """

    def __init__(self, eps: float | None = None) -> None:
        self._steps = STEPS if eps is None else np.array([1.0, 0.5, 0.25]) * eps
        self._guess = 6 if eps is None else 0
        self._fixed = eps is not None

    def slope(
        self, line: Line, origin: np.ndarray, sizes: Sequence[float], expected: np.ndarray, enough: np.ndarray
    ) -> Slope:
        """Derivative of ``line`` at 0.

        Args:
            line: The function along a line.
            origin: Its values at 0, ``(outputs,)``.
            sizes: Units of t to try, largest first; the first is the usual one.
            expected: The derivative under test, ``(outputs,)``. If the first six evaluations confirm it, the search
                ends with them; otherwise all steps are tried.
            enough: Up to which difference, the estimated error included, they confirm it, ``(outputs,)``.
        """
        steps = sizes[0] * self._steps[self._guess : self._guess + 3]
        first = Slope(*(part[0] for part in _rows(line, origin, steps)))
        first = first._replace(error=np.maximum(first.error, first.kink))
        if self._fixed or np.all(np.abs(first.value - expected) + first.error <= enough):
            return first
        steps = np.unique(np.concatenate([size * self._steps for size in sizes]))[::-1]
        rows = _rows(line, origin, steps)
        rows = rows._replace(error=_honest(rows))
        choice = np.argmin(rows.error, axis=0)[None]
        best = Slope(*(np.take_along_axis(part, choice, axis=0)[0] for part in rows))
        guess = np.argmin(np.abs(self._steps - np.median(best.step) / sizes[0]))
        self._guess = min(int(guess), len(self._steps) - 3)
        return best


def _rows(line: Line, origin: np.ndarray, steps: np.ndarray) -> Slope:
    """A row for each step but the last two: extrapolated from the central differences at it and the next two."""
    with np.errstate(all="ignore"):
        ahead, behind = np.split(line([*steps, *-steps]), 2)
        central = (ahead - behind) / (2 * steps[:, None])
        # Steps need not be halves of one another where two ladders join: r is the square of their ratio.
        r = ((steps[:-1] / steps[1:]) ** 2)[:, None]
        fourth = (r * central[1:] - central[:-1]) / (r - 1)
        r = ((steps[:-2] / steps[2:]) ** 2)[:, None]
        sixth = (r * fourth[1:] - fourth[:-1]) / (r - 1)
        error = np.abs(fourth[1:] - fourth[:-1])
    error[~np.isfinite(error) | ~np.isfinite(sixth)] = np.inf
    # A function computed in fewer digits is flat over the smallest steps, which is no evidence of a zero derivative.
    flat = (central[2:] == 0) & (central[1:-1] == 0) & np.any(central != 0, axis=0)
    error[flat & ~flat_beside_a_kink(ahead, behind, origin)] = np.inf
    kink = disagreement(ahead, behind, origin, steps)
    return Slope(sixth, error, np.broadcast_to(steps[:-2, None], error.shape), kink)


def _honest(rows: Slope) -> np.ndarray:
    """The errors of all rows, raised where the rows of other steps contradict them.

    An error e_j at a smaller step h_j shows noise e_j h_j in the function, which makes an error of e_j h_j / h_k at
    step h_k, even where neighbouring rows agree by chance. Where two rows contradict each other, the larger step is
    right if its error is small: a function computed in fewer digits is a staircase, and inside of one stair its slope
    is another. If no larger step has a small error, the smaller step is right: the larger ones cross a pole.
    """
    value, error, step, kink = rows
    known = np.isfinite(error)
    noise = np.maximum.accumulate(np.where(known, error * step, 0.0)[::-1])[::-1]
    witnesses = np.cumsum(known[::-1], axis=0)[::-1] - known
    error = np.where(known & (witnesses >= WITNESSES), np.maximum(np.maximum(error, noise / step), kink), np.inf)
    order = range(len(value))
    for k in order:
        sure = error[k] < 0.1 * np.abs(value[k])
        error[k + 1 :] = np.where(sure, _refuted(value[k + 1 :], error[k + 1 :], value[k], error[k]), error[k + 1 :])
    for k in reversed(order):
        error[:k] = _refuted(value[:k], error[:k], value[k], error[k])
    return error


def _refuted(value: np.ndarray, error: np.ndarray, other: np.ndarray, other_error: np.ndarray) -> np.ndarray:
    """``error``, or the distance to ``other`` where both errors do not explain that distance."""
    with np.errstate(invalid="ignore"):
        gap = np.abs(value - other)
        return np.where(gap > 3 * (error + other_error), gap, error)
