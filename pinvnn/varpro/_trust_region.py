"""Levenberg and Marquardt's method in a scaled trust region, with bounds and a secant term.

Minimises F(x) = ||f(x)||^2 / 2 for lower <= x <= upper. A step minimises a quadratic model (`_quadratic_model.py`) over
the ball ||D p|| <= radius and the box; D holds the largest column norms of J so far, so that the path does not depend
on the units of x (Moré 1978, doi 10.1007/BFb0067700). A step is accepted by the ratio of the actual to the predicted
reduction. Refused, and the ball shrinks, is a trial point where f is not finite, where its rounding errors are as large
as the reduction, or where the linear problem behind f has lost rank.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ._local import Linearizer, Local, Point, Slopes
from ._quadratic_model import QuadraticModel
from ._reasons import REASONS


class Step(NamedTuple):
    """One trial step, as the solver's callback sees it.

    Attributes:
        step: 1, 2, ...
        objective: the objective ||f||^2 after the step.
        trial: the objective at the trial point; inf where f is not finite there.
        accepted: whether the trial point was taken.
        length: the length of the trial step relative to x, in the scaled norm.
        point: the point after the step.
    """

    step: int
    objective: float
    trial: float
    accepted: bool
    length: float
    point: Any


class Outcome(NamedTuple):
    """The last point accepted, the trial steps it took, whether it is a minimum, and why the iteration ended."""

    point: Any
    steps: int
    converged: bool
    reason: str


FIRST_SHARE, FIRST_REACH = 0.5, 3.0
"""The first step is at most this share of x, and changes a column of the basis by at most about three of its lengths.
A longer one may cross to where a parameter has the other sign, or land where columns are the same."""

ROUGH = 4.0
"""An objective that jumps for a step up to this many times as long as the last one is not flat, but broken."""


class TrustRegionSearch:
    """One minimisation.

    Args:
        evaluate: x (p,) -> point.
        linearise: point -> slopes, called once for each accepted point but perhaps the last.
        lower, upper: bounds (p,); equal ones hold a variable.
        scale: a norm of the data, against which the rounding of f is measured.
        eps: relative rounding of f.
        tol: tolerance of the relative step, and of the cosine between f and the columns of J.
    """

    def __init__(
        self,
        evaluate: Callable[[np.ndarray], Any],
        linearise: Callable[[Any], Slopes],
        lower: np.ndarray,
        upper: np.ndarray,
        *,
        scale: float,
        eps: float,
        tol: float,
    ):
        self.evaluate, self.linearizer = evaluate, Linearizer(linearise, lower, upper, scale, eps, tol)
        self.lower, self.upper = lower, upper
        self.scale, self.eps, self.tol = scale, eps, tol
        self.radius = self.previous = self.first = np.inf
        self.secant = False
        self.hidden, self.cancellation = lower.size, np.inf
        self.far = np.zeros(lower.size)
        self.refusals: list[str] = []
        self.jump = np.inf

    def run(self, start: Point, max_steps: int, callback: Callable[[Step], object] | None = None) -> Outcome:
        """Minimise from ``start``, where f is finite, in at most ``max_steps`` trial steps; a true callback ends it."""
        self.local, ending = self._around(start, None)
        steps = 0
        while not ending and steps < max_steps:
            steps += 1
            step, ending = self._step(steps)
            if step.accepted and not ending:
                step, ending = self._move(step)
            if callback is not None and callback(step):
                ending = ending or "stopped"
        ending = ending or "max_steps"
        if REASONS[ending][0] and ending != "exact":
            ending = self._degenerate() or ending
        converged, meaning = REASONS[ending]
        return Outcome(self.local.point, steps, converged, f"{ending}: {meaning}")

    def _degenerate(self) -> str:
        """A key of REASONS if the search came from where variables have influence to where they have none."""
        if self.local.hidden > self.hidden:
            return "undetermined"
        now = self.local.point.cancellation
        cancels = self.eps**0.5 * now > max(self.scale, 1e3 * self.eps**0.5 * self.cancellation)
        return "dependent" if cancels else ""

    def _move(self, step: Step) -> tuple[Step, str]:
        """Go to the trial point of an accepted step, unless nothing leads on from there."""
        before = self.local
        self.local, ending = self._around(step.point, before)
        if ending == "exact" or (ending not in ("flat", "derivative") and not self.local.lost(before)):
            return step, ending
        # The step went too far: back, and a shorter one.
        self.local = before
        self._resize(-np.inf, step.length * before.size(), False)
        ending = "" if self.radius > self.eps * before.size() else ending
        return step._replace(accepted=False, objective=before.objective, point=before.point), ending

    def _around(self, point: Any, before: Local | None) -> tuple[Local, str]:
        """The objective around ``point``, and a key of REASONS if the search ends there."""
        local, ending, reach = self.linearizer.at(point, before)
        if reach is None:
            return local, ending
        self.hidden = min(self.hidden, local.hidden)
        self.cancellation = min(self.cancellation, point.cancellation)
        if local.s is None:
            self.secant = False
        if not np.isfinite(self.radius):
            self.far = self._first_steps(point.x, reach)
            self.radius = self.first = float(np.linalg.norm(local.d * self.far)) or 1.0
        return local, ending

    def _first_steps(self, x: np.ndarray, reach: np.ndarray) -> np.ndarray:
        """A part of x itself, whose sign may mean a lot; but no farther than the derivatives may be trusted, (p,)."""
        size = FIRST_SHARE * np.abs(x)
        far = np.where(size > 0, np.minimum(size, FIRST_REACH * reach), FIRST_REACH * reach)
        return np.where(np.isfinite(far), far, 1.0)

    def _step(self, number: int) -> tuple[Step, str]:
        """One trial step from the current point, and a key of REASONS if the search ends with it."""
        local = self.local
        x, weight = local.point.x, local.weight
        model, other = local.gauss_newton, None
        if local.s is not None:
            other = QuadraticModel(model.r, model.qtf, local.s)
            if self.secant and other.is_convex(local.free):
                model, other = other, model
        # Below the noise the objective cannot tell two points apart. The steps still can, as long as they shrink.
        noise = 10 * local.noise
        box = (self.lower - x) * weight, (self.upper - x) * weight
        move, limited = model.minimum(*box, local.free, np.inf)
        reach = max(model.decrease(move), 0.5 * local.slope**2)  # The latter by one variable alone.
        below_noise = reach <= noise
        if not below_noise:
            # The ball alone would let a variable of little influence go as far as the others together may.
            edge = weight * self.far
            ends = np.maximum(box[0], -edge), np.minimum(box[1], edge)
            move, limited = model.minimum(*ends, local.free, self.radius)
        target = np.where(move <= box[0], self.lower, np.where(move >= box[1], self.upper, x + move / weight))
        trial = self.evaluate(np.clip(target, self.lower, self.upper))
        move = (trial.x - x) * weight
        length, size = float(np.linalg.norm(move)), local.size()

        predicted = model.decrease(move)
        finite = bool(np.isfinite(trial.f).all())
        objective = float(trial.f @ trial.f) if finite else np.inf
        decrease = 0.5 * (local.objective - objective)
        trial_noise = self.linearizer.noise(trial, objective**0.5) if finite else np.inf
        usable = finite and trial.deficiency <= local.point.deficiency
        if below_noise:
            accepted = usable and decrease >= -noise and trial_noise <= noise and length < self.previous
        else:
            ratio = decrease / predicted if predicted > 0 and usable else -np.inf
            accepted = ratio > 1e-4 and decrease > trial_noise
            self._resize(ratio if accepted else min(ratio, 0.0), length, finite)
            if other is not None:
                closer = abs(model.decrease(move) - decrease) <= abs(other.decrease(move) - decrease)
                self.secant = accepted and closer == (model.s is not None)
        if accepted:
            self.refusals.clear()
            self.jump = np.inf
        else:
            rough = self.jump <= ROUGH * length  # A step of like length has just shown that f is not smooth here.
            if finite and abs(decrease) > 1e3 * max(predicted, noise):
                self.jump = length
            noisy = abs(decrease) > 10 * predicted or abs(decrease) <= trial_noise < predicted
            why = "not finite" if not finite else "dependent" if not usable else "noise" if noisy else "stalled"
            self.refusals.append(why)
        self.previous = length if accepted and not limited else np.inf
        best = objective if accepted else local.objective
        step = Step(number, best, objective, accepted, length / (size or 1.0), trial if accepted else local.point)

        ending = ""
        if not limited and (accepted or below_noise) and length <= self.tol * size:
            ending = "step"
        elif not accepted:
            hidden = below_noise or (max(predicted, abs(decrease)) <= noise and reach <= 1e4 * noise)
            if hidden:
                ending = "noise" if rough else "rounding"
            elif self.radius <= self.eps * (size or self.first) or length == 0:
                ending = Counter(self.refusals).most_common(1)[0][0]
        if ending and accepted:
            self.local.point = trial
        return step, ending

    def _resize(self, ratio: float, length: float, finite: bool) -> None:
        """The next radius, from the ratio of the actual to the predicted reduction."""
        if ratio > 0.75:
            growth = 4 if ratio > 0.9 else 2
            self.radius, self.far = max(self.radius, growth * length), growth * self.far
        elif not ratio > 0.25:
            shrinkage = 0.5 if finite else 0.1
            self.radius, self.far = shrinkage * min(self.radius, length or self.radius), shrinkage * self.far
