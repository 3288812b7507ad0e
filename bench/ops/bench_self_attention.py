"""self_attention of a song's tokens, over the window and over everything."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.self_attention import self_attention, self_attention_reference

HEADS = {"2b": (16, 8), "xl": (32, 8)}
D, WINDOW = 128, 128


def packed(model, rows, device, dtype):
    """q, k, v as views of the packed projection."""
    heads, kv_heads = HEADS[model]
    qkv = torch.randn(1, rows, heads + 2 * kv_heads, D, device=device, dtype=dtype)
    return qkv.split((heads, kv_heads, kv_heads), 2)


@pytest.mark.parametrize("model", HEADS)
@pytest.mark.parametrize("seconds", (30, 120, 240))
def bench_window(op_benchmark, device, dtype, backend, seconds, model):
    S = int(12.5 * seconds)
    q, k, v = packed(model, -(-S // 128) * 128, device, dtype)  # padded, as a song's static buffers are
    lengths = torch.tensor([S], dtype=torch.int32, device=device)
    op_benchmark(
        self_attention,
        *(q, k, v, WINDOW, lengths),
        reference=self_attention_reference,
        backend=backend,
        bytes=2 * (q.nbytes + k.nbytes),
        flops=4 * HEADS[model][0] * D * ((2 * WINDOW + 1) * S - WINDOW * (WINDOW + 1)),
    )


@pytest.mark.parametrize("model", HEADS)
@pytest.mark.parametrize("seconds", (30, 120, 240))
def bench_everything(op_benchmark, device, dtype, seconds, model):
    """What a GPU runs here is PyTorch's FlashAttention."""
    S = int(12.5 * seconds)
    q, k, v = packed(model, S, device, dtype)
    op_benchmark(
        self_attention,
        *(q, k, v),
        reference=self_attention_reference,
        backend=None,
        bytes=2 * (q.nbytes + k.nbytes),
        flops=4 * HEADS[model][0] * D * S * S,
    )
