"""Launches csrc/qk_norm_rope_cpu.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from acefast.checks import is_rows
from acefast.cpu.extension import K_STEP, address, extension, is_bf16, rows, threads
from acefast.cpu.self_attention import WIDEST


def fits(qkv: Tensor, weights: tuple[Tensor, Tensor], rope: tuple[Tensor | None, Tensor | None], out: Tensor) -> bool:
    """Whether the kernel takes this."""
    D = weights[1].shape[0]
    fp32 = [t for t in rope if t is not None]
    return (
        is_bf16(qkv, *weights, out)
        and D % K_STEP == 0
        and 0 < D <= WIDEST
        and qkv.numel() > 0
        and all(map(is_rows, (qkv, out)))
        and all(t.stride(-1) == 1 for t in (*weights, *fp32))
        and all(t.dtype == torch.float32 for t in fp32)
    )


def qk_norm_rope(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    kv_heads: int,
    *,
    eps: float = 1e-6,
    out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """See acefast.ops.qk_norm_rope."""
    D = k_weight.shape[0]
    count, stride = rows(qkv)
    steps = (0, 0) if cos is None else (cos.stride(0), sin.stride(0))
    extension().qk_norm_rope(
        *(address(qkv), stride, address(q_weight), address(k_weight), address(cos), address(sin), *steps),
        *(address(out), rows(out)[1], count, qkv.shape[1], heads, kv_heads, D, eps, threads()),
    )
    qk = out[..., : (heads + kv_heads) * D].unflatten(-1, (heads + kv_heads, D))
    return qk[:, :, :heads], qk[:, :, heads:], qkv[..., (heads + kv_heads) * D :].unflatten(-1, (kv_heads, D))
