"""Taking turns: the times and errors of every contender on one case."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

from .cases import MODES, Case
from .contenders import AS_INSTALLED, BASELINE, OURS
from .peers.base import Unsupported
from .pool import Failed, Missing, Pool

SLICE = 0.004  # seconds of calls that one turn times at least
SLOW = 3.0  # seconds of a call that is its contender's only one
NEAR = 20  # times the work of the case that a case's time is guessed from
COMPILING = 20.0  # seconds that a first call may take beyond the limit
HOPELESS = 2.0  # seconds of a preloaded mx.linalg whose twin without a fast BLAS is left out


@dataclass(frozen=True)
class Effort:
    """How long to measure: turns at least and at most, seconds of turns for each contender, seconds a call may take."""

    least: int = 3
    most: int = 15
    budget: float = 0.25
    limit: float = 8.0
    judged: bool = True
    modes: tuple[str, ...] = MODES


@dataclass
class Session:
    """A run: its processes, a folder for data, and how long the smaller cases took."""

    pool: Pool
    effort: Effort
    folder: Path
    seconds: dict = field(default_factory=dict)

    def expected(self, name, case, mode):
        """Seconds by the last case of its kind, None if there was none, and that case's shape."""
        seconds, smaller = self.seconds.get(_kind(name, case, mode), (None, case))
        growth = case.work / smaller.work
        return (seconds * growth if seconds and 1 < growth <= NEAR else None), smaller.shape

    def remember(self, name, case, mode, seconds):
        self.seconds[_kind(name, case, mode)] = seconds, case


def _kind(name, case, mode):
    return name, case.op, mode, case.dtype, case.m >= case.n, min(case.m, case.n), case.batch


def measure(case: Case, session: Session):
    """One row for each mode: a dictionary fit for JSON."""
    effort = session.effort
    conditions = case.conditions if effort.judged else case.conditions[:1]
    folder = session.folder / "case"
    try:
        files = {cond: session.pool.judge.call("pose", 600, case=case.asdict(), cond=cond, judged=effort.judged,
                                               folder=str(folder / f"{cond:g}")) for cond in conditions}
        baseline = None
        for mode in case.modes:
            if mode in effort.modes:
                row = _row(case, mode, session, files, baseline)
                baseline = row["results"].get(BASELINE)
                yield row
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _row(case, mode, session, files, baseline):
    """``baseline``: the result of the first mode's, where value and gradient were judged together."""
    results, firsts = {}, {}
    for name in session.pool.workers:
        if name == BASELINE and baseline is not None:
            results[name] = baseline
            continue
        results[name], first = _first_calls(name, case, mode, session, files, firsts)
        if first:
            firsts[name] = first
    times = _take_turns(session.pool, firsts, session.effort)
    for name, turns in times.items():
        results[name] |= _statistics(turns, times.get(OURS))
        session.remember(name, case, mode, min(turns))
    return {"case": case.asdict(), "shape": case.shape, "mode": mode, "results": results}


def _first_calls(name, case, mode, session, files, firsts):
    """Errors at each condition, and the seconds of a call at the lowest, whose data stay loaded for the turns."""
    worker, limit = session.pool.workers[name], session.effort.limit
    result, seconds = {}, 0.0
    for cond in sorted(files, reverse=True):
        try:
            _leave_out(name, case, mode, session, firsts)
            seconds = worker.call("load", limit + COMPILING, case=case.asdict(), mode=mode, files=files[cond])
            if session.effort.judged and name not in ("floor", "gram"):
                paths = worker.call("save", 60, folder=str(session.folder))
                errors = session.pool.judge.call("errors", 60, cond=cond, paths=paths)
                result.setdefault("errors", {})[f"{cond:g}"] = errors
            if seconds > SLOW:
                break
        except (Unsupported, Failed, Missing) as reason:
            result["note"] = str(reason)
            seconds = 0.0
            if isinstance(reason, Unsupported):
                break
            if worker.process is None:  # what took too long or too much memory does so again
                session.remember(name, case, mode, math.inf)
                break
            result.setdefault("errors", {})[f"{cond:g}"] = {"value": math.inf}
    return result, seconds if worker.contender.timed else 0.0


def _leave_out(name, case, mode, session, firsts):
    """Rows that would say nothing new, or not in time."""
    if name.endswith(AS_INSTALLED) and (case.op, mode, case.dtype) != ("pinv", "forward", "float32"):
        raise Unsupported("compared in pinv's forward pass only")
    if name == "mx.linalg" + AS_INSTALLED and firsts.get("mx.linalg", math.inf) > HOPELESS:
        raise Unsupported("mx.linalg is slow enough with a fast BLAS")
    expected, shape = session.expected(name, case, mode)
    if expected is not None and expected > session.effort.limit and name != OURS:
        raise Unsupported(f"left out after {shape}, which took too long or failed" if math.isinf(expected)
                          else f"left out: about {expected:.0f} s, by its time at {shape}")


def _take_turns(pool, firsts, effort):
    """Seconds of each turn, by contender. Whoever has spent its budget drops out, the quick go on together.

    The budget is spent by the fastest turn so far, times turns: a neighbour's burst of work costs nobody its turns.
    """
    times = {name: [first] if first > SLOW else [] for name, first in firsts.items()}
    active = [name for name, turns in times.items() if not turns]
    for turn in range(effort.most):
        # Each leads once: whatever a turn leaves behind meets a different successor.
        lead = turn % max(1, len(active))
        for name in active[lead:] + active[:lead]:
            try:
                times[name].append(pool.workers[name].call("turn", 10 * effort.limit, least=SLICE))
            except Failed:
                active.remove(name)
        active = [name for name in active if len(times[name]) < effort.least
                  or len(times[name]) * _turn(min(times[name])) < effort.budget]
        if OURS in firsts and OURS not in active and turn + 1 >= effort.least:
            break
    return {name: turns for name, turns in times.items() if turns}


def _turn(seconds):
    """Length of a turn whose calls take ``seconds``."""
    return max(2 * SLICE, seconds)


def _statistics(turns, ours):
    """Milliseconds, and the ratio to our time of the same turn, each as lower quartile, median, upper quartile."""
    found = {"ms": [1e3 * x for x in _quartiles(turns)], "turns": len(turns)}
    if ours:
        pairs = list(zip(turns, ours, strict=False)) if len(ours) >= len(turns) > 1 else []
        ratios = [a / b for a, b in pairs] or [x / _quartiles(ours)[1] for x in turns]
        found["ratio"] = _quartiles(ratios)
    return found


def _quartiles(values):
    return quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
