"""Launches csrc/depthwise_norm_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.cpu.extension import address, contiguous, extension, is_bf16, threads

LANES = 16  # of which the number of channels is a multiple


def fits(x: Tensor, conv_weight: Tensor, *vectors: Tensor, out: Tensor | None = None) -> bool:
    """Whether the kernel takes this."""
    rows = all(t is None or t.stride(-1) == 1 for t in (x, out))
    filled = x.numel() > 0 and x.shape[2] % LANES == 0
    return is_bf16(x, conv_weight, *vectors, out) and rows and contiguous(*vectors) and filled


def depthwise_norm(
    x: Tensor, conv_weight: Tensor, conv_bias: Tensor, weight: Tensor, bias: Tensor, *, eps: float, out: Tensor
) -> Tensor:
    """See acefast.ops.depthwise_norm."""
    weights = map(address, (conv_weight, conv_bias, weight, bias))
    extension().depthwise_norm(
        *(address(x), x.stride(0), x.stride(1), *x.shape, len(conv_weight), *weights, eps),
        *(address(out), out.stride(0), out.stride(1), threads()),
    )
    return out
