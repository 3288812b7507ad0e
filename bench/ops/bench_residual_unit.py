"""Speed of acefast.ops.residual_unit: one unit of each of the decoder's five blocks, as a tile runs it.

The first snake is there already, both results are wanted, and on a GPU rows lie between guards. Where the kernel does
not take the width (there C 512, 1024) two convolutions are in its place, timed by bench_conv1d.
"""

from __future__ import annotations

import pytest
import torch

from acefast.guarded import with_guards
from acefast.ops.residual_unit import residual_unit, residual_unit_reference
from acefast.ops.snake import snake_reference


@pytest.mark.parametrize("rate, C", [(250, 1024), (1500, 512), (6000, 256), (24_000, 128), (48_000, 128)])
@pytest.mark.parametrize("seconds", (1, 5))
def bench_residual_unit(op_benchmark, device, dtype, backend, rate, C, seconds):
    x = torch.randn(1, rate * seconds, C, device=device, dtype=dtype)
    wave = [torch.rand(C, device=device) + 0.5 for _ in range(6)]
    weight1 = (torch.randn(C, 7, C, device=device) / (7 * C) ** 0.5).to(dtype)
    weight2 = (torch.randn(C, C, device=device) / C**0.5).to(dtype)
    bias = torch.randn(2, C, device=device, dtype=dtype)
    guards = backend in ("triton", "cuda")
    lie = with_guards if guards else torch.clone
    op_benchmark(
        residual_unit,
        lie(x),
        *(wave[0], wave[1], weight1, bias[0]),
        *(wave[2], wave[3], weight2, bias[1]),
        dilation=9,
        activated=lie(snake_reference(x, wave[0], wave[1])),
        wave=(wave[4], wave[5]),
        guarded=guards,
        reference=residual_unit_reference,
        backend=backend,
        bytes=4 * x.nbytes + weight1.nbytes + weight2.nbytes,
        flops=16 * x.shape[1] * C * C,
    )
