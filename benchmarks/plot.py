"""Times over shapes: one panel for each operation and mode, float32 unless a run has none."""

from __future__ import annotations

from .cases import DTYPES, MODE_NAMES, MODES, OPS
from .contenders import AS_INSTALLED, BASELINE, OURS
from .targets import Row

_COLORS = {OURS: "black", "floor": "0.6", "mx.linalg": "tab:purple", "numpy": "tab:blue", "scipy": "tab:cyan",
           "sklearn": "tab:olive", "torch": "tab:red", "jax": "tab:green", "lineax": "tab:orange",
           "torch gpu": "tab:pink"}


def plot(report, path):
    """Write the figure; False without matplotlib or rows."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = [Row(x) for x in report["rows"]]
    dtype = next((dtype for dtype in DTYPES if any(x.case.dtype == dtype for x in rows)), None)
    rows = [x for x in rows if x.case.dtype == dtype and "ms" in x.results.get(OURS, {})]
    ops = [op for op in OPS if any(x.case.op == op for x in rows)]
    if not ops:
        return False
    figure = Figure(figsize=(4 + 4.5 * len(ops), 9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(MODES), len(ops), squeeze=False)
    for i, mode in enumerate(MODES):
        for j, op in enumerate(ops):
            _panel(axes[i, j], [x for x in rows if (x.case.op, x.mode) == (op, mode)], f"{op}, {MODE_NAMES[mode]}")
    handles = {label: handle for axis in axes.flat
               for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper")
    figure.suptitle(f"Milliseconds, {dtype}; hollow where the error is over 10 times pinvnn's "
                    f"({report['machine']}, {report['date']})")
    figure.savefig(path, dpi=110)
    return True


def _panel(axis, rows, title):
    if not rows:
        axis.set_axis_off()
        return
    axis.set_title(title)
    rows.sort(key=lambda row: (row.case.work, row.case.n))
    for name, color in _COLORS.items():
        found = [(x, row.results[name]["ms"][1], _hollow(row, name)) for x, row in enumerate(rows)
                 if "ms" in row.results.get(name, {})]
        if not found:
            continue
        own = name in (OURS, "floor")
        marker = "_" if name == "floor" else "o"
        axis.plot([x for x, _, _ in found], [ms for _, ms, _ in found], color=color, marker=marker, label=name,
                  linestyle="-" if own else "none", markerfacecolor=color if own else "none", zorder=3 if own else 2)
        solid = [(x, ms) for x, ms, hollow in found if not hollow]
        axis.plot([x for x, _ in solid], [ms for _, ms in solid], marker, color=color, zorder=2)
    axis.set_yscale("log")
    axis.set_xticks(range(len(rows)), [row.case.shape for row in rows], rotation=60, ha="right", fontsize=8)
    axis.grid(axis="y", alpha=0.3)


def _hollow(row, name):
    return name not in (OURS, "floor", BASELINE) and not name.endswith(AS_INSTALLED) and name not in row.peers()
