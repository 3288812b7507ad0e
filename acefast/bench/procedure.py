"""How a case is timed: warm up until it settles, run it often enough, take percentiles.

A run is cut into stages by ``mark(stage)``, which closes the time since the mark before: CUDA events on a GPU, the
monotonic clock elsewhere. The total is always the monotonic clock's, around the whole run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

SETTLED = 0.01  # relative difference of the last three runs
Mark = Callable[[str], None]
Once = Callable[[Mark], Any]


@dataclass(frozen=True)
class Effort:
    """How long to try."""

    warmup_seconds: float = 30.0  # at most, after the first run, which may compile
    runs: int = 20
    run_seconds: float = 30.0  # enough even where it makes fewer runs


@dataclass(frozen=True)
class Run:
    """Milliseconds of one run: of each stage, every time it was marked, and in all."""

    stages: dict[str, list[float]]
    total: float


class CpuClock:
    """Marks by the monotonic clock."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, float]] = [("", time.perf_counter())]

    def mark(self, stage: str) -> None:
        self.marks.append((stage, time.perf_counter()))

    def intervals(self) -> list[tuple[str, float]]:
        """Stage and milliseconds of every mark, in order."""
        return [(stage, 1e3 * (t - before)) for (_, before), (stage, t) in zip(self.marks, self.marks[1:])]


class CudaClock:
    """Marks by events on the current stream, which cost no synchronisation."""

    def __init__(self) -> None:
        torch.cuda.synchronize()
        self.marks: list[tuple[str, torch.cuda.Event]] = []
        self.mark("")

    def mark(self, stage: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append((stage, event))

    def intervals(self) -> list[tuple[str, float]]:
        torch.cuda.synchronize()
        return [(stage, before.elapsed_time(event)) for (_, before), (stage, event) in zip(self.marks, self.marks[1:])]


def timed(once: Once, clock: Callable[[], CpuClock | CudaClock]) -> Run:
    """One run, timed."""
    marks = clock()
    begun = time.perf_counter()
    once(marks.mark)
    if isinstance(marks, CudaClock):
        torch.cuda.synchronize()
    total = 1e3 * (time.perf_counter() - begun)
    stages: dict[str, list[float]] = {}
    for stage, ms in marks.intervals():
        stages.setdefault(stage, []).append(ms)
    return Run(stages, total)


def warm_up(run: Callable[[], Run], effort: Effort) -> dict[str, Any]:
    """Run until three in a row differ by less than 1 %, or the time is up; what it took."""
    totals = [run().total]
    begun = time.perf_counter()
    while not settled(totals) and time.perf_counter() - begun < effort.warmup_seconds:
        totals.append(run().total)
    return {"runs": len(totals), "settled": settled(totals), "first_ms": totals[0]}


def settled(totals: Sequence[float]) -> bool:
    last = totals[-3:]
    return len(last) == 3 and max(last) < (1 + SETTLED) * min(last)


def repeat(run: Callable[[], Run], effort: Effort) -> list[Run]:
    """``effort.runs`` runs, or as many as are begun within ``effort.run_seconds``, at least one."""
    found: list[Run] = []
    begun = time.perf_counter()
    while not found or (len(found) < effort.runs and time.perf_counter() - begun < effort.run_seconds):
        found.append(run())
    return found


def figures(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """p50, p95 and min in ms: per run of every stage and the total; ``step`` per step, whose sum is ``diffusion``."""
    per_run: dict[str, list[float]] = {}
    for run in runs:
        for stage, times in run.stages.items():
            per_run.setdefault("diffusion" if stage == "step" else stage, []).append(sum(times))
        per_run.setdefault("total", []).append(run.total)
    if steps := [ms for run in runs for ms in run.stages.get("step", ())]:
        per_run["step"] = steps
    return {
        name: {"p50": percentile(times, 50), "p95": percentile(times, 95), "min": min(times)}
        for name, times in per_run.items()
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that ``percent`` of the sorted values reach, linear between neighbours."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
