"""``python -m benchmarks``: measure, print, judge."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from time import monotonic

from . import cases, contenders, memory, report
from .measure import Effort, Session, measure
from .plot import plot
from .pool import ROOT, Pool
from .startup import import_times
from .targets import checklist

TRACKED = Path(__file__).with_name("results")


def arguments(argv=None):
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    several = {"type": lambda text: text.split(","), "metavar": "A,B,..."}
    parser.add_argument("--ops", help=f"of {', '.join(cases.OPS)}", **several)
    parser.add_argument("--shapes", help=f"of {', '.join(map(cases.shape_name, cases.SHAPES))}", **several)
    parser.add_argument("--dtypes", help=f"of {', '.join(cases.DTYPES)}", **several)
    parser.add_argument("--modes", help=f"of {', '.join(cases.MODES)} (forward + backward)", **several)
    parser.add_argument("--peers", help="mx.linalg, numpy, scipy, sklearn, torch, jax, lineax", **several)
    parser.add_argument("--peer-python", metavar="PATH", help="interpreter of the peers (default: this one)")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="where pinvnn and its GPU peer run")
    parser.add_argument("--no-preload", action="store_true", help="MLX with the BLAS of its wheel")
    parser.add_argument("--no-errors", action="store_true", help="times only")
    parser.add_argument("--no-memory", action="store_true", help="no peak memory (nor on a GPU)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, two turns: does the harness run?")
    parser.add_argument("--turns", type=int, default=Effort.most, help="at most (default %(default)s)")
    parser.add_argument("--budget", type=float, default=Effort.budget, metavar="SECONDS",
                        help="of turns for each contender and row (default %(default)s)")
    parser.add_argument("--limit", type=float, default=Effort.limit, metavar="SECONDS",
                        help="for one call (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=75.0,
                        help="after which no further case is begun (default %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks", help="folder of JSON and plot")
    parser.add_argument("--write-readme", action="store_true", help="put the tables into benchmarks/README.md")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="report an earlier run instead of measuring")
    parser.add_argument("--add-to", type=Path, metavar="FILE",
                        help="an earlier run of this machine, whose other rows are kept in the report")
    parser.add_argument("--list", action="store_true", help="print the selected cases and stop")
    return parser.parse_args(argv)


def selected(options):
    return list(cases.select(options.ops, options.shapes, options.dtypes, options.quick))


def run(options):
    """Measure everything that is asked for; the answer is the report, fit for JSON."""
    effort = Effort(most=options.turns, budget=options.budget, limit=options.limit, judged=not options.no_errors,
                    modes=tuple(options.modes or cases.MODES))
    if options.quick:
        effort = Effort(least=2, most=2, judged=effort.judged, modes=effort.modes)
    start = monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    taking_part = contenders.contenders(options.device, options.peers, not options.no_preload and not options.quick)
    with (tempfile.TemporaryDirectory() as folder, open(options.out / "workers.log", "w") as log,
          Pool(taking_part, options.peer_python, not options.no_preload, log) as pool):
        about, missing = pool.start()
        found = {"rows": [], "memory": [], "left_out": [], "about": about, "missing": missing, "preload": pool.preload,
                 "device": options.device, "command": _command(sys.argv[1:]),
                 "machine": _machine(), "python": platform.python_version(),
                 "date": datetime.date.today().isoformat(), "load": round(os.getloadavg()[0], 1)}
        _print(report.taking_part(found))
        for case in () if options.no_memory or options.device == "gpu" else memory.cases(options.ops, options.quick):
            found["memory"].append(memory.measure_memory(case, pool, 3 * effort.limit, Path(folder) / "memory"))
            _print(["", report.memory_text(found["memory"][-1])])
        session = Session(pool, effort, Path(folder))
        for case in selected(options):
            if monotonic() - start > 60 * options.minutes:
                found["left_out"].append(str(case))
                continue
            for row in measure(case, session):
                found["rows"].append(row)
                _print(["", report.row_text(row)])
        found["about"] |= pool.about()  # now with what was loaded on the first call
    found["imports"] = import_times(1 if options.quick else 7)
    found["seconds"] = monotonic() - start
    return found


def together(earlier, later):
    """One report of two runs; a row that both have measured is the later one's."""
    def name(row):
        return row["shape"], row["case"]["op"], row["case"]["dtype"], row.get("mode")

    found = dict(later)
    for part in ("rows", "memory"):
        again = {name(row) for row in later[part]}
        found[part] = [row for row in earlier[part] if name(row) not in again] + later[part]
    measured = {f"{row['case']['op']} {row['shape']} {row['case']['dtype']}" for row in found["rows"]}
    found["left_out"] = [case for case in earlier["left_out"] + later["left_out"] if case not in measured]
    found["command"] = f"{earlier['command']}` and `{later['command']}"
    found["seconds"] = earlier["seconds"] + later["seconds"]
    return found


def _command(words):
    """The command, without the paths of one machine."""
    return shlex.join(["python", "-m", "benchmarks", *("PATH" if Path(x).is_absolute() else x for x in words)])


def _machine():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    cores = sum(line.startswith("processor") for line in lines)
    return f"{model}, {f'{cores} cores, ' if cores else ''}{platform.system()}"


def _print(lines):
    for line in lines:
        print(line, flush=True)


def main():
    options = arguments()
    if options.list:
        _print(str(case) for case in selected(options))
        return
    found = json.loads(options.from_json.read_text()) if options.from_json else run(options)
    if options.add_to:
        found = together(json.loads(options.add_to.read_text()), found)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(found, indent=1))
    drawn = plot(found, options.out / "times.png")
    _print(["", *report.machine(found), "", "Targets", *checklist(found), ""])
    _print([f"{found['seconds'] / 60:.1f} minutes; results.json{' and times.png' if drawn else ''} in {options.out}"])
    if options.write_readme:
        report.write_readme(found)
        TRACKED.mkdir(exist_ok=True)
        for name in ("results.json", "times.png") if drawn else ("results.json",):
            shutil.copy(options.out / name, TRACKED / name)


if __name__ == "__main__":
    main()
