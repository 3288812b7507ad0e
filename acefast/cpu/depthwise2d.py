"""Launches csrc/depthwise2d_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.cpu.extension import address, extension, is_bf16, threads

WIDE = 32  # channels at a time
SIZES = (3, 5)  # of filters


def fits(x: Tensor, weight: Tensor, channels: int, mix: Tensor | None) -> bool:
    """Whether the kernel takes an image whose result has so many channels; the rest is as the op wants it."""
    filled = x.numel() > 0 and channels % WIDE == 0
    return is_bf16(x) and filled and len(weight) in SIZES and (mix is None or mix.shape[1] == WIDE)


def depthwise2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    silu_input: bool,
    gate: bool,
    mix: Tensor | None,
    out: Tensor,
) -> Tensor:
    """See acefast.ops.depthwise2d."""
    weights = len(weight), address(weight), address(bias)
    extension().depthwise2d(address(x), *x.shape, *weights, silu_input, gate, address(mix), address(out), threads())
    return out
