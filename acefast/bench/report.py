"""The report: JSON whose schema is in docs/bench.md, and a table in Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from acefast.bench.predictions import JUDGED_STAGES, LIMIT
from acefast.request import RequestError

SCHEMA = "acefast-bench/1"
BUSY = 1.0  # processes that already ran: on a CPU they take their share of the time
Cell = Callable[[Mapping[str, Any]], Any]


def read(path: Path) -> dict[str, Any]:
    """A report that was written as JSON; RequestError where it is none, or of another schema."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"it is no JSON: {error}"
        raise RequestError(f"{str(path)!r} cannot be read: {reason}") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise RequestError(f"{str(path)!r} is no report of acefast bench: its schema is {schema!r}, not {SCHEMA!r}")
    return found


def as_json(report: Mapping[str, Any]) -> str:
    return json.dumps(report, indent=1, allow_nan=False) + "\n"


def _p50(stage: str) -> Cell:
    return lambda row: ms_text((row["ms"] or {}).get(stage, {}).get("p50"))


def _watched(figure: str) -> Cell:
    return lambda row: _number(((row["nvml"] or {}).get(figure) or {}).get("mean"), 0)


def _throttled(row: Mapping[str, Any]) -> str | None:
    found = row["nvml"] and row["nvml"]["throttled"]
    return None if found is None else ", ".join(found) or "no"


COLUMNS: dict[str, Cell] = {
    "model": lambda row: row["model"].removeprefix("ace-step-1.5-"),
    "s": lambda row: f"{row['seconds']:g}",
    "batch": lambda row: row["batch"],
    "steps": lambda row: row["steps"],
    "guidance": lambda row: f"{row['guidance']:g}",
    "mode": lambda row: row["mode"],
    "dtype": lambda row: row["dtype"],
    "prep": _p50("prep"),
    "DiT": _p50("diffusion"),
    "a step": _p50("step"),
    "decode": _p50("decode"),
    "copy": _p50("copy"),
    "total": _p50("total"),
    "p95": lambda row: ms_text((row["ms"] or {}).get("total", {}).get("p95")),
    "min": lambda row: ms_text((row["ms"] or {}).get("total", {}).get("min")),
    "RTF": lambda row: _number(row["rtf"], 4),
    "runs": lambda row: row["runs"],
}
PREDICTED: dict[str, Cell] = {
    "TFLOP/s": lambda row: _number(row["tflops"], 2),
    "GB/s": lambda row: _number(row["gb_s"], 1),
    "% of floor": lambda row: _number(row["floor_share"] and 100 * row["floor_share"], 1),
    "predicted": lambda row: ms_text((row["predicted_ms"] or {}).get("total")),
    "measured/predicted": lambda row: _number((row["measured_over_predicted"] or {}).get("total"), 2),
    "passes": lambda row: None if row["passes"] is None else "yes" if row["passes"] else "no",
    "launches": lambda row: row["launches"],
}
GPU: dict[str, Cell] = {
    "peak MB": lambda row: _number(row["peak_bytes"] and row["peak_bytes"] / 1e6, 0),
    "SM MHz": _watched("sm_mhz"),
    "W": _watched("power_w"),
    "J per audio s": lambda row: _number(row["joules_per_audio_second"], 2),
    "throttled": _throttled,
}


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report for people: what was measured on, a table, what to know about it."""
    environment, cases = report["environment"], report["cases"]
    rows = [row for row in cases if not row["unavailable"]]
    gpu = any(row["device"].startswith("cuda") for row in rows)
    predicted = any(row.get("predicted_ms") for row in rows)
    columns = COLUMNS | (PREDICTED if predicted else {}) | (GPU if gpu else {})
    lines = [
        f"Measured on {machine(environment)}. Times in ms, medians; RTF is seconds of work per second of audio.",
        "",
    ]
    if report["forced"]:
        lines[:0] = ["**Not to be relied on**: reported by force although the GPU was throttled, shared or lost.", ""]
    if not report["complete"]:
        lines[:0] = ["**Incomplete**: the cases below are those that were finished.", ""]
    if rows:
        lines += _table([list(columns), *([cell(row) for cell in columns.values()] for row in rows)])
        lines += [""]
    notes = [f"{title(row)}: not measured, {row['unavailable']}" for row in cases if row["unavailable"]]
    for row in rows:
        word = "no figures, " if row.get("withheld") else ""
        notes += [f"{title(row)}: {word}{problem}" for problem in row["problems"]]
        if not row.get("withheld") and not row["warmup"]["settled"]:
            notes.append(f"{title(row)}: did not settle within {row['warmup']['runs']} runs of warm-up")
    if rows and not gpu and (environment.get("load") or 0) > BUSY:
        load = f"{environment['load']:g} processes ran in the minute before, on {environment['cores']} cores"
        notes.append(f"The machine was busy ({load}): times are longer than they are alone.")
    if any(row["weights"] == "random" for row in rows):
        notes.append("Random weights of the model's size: times mean something, the sound does not.")
    if predicted:
        notes.append(f"passes: measured over predicted is at most {LIMIT} for {', '.join(JUDGED_STAGES)}.")
        machines = dict.fromkeys(row["predicted_for"] for row in rows if row.get("predicted_for"))
        notes += [f"Predicted for {name}." for name in machines]
    if reason := environment.get("nvml"):
        notes.append(f"Clocks, power and throttling are unknown: {reason}.")
    return "\n".join([*lines, *(f"- {note}" for note in notes)]).rstrip() + "\n"


def machine(environment: Mapping[str, Any]) -> str:
    """One line that names the machine and what decides about its speed."""
    threads = environment["threads"]
    parts = [f"{environment['cpu']}, {threads} thread{'s' * (threads > 1)} on {environment['cores']} cores"]
    if environment.get("gpu_name"):
        modes = [name.upper() for name in ("ecc", "mig") if environment.get(name)]
        pcie = environment.get("pcie")
        gpu = [environment["gpu_name"], *modes, pcie and f"PCIe {pcie}"]
        versions = (("driver", environment.get("driver")), ("CUDA", environment.get("cuda")))
        parts = [", ".join(p for p in gpu if p), *(f"{name} {v}" for name, v in versions if v), *parts]
    parts += [f"{name} {environment[name]}" for name in ("torch", "triton", "diffusers") if environment[name]]
    return ", ".join([*parts, *([f"revision {environment['git']}"] if environment["git"] else [])])


def title(row: Mapping[str, Any]) -> str:
    return f"{row['model']}, {row['seconds']:g} s x {row['batch']}, {row['mode']}"


def _table(rows: list[list[Any]]) -> list[str]:
    words = [["" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*words)]
    lines = ["| " + " | ".join(word.ljust(width) for word, width in zip(row, widths)) + " |" for row in words]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def ms_text(value: float | None) -> str | None:
    """Three digits, or all before the point."""
    return None if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
