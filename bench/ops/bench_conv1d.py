"""Speed of acefast.ops.conv1d: halves of residual units with the next snake, both coders' ends, the encoder's rates."""

from __future__ import annotations

import pytest
import torch

from acefast.guarded import with_guards
from acefast.ops.conv1d import conv1d, conv1d_reference

# rows a second, Cin, Cout, K, stride, padding, dilation
LAYERS = {
    "unit1024_k7": (250, 1024, 1024, 7, 1, 27, 9),
    "unit1024_1x1": (250, 1024, 1024, 1, 1, 0, 1),
    "unit512_k7": (1500, 512, 512, 7, 1, 9, 3),
    "unit512_1x1": (1500, 512, 512, 1, 1, 0, 1),
    "decoder_first": (25, 64, 2048, 7, 1, 3, 1),
    "decoder_last": (48_000, 128, 2, 7, 1, 3, 1),
    "encoder_first": (48_000, 2, 128, 8, 1, 3, 1),  # the eighth tap is zero
    "encoder_down2": (48_000, 128, 128, 4, 2, 1, 1),
    "encoder_down4": (24_000, 128, 256, 8, 4, 2, 1),
    "encoder_down6": (1500, 512, 1024, 12, 6, 3, 1),
    "encoder_down10": (250, 1024, 2048, 20, 10, 5, 1),
    "encoder_last": (25, 2048, 128, 3, 1, 1, 1),
    # of v1's vocoder: the first convolution of a pair, and the second with residual, result and SiLU
    "vocoder512_k13": (345, 512, 512, 13, 1, 30, 5),
    "vocoder512_second": (345, 512, 512, 13, 1, 6, 1),
    "vocoder128_second": (2756, 128, 128, 7, 1, 3, 1),
    "vocoder32_second": (11025, 32, 32, 11, 1, 5, 1),
    "vocoder16_k13": (22050, 16, 16, 13, 1, 30, 5),
    "vocoder16_second": (22050, 16, 16, 3, 1, 1, 1),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("seconds", (5, 20))
def bench_conv1d(op_benchmark, device, dtype, backend, layer, seconds):
    rate, Cin, Cout, K, stride, padding, dilation = LAYERS[layer]
    guards = backend in ("triton", "cuda")  # where the kernels have them
    lie = with_guards if guards else torch.clone
    x = torch.randn(1, rate * seconds, Cin, device=device, dtype=dtype)
    weight = (torch.randn(Cout, K, Cin, device=device) / (K * Cin) ** 0.5).to(dtype)
    bias = torch.randn(Cout, device=device, dtype=dtype)
    wave = tuple(torch.rand(Cout, device=device) + 0.5 for _ in range(2)) if "last" not in layer else None
    wave = "silu" if "vocoder" in layer else wave
    rows = (len(x[0]) + 2 * padding - dilation * (K - 1) - 1) // stride + 1
    residual = torch.randn(1, rows, Cout, device=device, dtype=dtype) if "1x1" in layer or "second" in layer else None
    keep = wave is None or residual is not None or stride in (2, 4, 6) or layer == "encoder_first"
    moved = 1 + (wave is not None and keep) + (residual is not None)
    op_benchmark(
        conv1d,
        lie(x),
        weight,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        residual=None if residual is None else lie(residual),
        wave=wave,
        keep=keep,
        guarded=guards,
        reference=conv1d_reference,
        backend=backend,
        bytes=x.nbytes + weight.nbytes + moved * rows * Cout * x.itemsize,
        flops=2 * rows * weight.numel(),
    )
