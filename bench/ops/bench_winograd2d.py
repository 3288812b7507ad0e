"""winograd2d of the mel autoencoder's decoder: the layers between its rates."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.winograd2d import transformed, winograd2d, winograd2d_reference

LAYERS = {"up512": (1, 16, 512), "up256": (2, 32, 256), "up128": (4, 64, 128)}  # frames a latent frame, rows, Cout


@pytest.mark.parametrize("layer", LAYERS)
def bench_winograd2d(op_benchmark, device, dtype, backend, layer):
    rate, rows, C = LAYERS[layer]
    x = torch.randn(1, 80 * rate, rows, 2 * C, device=device, dtype=dtype)  # a tile and its neighbours
    weight = transformed(torch.randn(C, 3, 3, 2 * C) / (18 * C) ** 0.5).to(device, dtype)
    bias = torch.randn(C, device=device, dtype=dtype)
    pixels = 80 * rate * rows
    op_benchmark(
        winograd2d,
        x,
        weight,
        bias,
        reference=winograd2d_reference,
        backend=backend,
        bytes=x.nbytes + weight.nbytes + pixels * 4 * C * x.itemsize,
        flops=2 * weight.numel() * pixels,
    )
