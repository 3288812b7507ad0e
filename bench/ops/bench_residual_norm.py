"""residual_norm on a 2B song's tokens: gated add and norm, as after self-attention, or plain add and modulation."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.residual_norm import residual_norm, residual_norm_reference

H = 2048


@pytest.mark.parametrize("modulated", (False, True))
@pytest.mark.parametrize("seconds", (30, 240))
def bench_residual_norm(op_benchmark, device, dtype, backend, seconds, modulated):
    S = int(12.5 * seconds)
    x, y = (torch.randn(1, S, H, device=device, dtype=dtype) for _ in range(2))
    weight = torch.ones(H, device=device, dtype=dtype)
    gate, scale, shift = (torch.randn(H, device=device) for _ in range(3))
    vectors = (None, scale, shift) if modulated else (gate,)
    args = (x, weight, y, *vectors)
    op_benchmark(residual_norm, *args, reference=residual_norm_reference, backend=backend, bytes=4 * x.nbytes)
