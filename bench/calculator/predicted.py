"""A song as this repository launches it, predicted: stage by stage, kernel by kernel."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from acefast.cases import Case
from bench.calculator.counted import Counts, case_of, seconds
from bench.calculator.gpus import DEVICES, Device
from bench.calculator.recorded import Call, recorded_decode, recorded_step
from bench.calculator.song import MODELS, STAGES, Job, compiled, latency, plan

SECONDS, BATCHES = (30, 120, 240, 600), (1, 8)  # of the report
ESTIMATES = ("floor", "target", "predicted", "compiled", "eager")


def predict(job: Job, device: Device, counts: dict[str, dict[str, Counts]]) -> dict[str, Any]:
    """Milliseconds, as plain data: ``predicted_ms``, each stage's estimates, and every kernel's share.

    The steps, the decoder's tiles and the last pass are what the code launches. What comes before the steps is the
    calculator's plan: the encoders of text and lyrics are not on static memory yet.
    """
    tiles, tile, last = recorded_decode(job.frames, job.batch, device)
    prep = [Call(library=kernel) for kernel in plan(job)["prep"][1]]
    calls = {"prep": (1, prep), "dit": (job.number_of_steps, recorded_step(job, device.sm))}
    calls |= {"decode": (tiles, tile), "finish": (1, last)}
    kernels = [row for stage in STAGES for row in _rows(stage, *calls[stage], device, counts)]
    found = {kind: latency(job, device, kind) for kind in ("floor", "target", "eager")}
    found |= {"compiled": compiled(job, device)}
    found["predicted"] = {stage: sum(k["ms"] for k in kernels if k["stage"] == stage) / 1e3 for stage in STAGES}
    found["predicted"]["total"] = sum(found["predicted"].values())
    ms = {kind: {name: round(1e3 * t, 3) for name, t in stages.items()} for kind, stages in found.items()}
    return {
        **{"model": job.model, "seconds": job.seconds, "batch": job.batch, "device": device.name},
        "what": "predicted from counts; nothing was run on a GPU",
        **{f"{kind}_ms": ms[kind]["total"] for kind in ESTIMATES},
        "real_time_factor": round(job.batch * job.seconds / found["predicted"]["total"], 1),
        "steps": job.number_of_steps,
        "tiles": tiles,
        "launches": {stage: sum(k["launches"] for k in kernels if k["stage"] == stage) for stage in STAGES},
        "stages": {stage: {f"{kind}_ms": ms[kind][stage] for kind in ESTIMATES} for stage in STAGES},
        "kernels": [{**k, "ms": round(k["ms"], 4)} for k in kernels],
    }


def launched_cases() -> list[Case]:
    """The cases that songs of the report's sizes launch, on any of the GPUs."""
    found = {}
    for device in {device.sm: device for device in DEVICES.values()}.values():
        for length, batch in itertools.product(SECONDS, BATCHES):
            jobs = [Job(model, length, batch) for model in MODELS]
            _, tile, last = recorded_decode(jobs[0].frames, batch, device)
            calls = [*tile, *last, *(call for job in jobs for call in recorded_step(job, device.sm))]
            cases = [case_of(call, device.sm) for call in calls if call.wrapper]
            found |= {case.name: case for case in cases}
    return [found[name] for name in sorted(found)]


def _rows(stage: str, times: int, calls: Iterable[Call], device: Device, counts: dict) -> list[dict[str, Any]]:
    """Calls of one case, or one work of the library, together; most time first."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for call in calls:
        each, name, bound = seconds(call, device, counts)
        row = rows.setdefault((name, bound), {"stage": stage, "kernel": name, "bound": bound, "launches": 0, "ms": 0.0})
        row["launches"] += times * (len(call.launches) or call.library.launches)
        row["ms"] += 1e3 * times * each
    return sorted(rows.values(), key=lambda row: -row["ms"])
