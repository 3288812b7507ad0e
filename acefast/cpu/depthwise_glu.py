"""Launches csrc/depthwise_glu_cpu.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from acefast.cpu.extension import address, extension, is_bf16, threads

LANES = 16  # of which the number of channels is a multiple


def fits(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None) -> bool:
    """Whether the kernel takes this."""
    rows = all(t is None or t.stride(-1) == 1 for t in (x, bias, out))
    return (
        is_bf16(x, weight, bias, out)
        and rows
        and weight.stride(0) == 1
        and x.shape[2] % (2 * LANES) == 0
        and x.numel() > 0
    )


def depthwise_glu(
    x: Tensor, weight: Tensor, bias: Tensor, lengths: Tensor | None, *, silu_input: bool, out: Tensor
) -> Tensor:
    """See acefast.ops.depthwise_glu."""
    B, S, width = x.shape
    lengths = None if lengths is None else lengths.to(torch.int64).contiguous()  # held while the kernel reads it
    extension().depthwise_glu(
        *(address(x), x.stride(0), x.stride(1), address(weight), weight.stride(1), address(bias), address(lengths)),
        *(address(out), out.stride(0), out.stride(1), B, S, width // 2, silu_input, threads()),
    )
    return out
