"""Launches csrc/linear_attention_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.cpu import self_attention
from acefast.cpu.extension import address, extension, threads
from acefast.cpu.self_attention import counts


def fits(qkv: Tensor, table: Tensor, head_dim: int, out: Tensor | None) -> bool:
    """Whether the kernel takes this."""
    return self_attention.fits(qkv, out, head_dim=head_dim) and table.is_contiguous()


def linear_attention(qkv: Tensor, table: Tensor, heads: int, lengths: Tensor | None, *, out: Tensor) -> Tensor:
    """See acefast.ops.linear_attention."""
    (B, S, width), lengths = out.shape, counts(lengths)
    extension().linear_attention(
        *(address(qkv), *qkv.stride()[:2], address(table), address(lengths)),
        *(address(out), *out.stride()[:2], B, S, heads, width // heads, threads()),
    )
    return out
