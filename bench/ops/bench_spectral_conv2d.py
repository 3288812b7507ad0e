"""spectral_conv2d of the mel autoencoder's decoder: a residual block's layer at each of its rates."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.spectral_conv2d import POINTS, spectral_conv2d, spectral_conv2d_reference, transformed
from acefast.panels import to_panels

LAYERS = {"res512": (2, 32, 512), "res256": (4, 64, 256), "res128": (8, 128, 128)}  # frames a latent frame, rows, C


@pytest.mark.parametrize("layer", LAYERS)
def bench_spectral_conv2d(op_benchmark, device, dtype, backend, layer):
    rate, rows, C = LAYERS[layer]
    x = torch.randn(1, 80 * rate, rows, C, device=device, dtype=dtype)  # a tile and its neighbours
    weight = to_panels(transformed(torch.randn(C, 3, 3, C) / (9 * C) ** 0.5).to(device, dtype))
    bias = torch.randn(C, device=device, dtype=dtype)
    op_benchmark(
        spectral_conv2d,
        x,
        weight,
        bias,
        silu=True,
        reference=spectral_conv2d_reference,
        backend=backend,
        bytes=2 * x.nbytes + weight.nbytes,
        flops=2 * weight.numel() * 80 * rate * rows // POINTS**2,
    )
