"""Speed of acefast.ops.spectral_conv1d beside the direct convolution: v1's vocoder, both channels of a song."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.conv1d import conv1d_reference
from acefast.ops.spectral_conv1d import spectral_conv1d, transformed

# rows a second, channels, K, dilation
LAYERS = {
    "vocoder512_k13": (345, 512, 13, 5),
    "vocoder512_k3": (345, 512, 3, 1),
    "vocoder256_k11": (1378, 256, 11, 3),
    "vocoder128_k7": (2756, 128, 7, 1),
    "vocoder64_k13": (5512, 64, 13, 1),
    "vocoder32_k7": (11025, 32, 7, 5),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("seconds", (5, 20))
def bench_spectral_conv1d(op_benchmark, device, dtype, backend, layer, seconds):
    rate, C, K, dilation = LAYERS[layer]
    x = torch.randn(2, rate * seconds, C, device=device, dtype=dtype)
    weight = torch.randn(C, K, C, device=device) / (K * C) ** 0.5
    bias, direct = torch.randn(C, device=device, dtype=dtype), weight.to(dtype)
    filters = transformed(weight).to(dtype)

    def reference(*_, **options):
        return conv1d_reference(x, direct, bias, padding=dilation * (K - 1) // 2, **options)

    options = {"dilation": dilation, "wave": "silu", "keep": False}
    moved = (2 * x.numel() + filters.numel()) * x.element_size()
    op_benchmark(spectral_conv1d, x, filters, bias, K, **options, reference=reference, bytes=moved, backend=backend)
