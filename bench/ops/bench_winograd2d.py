"""winograd2d of the mel autoencoder's decoder: both kinds of layers at each of its rates."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.winograd2d import transformed, winograd2d, winograd2d_reference

# frames a latent frame, rows, Cin, Cout, whether each pixel is there twice
LAYERS = {
    "res512": (2, 32, 512, 512, False),
    "res256": (4, 64, 256, 256, False),
    "res128": (8, 128, 128, 128, False),
    "up512": (1, 16, 1024, 512, True),
    "up256": (2, 32, 512, 256, True),
    "up128": (4, 64, 256, 128, True),
}


@pytest.mark.parametrize("layer", LAYERS)
def bench_winograd2d(op_benchmark, device, dtype, backend, layer):
    rate, rows, Cin, Cout, twice = LAYERS[layer]
    x = torch.randn(1, 80 * rate, rows, Cin, device=device, dtype=dtype)  # a tile and its neighbours
    weight = transformed(torch.randn(Cout, 3, 3, Cin) / (9 * Cin) ** 0.5, twice).to(device, dtype)
    bias = torch.randn(Cout, device=device, dtype=dtype)
    pixels = x.numel() // Cin
    op_benchmark(
        winograd2d,
        x,
        weight,
        bias,
        silu=not twice,
        reference=winograd2d_reference,
        backend=backend,
        bytes=x.nbytes + weight.nbytes + pixels * (4 if twice else 1) * Cout * x.itemsize,
        flops=2 * weight.numel() * pixels // (1 if twice else 4),
    )
