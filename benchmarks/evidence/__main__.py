"""``python -m benchmarks.evidence STUDY``: run one study of ``docs/evidence.md`` and print its tables.

Each takes less than ten minutes on two cores. ``--small`` takes seconds, on little data: does it run? ``--write`` keeps
the result in ``benchmarks/evidence/results`` and puts its tables into the page.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from importlib import import_module

from ..__main__ import _machine
from . import page
from .table import Table, caption, markdown

STUDIES = {  # name: module and function
    "regression": "tabular.regression",
    "classification": "tabular.classification",
    "few_shot": "few_shot.run",
    "drift": "drift.run",
    "mackey_glass": "mackey_glass.run",
    "probes": "probes.run",
}


def main(argv=None):
    parser = argparse.ArgumentParser("python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("study", choices=STUDIES, nargs="?")
    parser.add_argument("--small", action="store_true", help="little data, few steps")
    parser.add_argument("--write", action="store_true", help="keep the result and put its tables into the page")
    parser.add_argument("--page", action="store_true", help="only put the stored results into the page")
    parser.add_argument("--only", metavar="A;B", type=lambda text: text.split(";"),
                        help="run these rivals alone, and with --write put them into the stored result")
    options = parser.parse_args(argv)
    if options.page:
        return page.write()
    if not options.study:
        parser.error(f"name a study, of {', '.join(STUDIES)}")
    if options.small and options.write:
        parser.error("a small run says nothing about the rivals: it is not written")
    module, function = STUDIES[options.study].split(".")
    start = time.process_time()
    tables = getattr(import_module(f"{__package__}.{module}"), function)(options.small, _say, options.only)
    found = {"study": options.study, "date": datetime.date.today().isoformat(), "machine": _machine(),
             "seconds": round(time.process_time() - start), "tables": [table.asdict() for table in tables]}
    if options.only and options.write:
        found = page.together(json.loads((page.RESULTS / f"{options.study}.json").read_text()), found)
        tables = [Table.from_dict(table) for table in found["tables"]]
    for table in tables:
        print("", caption(table), "", *markdown(table), sep="\n")
    print(f"\n{found['seconds']} s, {found['machine']}")
    if options.write:
        page.RESULTS.mkdir(exist_ok=True)
        (page.RESULTS / f"{options.study}.json").write_text(json.dumps(page.rounded(found), indent=1) + "\n")
        page.write()


def _say(line):
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
