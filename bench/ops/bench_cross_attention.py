"""cross_attention of a 2B song's tokens on 501 conditions: 400 of lyrics, one of timbre, 100 of text."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.cross_attention import cross_attention, cross_attention_reference

HEADS, KV_HEADS, D, CONDITIONS = 16, 8, 128, 501


@pytest.mark.parametrize("seconds", (30, 240))
def bench_cross_attention(op_benchmark, device, dtype, backend, seconds):
    S = int(12.5 * seconds)
    q = torch.randn(1, S, HEADS * D, device=device, dtype=dtype)
    k, v = (torch.randn(1, KV_HEADS, CONDITIONS, D, device=device, dtype=dtype) for _ in range(2))
    op_benchmark(
        cross_attention,
        *(q, torch.ones(D, device=device, dtype=dtype), k, v),
        reference=cross_attention_reference,
        backend=backend,
        bytes=2 * (q.nbytes + k.nbytes),
        flops=4 * HEADS * D * S * CONDITIONS,
    )
