"""linear_attention at the sizes of ACE-Step v1, 20 heads of 128, with guidance's two rows."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.linear_attention import linear_attention, linear_attention_reference
from acefast.ops.paired_rope import paired_rope_table


@pytest.mark.parametrize("seconds", (30, 120, 240))
def bench_linear_attention(op_benchmark, device, dtype, backend, seconds):
    S, heads, D = int(seconds * 44100 / 4096), 20, 128
    qkv = torch.randn(2, S, 3 * heads * D, device=device, dtype=dtype)
    op_benchmark(
        linear_attention,
        *(qkv, paired_rope_table(S, D, 1e6, device), heads),
        reference=linear_attention_reference,
        backend=backend,
        bytes=qkv.nbytes * 4 // 3,  # q, k, v in, out out
        flops=4 * 2 * S * heads * D * D,
    )
