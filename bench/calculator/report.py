"""The predicted songs as text: one song's table, and the committed report with its plot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.calculator.counted import Counts
from bench.calculator.gpus import DEVICES
from bench.calculator.predicted import BATCHES, ESTIMATES, SECONDS, predict
from bench.calculator.song import MODELS, STAGES, Job

FILE = Path(__file__).parents[1] / "results/predicted-a100.md"
TITLES = {
    "floor": "floor",
    "target": "target of the plan",
    "predicted": "predicted",
    "compiled": "compiled PyTorch",
    "eager": "eager PyTorch",
}
COLOURS = {"prep": "#9aa5b1", "dit": "#3b6ea8", "decode": "#d98032", "finish": "#6aa56e"}
Row = dict[str, Any]


def song(found: Row, kernels: bool = False) -> Iterator[str]:
    """A song's stages, and its kernels, in lines."""
    name = f"{found['model']}, {found['seconds']:g} s, batch {found['batch']}"
    yield f"{name}, {found['device']}; milliseconds, predicted"
    yield f"{'':8}" + "".join(f"{TITLES[kind]:>20}" for kind in ESTIMATES) + f"{'launches':>10}"
    for stage in STAGES:
        cells = "".join(f"{found['stages'][stage][f'{kind}_ms']:20.2f}" for kind in ESTIMATES)
        yield f"{stage:8}{cells}{found['launches'][stage]:10}"
    cells = "".join(f"{found[f'{kind}_ms']:20.2f}" for kind in ESTIMATES)
    yield f"{'total':8}{cells}{sum(found['launches'].values()):10}"
    yield f"{found['real_time_factor']:g} times real time"
    if kernels:
        yield ""
        for row in found["kernels"]:
            yield f"{row['stage']:8}{row['kernel']:44}{row['launches']:8}{row['ms']:10.2f}  {row['bound']}"


def write(counts: dict[str, dict[str, Counts]]) -> None:
    """The report, and the plot beside it.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the report is written.
    """
    found = {
        (model, seconds, batch, key): predict(Job(model, seconds, batch), device, counts)
        for key, device in DEVICES.items()
        for model in MODELS
        for seconds in SECONDS
        for batch in BATCHES
    }
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text("\n".join(_report(found, counts)) + "\n")
    _plot([found["turbo", seconds, 1, "a100-40"] for seconds in SECONDS], FILE.with_suffix(".png"))


def _report(found: dict[tuple, Row], counts: dict) -> Iterator[str]:
    yield "# Predicted: songs of ACE-Step 1.5 on an A100"
    yield ""
    yield "Nothing here was run on a GPU. Milliseconds per call, written by `python bench/predict.py --report`."
    yield "*Floor*, *target*, *compiled* and *eager PyTorch* are the calculator's estimates (bench/calculator/song.py)."
    yield "*Predicted* takes this repository's launches and what its compiled kernels were counted to do: the formula"
    yield "stands in bench/calculator/counted.py; prep is the calculator's plan. Turbo takes 8 steps; base 50,"
    yield "all of them guided. 501 conditions. Copies to the host are left out; whether it all fits"
    yield "a GPU's memory is not looked at. H100 has the counts of sm_80, whose code the simulator runs."
    yield ""
    yield "![stages of turbo](predicted-a100.png)"
    for key in ("a100-40", "a100-80"):
        yield ""
        yield f"## {DEVICES[key].name}"
        yield ""
        yield from _songs([found[m, s, b, key] for m in MODELS for b in BATCHES for s in SECONDS])
    yield ""
    yield "## Stages, batch 1, A100 40 GB: floor / target / predicted / compiled / eager"
    yield ""
    yield "| song | " + " | ".join(STAGES) + " |"
    yield "|---" * (len(STAGES) + 1) + "|"
    for model in MODELS:
        for seconds in SECONDS:
            row = found[model, seconds, 1, "a100-40"]
            cells = [" / ".join(_ms(row["stages"][stage][f"{kind}_ms"]) for kind in ESTIMATES) for stage in STAGES]
            yield f"| {model}, {seconds} s | " + " | ".join(cells) + " |"
    yield ""
    yield "## Kernels of turbo, 240 s, A100 40 GB"
    yield ""
    yield "Of the compiled kernel at a few tiles: registers, other instructions per tensor-core one in its main loop,"
    yield "sectors over the fewest possible. A row is a proved case and all launches it is the nearest to: of the same"
    yield "tiles, other widths, dilations or the other 16-bit dtype among them; times are at each launch's own size."
    yield ""
    yield from _kernels(found["turbo", 240, 1, "a100-40"]["kernels"], counts)
    yield ""
    yield "## Other GPUs: predicted (floor / eager)"
    yield ""
    others = [key for key in DEVICES if not key.startswith("a100")]
    yield "| song | " + " | ".join(DEVICES[key].name for key in others) + " |"
    yield "|---" * (len(others) + 1) + "|"
    for model in MODELS:
        for batch in BATCHES:
            for seconds in SECONDS:
                rows = [found[model, seconds, batch, key] for key in others]
                cells = [f"{_ms(r['predicted_ms'])} ({_ms(r['floor_ms'])} / {_ms(r['eager_ms'])})" for r in rows]
                yield f"| {model}, {seconds} s, batch {batch} | " + " | ".join(cells) + " |"


def _songs(rows: list[Row]) -> Iterator[str]:
    yield f"| song | {' | '.join(TITLES[kind] for kind in ESTIMATES)} | predicted / target | times real time |"
    yield "|---" * (len(ESTIMATES) + 3) + "|"
    for row in rows:
        cells = [_ms(row[f"{kind}_ms"]) for kind in ESTIMATES]
        ratio = f"{row['predicted_ms'] / row['target_ms']:.2f}"
        name = f"{row['model']}, {row['seconds']:g} s, batch {row['batch']}"
        yield f"| {name} | {' | '.join(cells)} | {ratio} | {row['real_time_factor']:.0f} |"


def _kernels(rows: list[Row], counts: dict) -> Iterator[str]:
    yield "| stage | kernel | launches | predicted, ms | bound by | registers | loop mix | sectors |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        if row["ms"] < 0.05:
            continue
        own = counts.get(row["kernel"], {}).get("80", {})
        mix = f"{own['loop_other']}:{own['loop_mma']}" if own.get("loop_mma") else ""
        sectors = f"{own['sectors'] / own['sectors_min']:.3f}" if own else ""
        cells = [row["stage"], row["kernel"].replace("|", "\\|"), row["launches"], f"{row['ms']:.2f}", row["bound"]]
        yield "| " + " | ".join(map(str, [*cells, own.get("registers", ""), mix, sectors])) + " |"


def _ms(ms: float) -> str:
    return f"{ms:.1f}" if ms < 99.95 else f"{ms:.0f}"


def _plot(rows: list[Row], file: Path) -> None:
    """Stacked stages of each estimate, a panel per length."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{rows[0]['model']} on {rows[0]['device']}, batch 1: milliseconds by stage. Predicted, not measured"
    )
    for axes, row in zip(figure.subplots(1, len(rows)), rows):
        below = [0.0] * len(ESTIMATES)
        for stage in STAGES:
            high = [row["stages"][stage][f"{kind}_ms"] for kind in ESTIMATES]
            axes.bar(ESTIMATES, high, bottom=below, color=COLOURS[stage], label=stage)
            below = [a + b for a, b in zip(below, high)]
        for x, top in enumerate(below):
            axes.text(x, top, _ms(top), ha="center", va="bottom", fontsize=8)
        axes.set_title(f"{row['seconds']:g} s")
        axes.margins(y=0.06)
        axes.tick_params(axis="x", rotation=45)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    figure.savefig(file, dpi=100)
