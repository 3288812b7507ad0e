"""Launches csrc/self_attention_cpu.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from acefast.cpu.extension import K_STEP, address, extension, is_bf16, threads

WIDEST = 128  # channels of a head


def fits(*tensors: Tensor | None, head_dim: int) -> bool:
    """Whether the kernels of attention take these heads, whose channels lie together."""
    given = [t for t in tensors if t is not None]
    heads = head_dim % K_STEP == 0 and 0 < head_dim <= WIDEST
    return heads and is_bf16(*given) and all(t.numel() and t.stride(-1) == 1 for t in given)


def self_attention(
    q: Tensor, k: Tensor, v: Tensor, reach: tuple[int, int], lengths: Tensor | None, *, pad_rows: bool, out: Tensor
) -> Tensor:
    """See acefast.ops.self_attention; ``reach``: how many rows before and after itself a row sees."""
    B, S, heads, D = q.shape
    lengths = counts(lengths)
    extension().self_attention(
        *(argument for t in (q, k, v) for argument in (address(t), t.stride()[:3])),
        *(address(lengths), address(out), out.stride(), B, S, heads, k.shape[2], D),
        *(*reach, pad_rows, threads()),
    )
    return out


def counts(lengths: Tensor | None) -> Tensor | None:
    """As the kernels read them; whoever calls holds the copy."""
    return None if lengths is None else lengths.to("cpu", torch.int64).contiguous()
