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


def rows_of(weight: Tensor) -> int:
    """N of a weight [N, K], or of its panels."""
    return len(weight) if weight.dim() == 2 else COLUMNS * len(weight)


def some_rows(weight: Tensor, first: int, last: int) -> Tensor:
    """Rows ``first`` to ``last`` of [N, K], or of its panels, where both are multiples of 32."""
    return weight[first:last] if weight.dim() == 2 else weight[first // COLUMNS : last // COLUMNS]


def hold_panels(module: nn.Module) -> None:
    """Bring the weights in panels that a layer's class names in ``in_panels``, where their sizes allow it."""
    for layer in module.modules():
        for name in getattr(layer, "in_panels", ()):
            weight = getattr(layer, name)
            if weight.shape[-2] % COLUMNS == 0 and weight.shape[-1] % 2 == 0:
                setattr(layer, name, nn.Parameter(to_panels(weight), requires_grad=False))
