"""Launches csrc/winograd2d_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.cpu.extension import K_STEP, address, contiguous, extension, is_bf16, threads


def fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel takes this."""
    inner = x.shape[-1] % K_STEP == 0 and x.numel() > 0 and weight.numel() > 0
    return inner and is_bf16(x, weight, bias) and contiguous(x, weight, bias)


def winograd2d(x: Tensor, weight: Tensor, bias: Tensor | None, *, twice: bool, silu: bool, out: Tensor) -> None:
    """Writes ``out``; see acefast.ops.winograd2d."""
    zeros = x.new_zeros(x.shape[-1])
    given = (address(weight), weight.shape[1], address(bias), twice, silu, address(zeros))
    extension().winograd2d(address(x), *x.shape, *given, address(out), threads())
