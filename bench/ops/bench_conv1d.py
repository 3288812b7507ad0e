"""Speed of acefast.ops.conv1d: the decoder's ends and the encoder's rate changes."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.conv1d import conv1d, conv1d_reference

# rows a second, Cin, Cout, K, stride, padding
LAYERS = {
    "decoder_first": (25, 64, 2048, 7, 1, 3),
    "decoder_last": (48_000, 128, 2, 7, 1, 3),
    "encoder_first": (48_000, 2, 128, 7, 1, 3),
    "encoder_down2": (48_000, 128, 128, 4, 2, 1),
    "encoder_down4": (24_000, 128, 256, 8, 4, 2),
    "encoder_down10": (250, 1024, 2048, 20, 10, 5),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("seconds", (5,))
def bench_conv1d(op_benchmark, device, dtype, backend, layer, seconds):
    rate, Cin, Cout, K, stride, padding = LAYERS[layer]
    x = torch.randn(1, rate * seconds, Cin, device=device, dtype=dtype)
    weight = (torch.randn(Cout, K, Cin, device=device) / (K * Cin) ** 0.5).to(dtype)
    bias = torch.randn(Cout, device=device, dtype=dtype)
    rows = rate * seconds // stride
    op_benchmark(
        conv1d,
        x,
        weight,
        bias,
        stride=stride,
        padding=padding,
        reference=conv1d_reference,
        backend=backend,
        bytes=x.nbytes + weight.nbytes + rows * Cout * x.itemsize,
        flops=2 * rows * weight.numel(),
    )
