"""qk_norm_rope on the packed projections of a 2B song's tokens."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.qk_norm_rope import qk_norm_rope, qk_norm_rope_reference, rope_table

HEADS, KV_HEADS, D = 16, 8, 128


@pytest.mark.parametrize("seconds", (30, 240))
def bench_qk_norm_rope(op_benchmark, device, dtype, backend, seconds):
    S = int(12.5 * seconds)
    qkv = torch.randn(1, S, (HEADS + 2 * KV_HEADS) * D, device=device, dtype=dtype)
    weight = torch.ones(D, device=device, dtype=dtype)
    cos, sin = rope_table(S, D, 1e6, device)
    moved = 2 * S * (HEADS + KV_HEADS) * D * qkv.itemsize  # queries and keys, in and out
    args = (qkv, weight, weight, cos, sin, HEADS, KV_HEADS)
    op_benchmark(qk_norm_rope, *args, reference=qk_norm_rope_reference, backend=backend, bytes=moved)
