"""Launches csrc/vit_linear_attention_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.cpu.extension import address, extension, threads
from acefast.cpu.self_attention import fits

__all__ = ["fits", "vit_linear_attention"]


def vit_linear_attention(heads: Tensor, *, head_dim: int, out: Tensor) -> Tensor:
    """See acefast.ops.vit_linear_attention."""
    B, P, width = out.shape
    rows = (address(heads), *heads.stride()[:2], address(out), *out.stride()[:2])
    extension().vit_linear_attention(*rows, B, P, width // head_dim, head_dim, threads())
    return out
