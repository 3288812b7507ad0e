"""Cases measured, each a row of the report."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from acefast import nvml
from acefast.bench.engines import MODES, Job, ModeUnavailable, forget, why_unavailable
from acefast.bench.predictions import Predictor, beside
from acefast.bench.procedure import CpuClock, CudaClock, Effort, Run, figures, repeat, timed, warm_up
from acefast.bench.weights import Weights
from acefast.checkpoint import open_checkpoint
from acefast.devices import current
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


@dataclass(frozen=True)
class Session:
    """What all cases of a report share."""

    device: torch.device
    dtype: torch.dtype
    backend: str | None  # of the modes fused and graph
    steps: int
    effort: Effort
    gpu: nvml.Gpu | None = None  # is watched; None where there is none or NVML cannot be asked
    predict: Predictor | None = None
    said: Callable[[str], None] = lambda line: None  # is told how far the work is

    def rows(self, weights: Weights, plan: list[tuple[str, float, int]]) -> Iterator[dict[str, Any]]:
        """A row for each (mode, seconds, batch); one mode's networks in memory at a time.

        Raises:
            GpuLost: after the row of the case in which it was.
        """
        guidance = open_checkpoint(weights.path, offline=True).traits.defaults("diffusers")[2]
        about = torch.cuda.get_device_properties(self.device) if self.device.type == "cuda" else None
        facts = {"gpu": about.name, "sm": 10 * about.major + about.minor} if about else {}
        dtype = str(self.dtype).removeprefix("torch.")
        for mode, asked in itertools.groupby(plan, key=lambda case: case[0]):
            engine, reason = None, why_unavailable(mode)
            try:
                backend = self.backend if mode in ("fused", "graph") else None
                engine = None if reason else MODES[mode](weights.path, self.device, self.dtype, backend)
            except ModeUnavailable as error:
                reason = str(error)
            for _, seconds, batch in asked:
                words = (seconds, batch, self.steps, guidance, mode, dtype, str(self.device))
                case = Case(weights.name, weights.kind, *words, **facts)
                row = unavailable(case, reason) if engine is None else self.measure(case, engine)
                yield row
                if lost := row.get("nvml") and row["nvml"]["lost"]:
                    raise nvml.GpuLost(lost)
            del engine
            forget()

    def measure(self, case: Case, engine: Any) -> dict[str, Any]:
        """Warm up, repeat, watch: a row; ``engine`` is one of acefast.bench.engines, loaded."""
        cuda = self.device.type == "cuda"
        clock = CudaClock if cuda else CpuClock
        watcher = None

        def run() -> Run:
            with memory_told("the song", "lower --seconds or --batch"):
                return timed(once, clock)

        with current(self.device):  # its events are recorded there
            try:
                once = engine.song(Job(case.seconds, case.batch, case.steps))
                self.said(f"{case.title}: warming up")
                if cuda:
                    torch.cuda.reset_peak_memory_stats(self.device)
                warmed = warm_up(run, self.effort)
                self.said(f"{case.title}: measuring, after {warmed['runs']} runs to warm up")
                with nvml.Watcher(self.gpu) if self.gpu else contextlib.nullcontext() as watcher:
                    begin = time.perf_counter()
                    runs = repeat(run, self.effort)
                    end = time.perf_counter()
            except (ModeUnavailable, RequestError) as error:  # the latter where memory ran out
                return unavailable(case, str(error))
            except RuntimeError as error:
                if watcher is None or not watcher.lost:
                    raise
                raise nvml.GpuLost(watcher.lost) from error
        watched = watcher.summary(begin, end) if watcher else None
        peak = torch.cuda.max_memory_allocated(self.device) if cuda else None
        return row(case, runs, warmed, watched, self.predict, peak)


def unavailable(case: Case, reason: str) -> dict[str, Any]:
    """The row of a case that cannot run."""
    return {**asdict(case), "unavailable": reason}


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
