"""qk_norm_rope on the packed projections of a song's tokens, and without rotation on those of its conditions."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.qk_norm_rope import qk_norm_rope, qk_norm_rope_reference, rope_table

HEADS = {"2b": (16, 8), "xl": (32, 8)}
D = 128


@pytest.mark.parametrize("model", HEADS)
@pytest.mark.parametrize("seconds", (30, 240))
def bench_qk_norm_rope(op_benchmark, device, dtype, backend, seconds, model):
    S = int(12.5 * seconds)
    run(op_benchmark, device, dtype, backend, S, *HEADS[model], *rope_table(S, D, 1e6, device))


def bench_cross_keys(op_benchmark, device, dtype, backend):
    run(op_benchmark, device, dtype, backend, 512, 0, 8, None, None)


def run(op_benchmark, device, dtype, backend, S, heads, kv_heads, cos, sin):
    qkv = torch.randn(1, S, (heads + 2 * kv_heads) * D, device=device, dtype=dtype)
    weight = torch.ones(D, device=device, dtype=dtype)
    moved = 2 * S * (heads + kv_heads) * D * qkv.itemsize  # queries and keys, in and out
    args = (qkv, weight, weight, cos, sin, heads, kv_heads)
    op_benchmark(qk_norm_rope, *args, reference=qk_norm_rope_reference, backend=backend, bytes=moved)
