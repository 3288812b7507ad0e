"""Weights as the CPU's engines read them, so that no call has to bring them there: see csrc/cpu/packing.h."""

from __future__ import annotations

from torch import Tensor

COLUMNS = 32  # rows of a weight side by side


def to_panels(weight: Tensor) -> Tensor:
    """[..., N, K] as [..., N / 32, K / 2, 32, 2], contiguous: for two k at a time those of 32 rows.

    N has to be a multiple of 32 and K of 2.
    """
    *lead, N, K = weight.shape
    return weight.reshape(*lead, N // COLUMNS, COLUMNS, K // 2, 2).transpose(-3, -2).contiguous()


def from_panels(weight: Tensor) -> Tensor:
    """``to_panels`` undone: [..., N, K], contiguous."""
    *lead, blocks, pairs, _, _ = weight.shape
    return weight.transpose(-3, -2).reshape(*lead, blocks * COLUMNS, pairs * 2)
