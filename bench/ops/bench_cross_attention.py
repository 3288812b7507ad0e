"""cross_attention of a song's tokens on 501 conditions: 400 of lyrics, one of timbre, 100 of text."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.cross_attention import cross_attention, cross_attention_reference

HEADS = {"2b": (16, 8), "xl": (32, 8)}
D, CONDITIONS = 128, 501


@pytest.mark.parametrize("model", HEADS)
@pytest.mark.parametrize("seconds", (30, 120, 240))
def bench_cross_attention(op_benchmark, device, dtype, backend, seconds, model):
    heads, kv_heads = HEADS[model]
    S = int(12.5 * seconds)
    q = torch.randn(1, S, heads * D, device=device, dtype=dtype)
    k, v = torch.randn(1, kv_heads, 512, 2, D, device=device, dtype=dtype).unbind(3)  # the cache's bucket of 512
    lengths = torch.tensor([CONDITIONS], dtype=torch.int32, device=device)
    op_benchmark(
        cross_attention,
        *(q, torch.ones(D, device=device, dtype=dtype), k, v, lengths),
        reference=cross_attention_reference,
        backend=backend,
        bytes=2 * (q.numel() + kv_heads * CONDITIONS * D) * q.itemsize,
        flops=4 * heads * D * S * CONDITIONS,
    )
