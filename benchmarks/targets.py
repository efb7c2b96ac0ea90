"""The targets as a checklist, judged from one run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .cases import DTYPES, MODE_NAMES, Case
from .contenders import AS_INSTALLED, BASELINE, OURS, is_own

NOISE = {"float32": 10 * 2.0**-23, "float64": 10 * 2.0**-52}  # 10 eps: the order of a sum can do that
TIE = 1.05  # "not slower" allows this much


@dataclass(frozen=True)
class Verdict:
    """One line of the checklist; ``reached`` is None where the run has nothing to judge by."""

    target: str
    reached: bool | None
    figures: str

    def __str__(self):
        mark = {True: "[x]", False: "[ ]", None: "[?]"}[self.reached]
        return f"{mark} {self.target}: {self.figures}"


class Row:
    """A measured row with the rules by which it and its peers count."""

    def __init__(self, row):
        self.case, self.mode, self.results = Case(**row["case"]), row["mode"], row["results"]
        self.name = f"{self.case}, {MODE_NAMES[self.mode]}"

    def errors(self, name):
        """The worst of value and gradients at each condition."""
        judged = ("value",) if self.mode == "forward" else ("value", "gradient")
        errors = self.results.get(name, {}).get("errors", {})
        return {cond: max(parts[x] for x in judged if x in parts) for cond, parts in errors.items()}

    def excess(self, name, other):
        """Error of one over the error of another, the worst over the conditions; noise does not count."""
        mine, others, noise = self.errors(name), self.errors(other), NOISE[self.case.dtype]
        return max((mine[c] / max(noise, others[c]) for c in mine.keys() & others.keys()), default=0.0)

    @property
    def counts(self):
        """Ours is measured, and at most twice as wrong as LAPACK in the same dtype."""
        return "ms" in self.results.get(OURS, {}) and self.excess(OURS, BASELINE) <= 2

    def ratio(self, name):
        """The peer's time over ours, None where one is missing."""
        ratio = self.results.get(name, {}).get("ratio")
        return ratio[1] if ratio else None

    def peers(self):
        """Ratios of the peers that count: their error is at most ten times ours."""
        return {name: ratio for name in self.results if not is_own(name) and not name.endswith(AS_INSTALLED)
                and (ratio := self.ratio(name)) is not None and self.excess(name, OURS) <= 10}

    def best(self):
        """The fastest peer that counts and its ratio, or None."""
        return min(self.peers().items(), key=lambda peer: peer[1], default=None)


def checklist(report):
    """All verdicts of a report (see ``report.py``)."""
    rows = [Row(row) for row in report["rows"]]
    yield from _accuracy(rows)
    for dtype in DTYPES:
        yield from _backward([x for x in rows if x.case.dtype == dtype], dtype)
    for dtype in DTYPES:
        yield from _forward([x for x in rows if x.case.dtype == dtype], dtype)
    yield from _batches(rows)
    yield from _near_the_product(rows)
    yield from _memory(report["memory"])
    yield _as_installed(rows, bool(report["preload"]))
    yield _imports(report["imports"])


def _accuracy(rows):
    measured = [x for x in rows if "ms" in x.results.get(OURS, {}) and x.errors(BASELINE)]
    wrong = [f"{x.name} ({x.excess(OURS, BASELINE):.1f}x)" for x in measured if not x.counts]
    yield Verdict("rows that count: error at most 2 times LAPACK's in the same dtype", _all(measured, wrong),
                  _list(wrong, len(measured)))


def _backward(rows, dtype):
    ridge = [x for x in rows if x.mode == "backward" and x.case.op == "ridge" and x.counts]
    rows = [x for x in rows if x.mode == "backward" and x.case.op in ("pinv", "lstsq") and x.counts]
    yield _mean(f"{dtype}: forward + backward of pinv and lstsq, m >= 4 n or n >= 4 m, geometric mean over torch", 20,
                [x for x in rows if x.case.elongated], "torch")
    yield _never_slower(f"{dtype}: forward + backward of pinv and lstsq, no row slower than the best peer by over 5 %",
                        rows, None)
    yield _never_slower(f"{dtype}: forward + backward of ridge, no row slower than a hand-written solve as accurate",
                        ridge, None)


def _forward(rows, dtype):
    rows = [x for x in rows if x.mode == "forward" and x.counts]
    pinv = [x for x in rows if x.case.op == "pinv"]
    against = [x for x in pinv if x.ratio("mx.linalg")]
    slower = [f"{x.case.shape} ({x.ratio('mx.linalg'):.2f})" for x in against if x.ratio("mx.linalg") < 1]
    yield Verdict(f"{dtype}: forward pinv faster than mx.linalg.pinv in every row", _all(against, slower),
                  _list(slower, len(against)))
    yield _mean(f"{dtype}: forward pinv, m >= 4 n, geometric mean over mx.linalg.pinv", 10,
                [x for x in pinv if x.case.m >= 4 * x.case.n], "mx.linalg")
    yield _never_slower(f"{dtype}: forward of pinv, lstsq and ridge not slower than NumPy's and torch's", rows,
                        ("numpy", "torch"))


def _mean(target, least, rows, peer):
    """Over all rows that the peer finished, and over those where its error lets it count: the lower one decides."""
    finished = [x.ratio(peer) for x in rows if x.ratio(peer)]
    counted = [x.peers()[peer] for x in rows if peer in x.peers()]
    if not finished:
        return Verdict(f"{target}, at least {least}", None, "not measured")
    means = [_geometric_mean(x) for x in (finished, counted) if x]
    failed = len(rows) - len(finished)
    text = f"{means[0]:.1f} over the {len(finished)} rows it finished" + (f" ({failed} it did not)" if failed else "")
    if counted and len(counted) < len(finished):
        text += f"; {means[1]:.1f} over the {len(counted)} where its error is within 10 times ours"
    return Verdict(f"{target}, at least {least}", min(means) >= least, text)


def _never_slower(target, rows, names):
    slower, judged = [], 0
    for row in rows:
        peers = {name: ratio for name, ratio in row.peers().items() if not names or name in names}
        judged += bool(peers)
        if peers and min(peers.values()) < 1 / TIE:
            best = min(peers, key=lambda name: peers[name])
            slower.append(f"{row.case.op} {row.case.shape} ({best} {peers[best]:.2f})")
    return Verdict(target, not slower if judged else None, _list(slower, judged))


def _batches(rows):
    for dtype in DTYPES:
        chosen = [x for x in rows if x.case.shape in ("1024x16x8", "64x64x32") and x.case.dtype == dtype
                  and x.mode == "backward" and x.case.op != "readout" and x.counts and x.ratio("torch")]
        slower = [f"{x.case.op} {x.case.shape} ({x.ratio('torch'):.2f}"
                  + ("" if "torch" in x.peers() else f", its error {x.excess('torch', OURS):.0e} times ours") + ")"
                  for x in chosen if x.ratio("torch") <= 1]
        decisive = [x for x in chosen if "torch" in x.peers() and x.ratio("torch") <= 1]
        yield Verdict(f"{dtype}: batches 1024 x (16, 8) and 64 x (64, 32), forward + backward faster than torch",
                      not decisive if chosen else None, _list(slower, len(chosen)))


def _near_the_product(rows):
    for op, most in (("lstsq", 5), ("ridge", 5), ("pinv", 12)):
        row = next((x for x in rows if (x.case.op, x.case.shape, x.case.dtype, x.mode)
                    == (op, "100000x64", "float32", "backward") and x.ratio("gram")), None)
        times = 1 / row.ratio("gram") if row else math.nan
        yield Verdict(f"{op} (100000, 64) float32, forward + backward, at most {most} Gram products",
                      times <= most if row else None, f"{times:.1f}" if row else "not measured")


def _memory(rows):
    for op, most in (("lstsq", 4), ("ridge", 4), ("pinv", 6)):
        row = next((x for x in rows if x["case"]["op"] == op and x["shape"] == "1000000x64"), None)
        held = row["results"].get(OURS, {}).get("bytes", math.inf) / row["input"] if row else math.nan
        yield Verdict(f"{op} (1000000, 64) float32, forward + backward, peak memory below {most} times the input",
                      held < most if row else None, f"{held:.2f}" if row else "not measured")


def _as_installed(rows, preloaded):
    """With a preloaded BLAS for the rest of the run, mx.linalg's time with it stands in where it is slow even so."""
    suffix = AS_INSTALLED if preloaded else ""
    judged, slower = 0, []
    for row in (x for x in rows if x.case.op == "pinv" and x.mode == "forward"):
        ours = row.results.get(OURS + suffix, {}).get("ms")
        rival = row.results.get("mx.linalg" + suffix, {}).get("ms") or row.results.get("mx.linalg", {}).get("ms")
        if ours and rival:
            judged += 1
            if ours[1] > rival[1]:
                slower.append(f"{row.case.shape} {row.case.dtype} ({rival[1] / ours[1]:.2f})")
    return Verdict("the BLAS as installed: no row slower than mx.linalg.pinv", not slower if judged else None,
                   _list(slower, judged))


def _imports(times):
    reached = times["added"] < 60 if times else None
    text = f"{times['added']:.0f} ms, and mlx.core {times['mlx.core']:.0f} ms" if times else "not measured"
    return Verdict("import pinvnn adds less than 60 ms to import mlx.core", reached, text)


def _geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def _all(measured, bad):
    return not bad if measured else None


def _list(bad, count):
    if not count:
        return "not measured"
    return f"{len(bad)} of {count} rows are not: {', '.join(bad)}" if bad else f"all {count} rows"
