"""One case measured: a row of the report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from acefast import nvml
from acefast.bench.engines import Job, ModeUnavailable
from acefast.bench.predictions import Predictor, beside
from acefast.bench.procedure import CpuClock, CudaClock, Effort, Run, figures, repeat, timed, warm_up
from acefast.request import RequestError
from acefast.stages import memory_told

STAGES = ("prep", "diffusion", "step", "decode", "copy", "finish", "total")


@dataclass(frozen=True)
class Case:
    """What is measured; all that a prediction has to know."""

    model: str
    weights: str  # "checkpoint" or "random"
    seconds: float
    batch: int
    steps: int
    guidance: float
    mode: str
    dtype: str
    device: str  # "cpu", "cuda:0"
    gpu: str | None = None  # its name
    sm: int | None = None

    @property
    def title(self) -> str:
        return f"{self.model} {self.seconds:g} s x {self.batch}, {self.mode}"


def unavailable(case: Case, reason: str) -> dict[str, Any]:
    """The row of a case that cannot run."""
    return {**asdict(case), "unavailable": reason}


def measure(
    case: Case,
    engine: Any,
    effort: Effort,
    *,
    gpu: nvml.Gpu | None = None,
    predict: Predictor | None = None,
    said: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Warm up, repeat, watch: a row.

    Args:
        engine: of acefast.bench.engines, loaded.
        gpu: is watched meanwhile; None where there is none or NVML cannot be asked.
        predict: what was predicted for a case.
        said: is told how far the measurement is.
    """
    cuda = case.device.startswith("cuda")
    clock = CudaClock if cuda else CpuClock
    watcher = None
    try:
        once = engine.song(Job(case.seconds, case.batch, case.steps))

        def run() -> Run:
            with memory_told("the song", "lower --seconds or --batch"):
                return timed(once, clock)

        said(f"{case.title}: warming up")
        if cuda:
            torch.cuda.reset_peak_memory_stats(case.device)
        warmed = warm_up(run, effort)
        said(f"{case.title}: measuring, {warmed['runs']} runs to warm up")
        with nvml.Watcher(gpu) if gpu else contextlib.nullcontext() as watcher:
            begin = time.perf_counter()
            runs = repeat(run, effort)
            end = time.perf_counter()
    except (ModeUnavailable, RequestError) as error:  # the latter where memory ran out
        return unavailable(case, str(error))
    except RuntimeError as error:
        if watcher is None or not watcher.lost:
            raise
        raise nvml.GpuLost(f"{case.title}: the GPU was lost: {watcher.lost}") from error
    watched = watcher.summary(begin, end) if watcher else None
    return row(case, runs, warmed, watched, predict, torch.cuda.max_memory_allocated(case.device) if cuda else None)


def row(
    case: Case,
    runs: list[Run],
    warmed: dict[str, Any],
    watched: dict[str, Any] | None,
    predict: Predictor | None,
    peak_bytes: int | None,
) -> dict[str, Any]:
    """All that is told of a case; docs/bench.md says what each key means."""
    ms = figures(runs)
    made = case.seconds * case.batch  # seconds of audio a run
    joules = watched and watched["joules"]
    told = {
        **asdict(case),
        "unavailable": None,
        "warmup": warmed,
        "runs": len(runs),
        "ms": {name: ms[name] for name in STAGES if name in ms},
        "rtf": ms["total"]["p50"] / 1e3 / made,
        "peak_bytes": peak_bytes,
        "nvml": watched,
        "joules_per_audio_second": joules / (len(runs) * made) if joules else None,
        "problems": list(watched["problems"]) if watched else [],
    }
    return told | beside(told["ms"], predict and predict(asdict(case)))


def withheld(row: dict[str, Any]) -> dict[str, Any]:
    """The row without its figures: they were taken on a GPU that was throttled, shared or lost."""
    kept = {*(f.name for f in fields(Case)), "unavailable", "runs", "nvml", "problems"}
    return {k: v if k in kept else None for k, v in row.items()} | {"withheld": True}
