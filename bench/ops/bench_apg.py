"""Speed of acefast.ops.apg: the guided velocity of the base and sft models, and the guided step."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.apg import apg, apg_numbers, apg_reference, apg_step, apg_step_reference, scratch_shape
from acefast.ops.sampler_step import step_table


@pytest.mark.parametrize("seconds", (10, 60, 240))
def bench_apg(op_benchmark, device, backend, seconds):
    cond, uncond, running = torch.randn(3, 1, 25 * seconds, 64, device=device)
    op_benchmark(
        apg,
        cond,
        uncond,
        running,
        7.0,
        reference=apg_reference,
        backend=backend,
        bytes=7 * cond.nbytes,  # three in, momentum out; cond and momentum again for the projection, velocity out
    )


@pytest.mark.parametrize("seconds", (10, 60, 240))
def bench_apg_step(op_benchmark, device, backend, seconds):
    latents = torch.randn(1, 25 * seconds, 64, device=device)
    cond, uncond = torch.randn(2, *latents.shape, device=device).bfloat16()
    scratch = torch.empty(scratch_shape(latents.shape), device=device)
    op_benchmark(
        lambda *args, **kwargs: apg_step(*args, **kwargs, scratch=scratch),
        latents,
        cond,
        uncond,
        torch.zeros_like(latents),
        apg_numbers(7.0, momentum=0.0).to(device),  # so that every call finds what the first one found
        step_table([1.0, 0.9, 0.75, 0.3], device=device),
        1,
        model_latents=torch.zeros_like(cond),
        out=torch.empty_like(latents),
        reference=apg_step_reference,
        backend=backend,
        bytes=5 * latents.nbytes + 4 * cond.nbytes,  # momentum three times, latents twice; cond twice, uncond, the copy
    )
