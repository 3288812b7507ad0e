"""Each proved kernel on a GPU, alone, at its real size: measured beside floor and prediction.

Arguments are copied until two rounds of them fill more than the GPU's L2, and launches go through the copies in turn,
so that no launch finds its data there because the one before was the same. Times are of CUDA events around many
launches in a row, medians of several such rows; a row is a replayed CUDA graph, so what a launch costs the host is not
in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from acefast.cases import Arguments, Case
from acefast.cuda import toolkit
from acefast.devices import as_device, current
from acefast.guarded import clear_guards, is_guarded
from acefast.request import RequestError
from acefast.sim.calibrate import TIMES, shares
from acefast.sim.roofline import GPUS, JUDGED, Judged, floor_us, predicted_us
from acefast.sim.study import compile_case
from acefast.sim.tensors import copy_of, tensors_of, whole

ROWS, LAUNCHES = 5, 20
COPIES = 64  # at most
WORST = 2.0  # of measured over predicted: the pass rule for a kernel alone


class EmptyIsZero(TorchFunctionMode):
    """New memory is zero: an integer tensor that a case leaves without values must not index at random."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made.zero_() if func in (torch.empty, torch.empty_like, torch.Tensor.new_empty) else made


def arguments(case: Case, device: torch.device) -> Arguments:
    """A case's arguments at real size: floating tensors standard normal, guards zero, integers as the case has them."""
    with EmptyIsZero():
        given = case.real(device)
    generator = torch.Generator(device).manual_seed(0)
    memory = {t.untyped_storage().data_ptr(): t for t in tensors_of(given) if t.is_floating_point()}
    for t in memory.values():
        whole(t).normal_(generator=generator)
        if t.dim() == 3 and is_guarded(t):
            clear_guards(t)
    return given


def copies(given: Arguments, sm: int) -> list[Arguments]:
    """``given`` and as many copies of it as fill the L2 of ``sm`` twice."""
    size = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_of(given)}.values())
    count = min(max(2, int(2 * GPUS[sm].l2 * 1e6 // max(size, 1)) + 1), COPIES)
    return [given, *(copy_of(given) for _ in range(count - 1))]


def measured_us(case: Case, sets: list[Arguments], device: torch.device) -> float:
    """A launch's time, on each of ``sets`` in turn."""
    for one in sets:
        case.launch(**one)  # compiled, and every copy touched
    launches = max(LAUNCHES, len(sets))

    def row() -> None:
        for i in range(launches):
            case.launch(**sets[i % len(sets)])

    work = _captured(row) if device.type == "cuda" else row
    return sorted(1e3 * _milliseconds(work, device) / launches for _ in range(ROWS))[ROWS // 2]


def time_case(case: Case, device: torch.device, sm: int, judged: Judged = JUDGED) -> dict[str, Any]:
    """One kernel's row: counted, measured, at the peaks, predicted, and the shares of both roofs that it reaches."""
    given = arguments(case, device)
    us = measured_us(case, copies(given, sm), device)
    counted = {"flops": float(case.flops(given)), "bytes": float(case.bytes(given))}
    told = {"dots": case.dots, "attention": "attention" in case.kernel}
    compute, memory = shares({**counted, **told, "measured_us": us}, sm)
    target = predicted_us(**counted, sm=sm, **told, judged=judged)
    return {
        "kernel": case.kernel,
        "family": case.family,
        "config": case.config,
        "shape": ", ".join(f"{name} {list(t.shape)}" for name, t in given.items() if isinstance(t, torch.Tensor)),
        **counted,
        **told,
        "launches": 1,
        "measured_us": us,
        "floor_us": floor_us(**counted, sm=sm, dots=case.dots),
        "predicted_us": target,
        "compute_share": compute,
        "memory_share": memory,
        "passes": us <= WORST * target,
    }


def time_cases(cases: Iterable[Case], device: torch.device, sm: int, gpu: str) -> dict[str, Any]:
    """Every case's row, as acefast/sim/calibrate.py reads them."""
    return {"schema": TIMES, "sm": sm, "gpu": gpu, "kernels": [time_case(case, device, sm) for case in cases]}


def time_here(cases: Callable[[], Iterable[Case]], device: str | None) -> dict[str, Any]:
    """``time_cases`` of ``cases()`` on the GPU here; RequestError where there is none that is known."""
    found = as_device(device)
    if found.type != "cuda":
        way_out = "give measurements of one with --kernel-times FILE"
        raise RequestError(f"calibrate: kernels are measured on a GPU and the device is {str(found)!r}; {way_out}")
    about = torch.cuda.get_device_properties(found)
    sm = 10 * about.major + about.minor
    if sm not in GPUS:
        known = ", ".join(f"sm_{each}" for each in GPUS)
        raise RequestError(f"calibrate: the peaks of {about.name}, sm_{sm}, are not known; those of {known} are")
    every = list(cases())
    with torch.inference_mode(), current(found):
        times = time_cases(every, found, sm, about.name)
    for row, case in zip(times["kernels"], every):  # behind all that is timed
        if case.family == "triton" or toolkit.find_nvcc():
            row |= resources(case, sm)
    return times


def resources(case: Case, sm: int) -> dict[str, int]:
    """What a kernel takes of a multiprocessor, as compiled anew."""
    compiled = compile_case(case, sm)
    return {"registers": max(r.registers for r in compiled.resources), "blocks_per_sm": compiled.blocks_per_sm}


def _captured(work: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()  # the first uploads it
    return graph.replay


def _milliseconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type != "cuda":
        begun = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - begun)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    work()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last)
