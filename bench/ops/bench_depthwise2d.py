"""depthwise2d of the mel autoencoder's attention blocks: 16 columns, a row a frame."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.depthwise2d import depthwise2d, depthwise2d_reference

LAYERS = {"glu_k3": (8192, 3, True), "multiscale_k5": (3072, 5, False)}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("seconds", (30, 240))
def bench_depthwise2d(op_benchmark, device, dtype, backend, seconds, layer):
    C, K, glu = LAYERS[layer]
    x = torch.randn(1, seconds * 44_100 // 4096, 16, C, device=device, dtype=dtype)
    weight = torch.randn(K, K, C, device=device, dtype=dtype) / K
    bias = torch.randn(C, device=device, dtype=dtype) if glu else None
    op_benchmark(
        depthwise2d,
        x,
        weight,
        bias,
        silu_input=glu,
        gate=glu,
        reference=depthwise2d_reference,
        backend=backend,
        bytes=x.nbytes * (3 if glu else 4) // 2,
        flops=2 * K * K * x.numel(),
    )
