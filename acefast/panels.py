"""Weights as the CPU's engines read them, so that no call has to bring them there: see csrc/cpu/packing.h.

A weight [..., N, K] is then [..., N / 32, K / 2, 32, 2]: for two k at a time those of 32 rows side by side.
"""

from __future__ import annotations

from torch import Tensor, nn

COLUMNS = 32  # rows of a weight side by side


def to_panels(weight: Tensor) -> Tensor:
    """[..., N, K] in panels, contiguous; N has to be a multiple of 32 and K of 2."""
    *lead, N, K = weight.shape
    return weight.reshape(*lead, N // COLUMNS, COLUMNS, K // 2, 2).transpose(-3, -2).contiguous()


def from_panels(panels: Tensor) -> Tensor:
    """``to_panels`` undone: [..., N, K], contiguous."""
    *lead, blocks, pairs, _, _ = panels.shape
    return panels.transpose(-3, -2).reshape(*lead, blocks * COLUMNS, pairs * 2)


def hold_panels(module: nn.Module) -> None:
    """Bring the weights of all layers in panels whose class says ``in_panels``, where their sizes allow it."""
    for layer in module.modules():
        if getattr(layer, "in_panels", False) and not (layer.weight.shape[-2] % COLUMNS or layer.weight.shape[-1] % 2):
            layer.weight = nn.Parameter(to_panels(layer.weight), requires_grad=False)
