"""Launches csrc/snake_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.cpu.extension import address, contiguous, extension, is_bf16, threads

LANES = 16


def fits(x: Tensor, *wave: Tensor) -> bool:
    """Whether the kernel takes this."""
    return is_bf16(x) and contiguous(x, *wave) and x.numel() > 0 and x.shape[-1] % LANES == 0


def snake(x: Tensor, alpha: Tensor, inv_beta: Tensor, out: Tensor) -> None:
    """``out = x + inv_beta * sin(alpha * x)**2``; see acefast.ops.snake."""
    C = x.shape[-1]
    extension().snake(address(x), x.numel() // C, C, *map(address, (alpha, inv_beta, out)), threads())
