"""self_attention of a 2B song's tokens, over the window and over everything."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.self_attention import self_attention, self_attention_reference

HEADS, KV_HEADS, D, WINDOW = 16, 8, 128, 128


@pytest.mark.parametrize("window", (WINDOW, None))
@pytest.mark.parametrize("seconds", (30, 240))
def bench_self_attention(op_benchmark, device, dtype, backend, seconds, window):
    S = int(12.5 * seconds)
    q, k, v = (torch.randn(1, S, n, D, device=device, dtype=dtype) for n in (HEADS, KV_HEADS, KV_HEADS))
    pairs = S * S if window is None else (2 * window + 1) * S - window * (window + 1)
    op_benchmark(
        self_attention,
        *(q, k, v, window),
        reference=self_attention_reference,
        backend=backend,
        bytes=2 * (q.nbytes + k.nbytes),
        flops=4 * HEADS * D * pairs,
    )
