"""Speed of acefast.ops.apg: one guided step of the base and sft models."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.apg import apg, apg_reference


@pytest.mark.parametrize("seconds", (10, 60, 240))
def bench_apg(op_benchmark, device, backend, seconds):
    cond, uncond, running = torch.randn(3, 1, 25 * seconds, 64, device=device)  # the DiT gives fp32 velocities
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
