"""Launch wrapper of csrc/sampler_step.cu, and what that of csrc/apg.cu shares with it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.checks import rows_start_at
from acefast.cuda.loader import Kernel, current_sm, launch
from acefast.kernel_config import pick
from acefast.ops.sampler_step import Repaint, clock_entries, step_arguments, strided
from acefast.ops.sampler_step import counters as new_counters

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
KERNELS = {("step", 80): Kernel("sampler_step", threads=256, shared=72)}
ROWS = "pll"  # of [B, T, D]: address, strides
STEP = 2 * ROWS + "pip" + 7 * "p" + "i"  # ``arguments_of_step``


def fits(velocity: Tensor, *others: Tensor | None, lengths: Tensor | None, model_latents: Tensor | None = None) -> bool:
    """Whether there is a kernel for tensors [B, T, D] of which 4 neighbouring channels move at a time."""
    rows = [t for t in (velocity, model_latents, *others) if t is not None]
    in_fours = all(t.shape[-1] % 4 == 0 and rows_start_at(t, 4 * t.itemsize) for t in rows)
    copied = model_latents is None or model_latents.dtype == velocity.dtype
    counted = lengths is None or lengths.dtype in (torch.int32, torch.int64)
    return in_fours and copied and counted and velocity.dtype in NAMES


def sampler_step(
    latents: Tensor,
    velocity: Tensor,
    times: Tensor,
    step: Tensor | int,
    *,
    model_latents: Tensor | None = None,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    omega: Tensor | None = None,
    repaint: Repaint | None = None,
    lengths: Tensor | None = None,
    scratch: Tensor | None = None,
    counters: Tensor | None = None,
    out: Tensor,
) -> None:
    """One launch; arguments as in the op, which has checked them."""
    kernel = pick(KERNELS, "step", current_sm())
    of_step = arguments_of_step(times, step, model_latents, noise, seeds, repaint, lengths, out)
    arguments = (*strided(latents), *strided(velocity), *of_step, omega, scratch, counters, *latents.shape[1:])
    blocks = (clock_entries(latents.shape) - 1) * (1 if omega is None else 2)
    entry = f"{kernel.entry}_{NAMES[velocity.dtype]}"
    types = 2 * ROWS + STEP + "pppii"
    launch("sampler_step", entry, (blocks, 1, 1), kernel.threads, kernel.shared, arguments, types)


def arguments_of_step(times, step, model_latents, noise, seeds, repaint, lengths, out) -> tuple:
    """From ``out`` to the number of 32-bit words that a length has."""
    given = step_arguments(times, step, model_latents, noise, seeds, repaint, lengths, out)
    return *given, 0 if lengths is None else lengths.itemsize // 4


def with_counters(given: Arguments) -> Arguments:
    """A Triton case's arguments and the counters that its twin wants."""
    like = given["latents"] if "latents" in given else given["cond"]
    return {**given, "counters": new_counters(like.shape, device=like.device)}


def cases() -> tuple[Case, ...]:
    """Those of the Triton kernels, launched here."""
    from acefast.kernels import sampler_step as twin

    def own(case: Case) -> Case:
        if case.config != "omega":
            return replace(case, launch=sampler_step)
        return replace(
            case,
            launch=sampler_step,
            reference=lambda counters, **given: (*case.reference(**given), torch.zeros_like(counters)),
            real=lambda device: with_counters(case.real(device)),
            small=lambda generator: with_counters(case.small(generator)),
            outputs=(*case.outputs, "counters"),
            ordered=True,
        )

    return tuple(map(own, twin.CASES))
