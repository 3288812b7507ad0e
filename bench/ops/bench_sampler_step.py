"""Speed of acefast.ops.sampler_step: Euler's step and the SDE's, which draws its noise, of a model in bf16."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.sampler_step import sampler_step, sampler_step_reference, step_table


@pytest.mark.parametrize("solver", ("euler", "sde"))
@pytest.mark.parametrize("seconds", (10, 60, 240))
def bench_sampler_step(op_benchmark, device, backend, seconds, solver):
    latents = torch.randn(1, 25 * seconds, 64, device=device)
    velocity = torch.randn_like(latents).bfloat16()
    op_benchmark(
        sampler_step,
        latents,
        velocity,
        step_table([1.0, 0.9, 0.75, 0.3], device=device),
        1,
        model_latents=torch.zeros_like(velocity),
        seeds=torch.tensor([42], device=device) if solver == "sde" else None,
        out=torch.empty_like(latents),
        reference=sampler_step_reference,
        backend=backend,
        bytes=2 * latents.nbytes + 2 * velocity.nbytes,  # latents in and out, velocity in, the model's copy out
    )
