"""Compares derivatives with finite differences: which are wrong, which cannot be judged, and the message."""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ._differences import Slope


class Precision(NamedTuple):
    """Tolerances of a dtype, relative to the largest derivative with respect to an input (for jvp: of an output).

    Attributes:
        rtol: Allowed error where the function is smooth and free of noise.
        loosest: The most that noise may raise that to; with more noise there is no verdict.
        floor: A derivative below this part of |fn| / |input| is rounding and counts as zero.
    """

    rtol: float
    loosest: float
    floor: float


DOUBLE = Precision(1e-6, 1e-3, 1e-9)
COMPLEX = Precision(2e-3, 2e-2, 1e-4)


def precision_of(arrays: Sequence[mx.array]) -> Precision:
    """COMPLEX if any of the arrays is complex64 (MLX has no complex128), else DOUBLE."""
    return COMPLEX if any(a.dtype == mx.complex64 for a in arrays) else DOUBLE


class Tolerance(NamedTuple):
    """The user's rtol and atol where given, else those of the precision."""

    precision: Precision
    rtol: float | None
    atol: float | None

    def floor(self, size: np.ndarray) -> np.ndarray:
        """Absolute error allowed where |fn| / |input| is ``size``."""
        return self.precision.floor * size if self.atol is None else self.atol + 0 * size

    def enough(self, scale: np.ndarray, floor: np.ndarray | float) -> np.ndarray:
        """Error of a finite difference that needs no better step, for derivatives of size ``scale``."""
        return floor + (self.precision.rtol if self.rtol is None else self.rtol) * scale

    def allowed(self, scale: float, error: np.ndarray, floor: float) -> np.ndarray:
        """Allowed difference, given the estimated error of the finite differences."""
        if self.rtol is not None:
            return np.full(error.shape, floor + self.rtol * scale)
        return floor + np.clip(10 * error, self.precision.rtol * scale, self.precision.loosest * scale)


class Group(NamedTuple):
    """Entries of a derivative whose errors are relative to the largest of them.

    Attributes:
        where: The array that the entries belong to: "inputs[0]".
        of: What is differentiated, or the direction: "for outputs[1]", "along inputs[0]".
        labels: A name for each entry: "index (1, 2)".
        analytic: The derivative under test.
        slope: Finite differences.
        floor: Allowed absolute difference.
    """

    where: str
    of: str
    labels: list[str]
    analytic: np.ndarray
    slope: Slope
    floor: float


class _Finding(NamedTuple):
    group: Group
    bad: np.ndarray  # which entries are off
    worst: int
    excess: float  # times the allowed difference
    allowed: float
    relative: float
    certain: bool


def _examine(group: Group, tolerance: Tolerance) -> _Finding:
    numeric, error, _, kink = group.slope
    sizes = np.abs(np.concatenate([group.analytic, numeric]))
    scale = float(np.max(sizes, where=np.isfinite(sizes), initial=0.0))
    allowed = tolerance.allowed(scale, error, group.floor)
    off = np.abs(group.analytic - numeric)
    off[~np.isfinite(off)] = np.inf
    # Where both are zero there is nothing to divide by, and nothing off.
    excess = np.divide(off, allowed, out=np.where(off > 0, np.inf, 0.0), where=allowed > 0)
    # No derivative exists at a kink, even if the mean of the one-sided ones is what was expected.
    precision = tolerance.precision
    limit = np.maximum(allowed, precision.loosest * scale)
    excess = np.where(kink > limit, np.maximum(excess, 2.0), excess)
    # NaN is wrong where finite differences know better; any other value where their error does not explain it.
    known = error <= precision.loosest * scale + group.floor
    certain = np.where(np.isfinite(group.analytic), np.isfinite(error) & (off > 10 * error), known)
    # A sure fault says more than a larger doubtful one.
    worst = int(np.argmax(np.where(certain | ~np.any(certain & (excess > 1)), excess, 0.0)))
    unit = max(scale, group.floor / precision.rtol) or 1.0
    return _Finding(
        group, excess > 1, worst, excess[worst], allowed[worst] / unit, float(np.max(off) / unit), bool(certain[worst])
    )


def judge(title: str, groups: list[Group], tolerance: Tolerance, seed: int) -> float:
    """The largest relative error of the groups; raises AssertionError with the worst entry if one is off."""
    findings = [_examine(group, tolerance) for group in groups if group.labels]
    bad = [finding for finding in findings if finding.excess > 1]
    if bad:
        raise AssertionError(_message(title, max(bad, key=lambda f: (f.certain, f.excess)), bad, findings, seed))
    return max((finding.relative for finding in findings), default=0.0)


def _message(title: str, worst: _Finding, bad: list[_Finding], findings: list[_Finding], seed: int) -> str:
    group, i = worst.group, worst.worst
    value, error, step, kink = (part[i] for part in group.slope)
    off, every = sum(int(f.bad.sum()) for f in bad), sum(f.bad.size for f in findings)
    verdict = "is wrong, most" if worst.certain else "cannot be judged"
    lines = [
        f"[pinvnn.testing.gradcheck] {title} {verdict} at {group.where}, {group.labels[i]}, {group.of}:",
        f"    analytic {group.analytic[i]: .12g}",
        f"    numeric  {value: .12g}, good to {error:.1e} (step {step:.1e})",
        f"    off by {worst.relative:.1e} of the largest derivative there, allowed {worst.allowed:.1e}",
        f"    {off} of {every} entries are off, in {', '.join(dict.fromkeys(f.group.where for f in bad))}",
        f"    replay with seed={seed}",
    ]
    if not worst.certain:
        if kink > 0:
            lines.append(f"    one-sided derivatives differ by {kink:.6g}: fn has a kink or a jump. Take other inputs.")
        else:
            lines.append("    fn is too noisy or not smooth there. Take other inputs, or pass rtol or eps.")
    return "\n".join(lines)
