"""What a run prints, and the tables of the README."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import shorten

from .cases import DTYPES, MODE_NAMES, OPS
from .contenders import AS_INSTALLED, BASELINE, OURS, is_own
from .targets import Row, checklist

README = Path(__file__).with_name("README.md")
_MARKS = "<!-- table: written by the command -->", "<!-- end of table -->"


def taking_part(report):
    """Lines on who is measured and who is missing."""
    yield f"measuring {', '.join(name + ' (' + about['versions'] + ')' for name, about in report['about'].items())}"
    for name, reason in report["missing"].items():
        yield f"{name}: skipped ({reason})"
    if report["preload"]:
        yield f"MLX's processes, and no others, run with a preloaded BLAS: {report['preload']}"
    else:
        yield "MLX's processes run with the BLAS of its wheel: no OpenBLAS to preload was found, or --no-preload"


def machine(report):
    """Lines on the machine, the processes and the BLAS each loaded."""
    yield f"{report['machine']}; Python {report['python']}; {report['date']}; pinvnn on the {report['device']}"
    yield f"load average when the run began: {report['load']} (processes of others slow down whoever uses all cores)"
    yield from list(taking_part(report))[1:]
    if report["left_out"]:
        yield f"left out for want of time (--minutes): {', '.join(report['left_out'])}"
    for name, about in report["about"].items():
        if name not in ("floor", "gram"):  # as pinvnn's
            yield f"{name}: {about['versions']}; BLAS: {', '.join(about['blas']) or 'unknown'}"


def row_text(row):
    """One row in full: every contender's time, ratio and errors."""
    judged = Row(row)
    lines = [judged.name]
    for name, result in row["results"].items():
        if result.keys() - {"note"}:
            mark = " " if is_own(name) or judged.excess(name, OURS) <= 10 else "!"
            note = result.get("note", "")
            lines.append(f"  {name:24}{_times(result):57} {_errors(result):44}{mark} {note}".rstrip())
    notes = [f"{name}: {x['note']}" for name, x in row["results"].items() if x.keys() == {"note"}]
    return "\n".join(lines + [f"  not run: {'; '.join(notes)}"] * bool(notes))


def memory_text(row):
    """One row of the memory table."""
    parts = [f"{name} {x['bytes'] / row['input']:.2f}" if "bytes" in x else f"{name}: {x['note']}"
             for name, x in row["results"].items()]
    start = f"{row['case']['op']} {row['shape']} float32, peak over the input's {row['input'] / 1e6:.3g} MB"
    return f"{start}: {', '.join(parts)}"


def _times(result):
    if "ms" not in result:
        return ""
    low, mid, high = result["ms"]
    text = f"{mid:10.4g} ms [{low:.4g}, {high:.4g}]"
    if "ratio" in result:
        low, mid, high = result["ratio"]
        text = f"{text:34} {mid:.3g}x [{low:.3g}, {high:.3g}]"
    return text


def _errors(result):
    return "  ".join(f"{cond}: {'/'.join(f'{x:.0e}' for x in parts.values())}"
                     for cond, parts in sorted(result.get("errors", {}).items()))


def markdown(report):
    """Checklist and tables."""
    yield f"`{report['command']}`, {report['seconds'] / 60:.0f} minutes."
    yield ""
    yield from (f"- {line}" for line in machine(report))
    yield ""
    yield "### Targets"
    yield ""
    yield from (f"- {verdict}" for verdict in checklist(report))
    for op in OPS:
        for dtype in DTYPES:
            for mode, name in MODE_NAMES.items():
                rows = [Row(x) for x in report["rows"]
                        if (x["case"]["op"], x["case"]["dtype"], x["mode"]) == (op, dtype, mode)]
                if rows:
                    yield from ("", f"### {op}, {dtype}, {name}", "", *_table(rows))
    if report["memory"]:
        yield from ("", "### Peak memory, forward + backward, as a multiple of the input", "")
        yield from _memory_table(report["memory"])


def _table(rows):
    peers = [name for name in rows[0].results if not is_own(name) and not name.endswith(AS_INSTALLED)
             and any(x.ratio(name) for x in rows)]
    heads = ["shape", "pinvnn, ms", "over the floor", *peers, "error", "LAPACK's"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        low, mid, high = row.results[OURS].get("ms") or [float("nan")] * 3
        floor = row.ratio("floor")
        cells = [row.case.shape, f"{mid:.3g} [{low:.3g}, {high:.3g}]", f"{1 / floor:.1f}" if floor else "",
                 *(_cell(row, name) for name in peers), _worst(row, OURS), _worst(row, BASELINE)]
        yield f"| {' | '.join(cells)} |"


def _cell(row, name):
    """Ratio to our time with its spread; in brackets where the peer does not count for its error."""
    ratio = row.results[name].get("ratio")
    if not ratio:
        return ""
    text = f"{ratio[1]:.3g} [{ratio[0]:.3g}, {ratio[2]:.3g}]"
    return text if name in row.peers() else f"({text})"


def _worst(row, name):
    return " / ".join(f"{error:.0e}" for _, error in sorted(row.errors(name).items()))


def _memory_table(rows):
    names = list(rows[0]["results"])
    yield f"| | input | {' | '.join(names)} |"
    yield "|---" * (len(names) + 2) + "|"
    for row in rows:
        cells = [f"{x['bytes'] / row['input']:.2f}" if "bytes" in x else shorten(x["note"], 60, placeholder=" ...")
                 for x in row["results"].values()]
        yield f"| {row['case']['op']} {row['shape']} float32 | {row['input'] / 1e6:.3g} MB | {' | '.join(cells)} |"


def write_readme(report):
    """Replace what stands between the marks of the README."""
    text = README.read_text()
    start, end = (re.escape(mark) for mark in _MARKS)
    table = "\n".join([_MARKS[0], "", *markdown(report), "", _MARKS[1]])
    README.write_text(re.sub(f"{start}.*{end}", lambda _: table, text, flags=re.DOTALL))
