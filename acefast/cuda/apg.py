"""Launch wrappers of csrc/apg.cu."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from acefast.cases import Case
from acefast.cuda.loader import Kernel, current_sm, launch
from acefast.cuda.sampler_step import NAMES, ROWS, STEP, arguments_of_step, with_counters
from acefast.kernel_config import pick
from acefast.ops.sampler_step import Repaint, clock_entries, strided

SHARED = 6280
KERNELS = {
    ("velocity", 80): Kernel("apg", threads=256, shared=SHARED),
    ("step", 80): Kernel("apg_step", threads=256, shared=SHARED),
}
GUIDANCE = 2 * ROWS + "pppp"


def apg(
    cond: Tensor,
    uncond: Tensor,
    running: Tensor | None,
    numbers: Tensor,
    *,
    lengths: Tensor | None = None,
    scratch: Tensor,
    counters: Tensor,
    out: tuple[Tensor, Tensor],
) -> None:
    """One launch. ``out`` are the velocity and the momentum, which may be ``running``."""
    velocity, after = out
    words = 0 if lengths is None else lengths.itemsize // 4
    guidance = (*strided(cond), *strided(uncond), running, after, scratch, numbers)
    arguments = (*guidance, *strided(velocity), lengths, words, counters, *cond.shape[1:])
    _launch("velocity", 2, cond, arguments, GUIDANCE + ROWS + "pipii")


def apg_step(
    latents: Tensor,
    cond: Tensor,
    uncond: Tensor,
    running: Tensor,
    numbers: Tensor,
    times: Tensor,
    step: Tensor | int,
    *,
    model_latents: Tensor | None = None,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    omega: Tensor | None = None,
    repaint: Repaint | None = None,
    lengths: Tensor | None = None,
    scratch: Tensor | tuple[Tensor, Tensor, Tensor],
    counters: Tensor,
    out: Tensor,
) -> None:
    """One launch; arguments as in the op. ``running`` is updated in place."""
    partials, velocity, sums = (scratch, None, None) if omega is None else scratch
    guidance = (*strided(cond), *strided(uncond), running, running, partials, numbers)
    of_step = arguments_of_step(times, step, model_latents, noise, seeds, repaint, lengths, out)
    last = (omega, velocity, sums, counters, *latents.shape[1:])
    stages = 2 if omega is None else 3
    _launch("step", stages, cond, (*guidance, *strided(latents), *of_step, *last), GUIDANCE + ROWS + STEP + "ppppii")


def _launch(which: str, stages: int, cond: Tensor, arguments: tuple, types: str) -> None:
    kernel = pick(KERNELS, which, current_sm())
    entry = f"{kernel.entry}_{NAMES[cond.dtype]}"
    blocks = stages * (clock_entries(cond.shape) - 1)
    launch("apg", entry, (blocks, 1, 1), kernel.threads, kernel.shared, arguments, types)


def cases() -> tuple[Case, ...]:
    """Those of the Triton kernels, launched here."""
    from acefast.kernels import apg as twin

    def own(case: Case) -> Case:
        return replace(
            case,
            launch=apg if case.launch is twin.apg else apg_step,
            reference=lambda counters, **given: (*case.reference(**given), torch.zeros_like(counters)),
            real=lambda device: with_counters(case.real(device)),
            small=lambda generator: with_counters(case.small(generator)),
            outputs=(*case.outputs, "counters"),
            ordered=True,
        )

    return tuple(map(own, twin.CASES))
