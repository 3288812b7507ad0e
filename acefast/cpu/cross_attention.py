"""Launches csrc/cross_attention_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.cpu.extension import address, extension, threads
from acefast.cpu.self_attention import counts, fits

__all__ = ["cross_attention", "fits"]


def cross_attention(
    q: Tensor, q_weight: Tensor | None, k: Tensor, v: Tensor, lengths: Tensor | None, *, eps: float, out: Tensor
) -> Tensor:
    """See acefast.ops.cross_attention."""
    (B, S, width), (sets, kv_heads, E, D) = q.shape, k.shape
    lengths = counts(lengths)
    keys = (argument for t in (k, v) for argument in (address(t), (t.stride(0), t.stride(2), t.stride(1))))
    extension().cross_attention(
        *(address(q), (*q.stride()[:2], D), address(q_weight), *keys, address(lengths), address(out), out.stride()),
        *(B, sets, S, E, width // D, kv_heads, D, eps, threads()),
    )
    return out
