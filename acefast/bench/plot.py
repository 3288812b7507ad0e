"""The report as a picture: a bar of stacked stages for each case, what was predicted for it beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

from acefast.bench.report import machine, ms_text, title
from acefast.request import RequestError

STACKED = ("prep", "diffusion", "decode", "copy", "finish")
COLOURS = dict(zip(STACKED, ("#8a9099", "#3b5b92", "#c2703d", "#6b9a6b", "#b8a35a")))


def bars(row: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds of each stage, measured and predicted; what of a total no stage accounts for is "rest"."""
    measured = {name: figure["p50"] for name, figure in row["ms"].items()}
    return _stack(measured), _stack(row.get("predicted_ms") or {})


def _stack(ms: Mapping[str, float]) -> dict[str, float]:
    parts = {stage: ms[stage] for stage in STACKED if stage in ms}
    rest = ms.get("total", 0.0) - sum(parts.values())
    return parts | ({"rest": rest} if rest > 0 else {})


def draw(file: BinaryIO, report: Mapping[str, Any]) -> None:
    """Write a PNG to ``file``; RequestError without matplotlib, or where nothing was measured."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RequestError("plot: needs matplotlib, which is not installed; run pip install acefast[plot]") from error

    rows = [row for row in report["cases"] if not row["unavailable"] and row["ms"]]
    if not rows:
        raise RequestError("plot: no case was measured; there is nothing to draw")
    ink, faint = "#22262b", "#8a9099"
    figure = Figure(figsize=(12, 1.8 + 0.62 * len(rows)), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown: dict[str, Any] = {}
    for place, row in enumerate(rows):
        for stack, y, alpha in zip(bars(row), (place, place + 0.36), (1.0, 0.45)):
            left = 0.0
            for stage, ms in stack.items():
                style = dict(color=COLOURS.get(stage, "#d8dbe0"), alpha=alpha, hatch="" if alpha == 1 else "//")
                bar = axes.barh(y, ms, height=0.34, left=left, edgecolor="white", linewidth=0.4, **style)
                if alpha == 1:
                    shown.setdefault(stage, bar)
                left += ms
            if stack:
                ms = row["ms"]["total"]["p50"] if alpha == 1 else row["predicted_ms"].get("total", left)
                told = f" {ms_text(ms)} ms" + ("" if alpha == 1 else " predicted")
                axes.text(left, y, told, va="center", fontsize=8.5, color=ink if alpha == 1 else faint)
    axes.set_yticks(range(len(rows)), [title(row) for row in rows], fontsize=9)
    axes.set_ylim(max(len(rows), 2) - 0.4, -0.4)
    axes.margins(x=0.14)
    axes.set_xlim(left=0)
    axes.set_xlabel("ms, medians", color=ink, fontsize=9.5)
    axes.tick_params(colors=ink, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(shown.values(), shown.keys(), ncols=len(shown), loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    labels = [] if report["complete"] else ["incomplete"]
    labels += ["not to be relied on"] if report["forced"] else []
    heading = "; ".join(["measured (full) and predicted (hatched)", *labels])
    figure.suptitle(f"{heading}\n{machine(report['environment'])}", fontsize=9, color=faint, ha="left", x=0.01)
    figure.canvas.print_png(file)
