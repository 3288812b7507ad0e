"""residual_norm on a song's tokens, as before cross-attention, before the MLP and between two layers.

The modulation comes from tables of 8 steps, of which the step on the device chooses a row.
"""

from __future__ import annotations

import pytest
import torch

from acefast.ops.residual_norm import residual_norm, residual_norm_reference

WIDTH = {"2b": 2048, "xl": 2560}


@pytest.mark.parametrize("variant", ("gate", "modulate", "full"))
@pytest.mark.parametrize("model", WIDTH)
@pytest.mark.parametrize("seconds", (30, 240))
def bench_residual_norm(op_benchmark, device, dtype, backend, seconds, model, variant):
    S, H = int(12.5 * seconds), WIDTH[model]
    x, y = (torch.randn(1, S, H, device=device, dtype=dtype) for _ in range(2))
    weight = torch.ones(H, device=device, dtype=dtype)
    shift, scale, gate = torch.randn(8, 3, H, device=device).unbind(1)
    step = torch.tensor([3], dtype=torch.int32, device=device)
    args = (x, weight) if variant == "modulate" else (x, weight, y, gate)
    options = {} if variant == "gate" else {"scale": scale, "shift": shift}
    moved = (2 if variant == "modulate" else 4) * x.nbytes
    op_benchmark(
        residual_norm, *args, reference=residual_norm_reference, backend=backend, bytes=moved, step=step, **options
    )
