"""Speed of acefast.ops.conv_transpose1d: the decoder's five rate changes."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.conv_transpose1d import conv_transpose1d, conv_transpose1d_reference

# rows a second, Cin, Cout, stride
BLOCKS = [(25, 2048, 1024, 10), (250, 1024, 512, 6), (1500, 512, 256, 4), (6000, 256, 128, 4), (24_000, 128, 128, 2)]


@pytest.mark.parametrize("rate, Cin, Cout, stride", BLOCKS)
@pytest.mark.parametrize("seconds", (5,))
@pytest.mark.parametrize("waved", (False, True), ids=("y", "y and snake"))
def bench_conv_transpose1d(op_benchmark, device, dtype, backend, rate, Cin, Cout, stride, seconds, waved):
    x = torch.randn(1, rate * seconds, Cin, device=device, dtype=dtype)
    weight = (torch.randn(2 * Cin, stride * Cout, device=device) / (2 * Cin) ** 0.5).to(dtype)
    bias = torch.randn(Cout, device=device, dtype=dtype)
    wave = tuple(torch.rand(2, Cout, device=device) + 0.5) if waved else None
    op_benchmark(
        conv_transpose1d,
        x,
        weight,
        bias,
        stride=stride,
        wave=wave,
        reference=conv_transpose1d_reference,
        backend=backend,
        bytes=x.nbytes + weight.nbytes + (1 + waved) * x.shape[1] * stride * Cout * x.itemsize,
        flops=2 * x.shape[1] * weight.numel(),
    )
