"""vit_linear_attention of the mel autoencoder: 64 heads over 16 rows of a song's frames."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.vit_linear_attention import vit_linear_attention, vit_linear_attention_reference


@pytest.mark.parametrize("seconds", (30, 240))
def bench_vit_linear_attention(op_benchmark, device, dtype, backend, seconds):
    heads = torch.randn(1, 16 * (seconds * 44_100 // 4096), 64 * 96, device=device, dtype=dtype)
    op_benchmark(
        vit_linear_attention,
        heads,
        reference=vit_linear_attention_reference,
        backend=backend,
        bytes=heads.nbytes * 4 // 3,
        flops=6 * 32 * heads.numel() // 3,
    )
