"""Launches csrc/winograd2d_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.cpu.extension import address, extension, threads


def winograd2d(x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    """Writes ``out``; see acefast.ops.winograd2d."""
    given = (address(weight), weight.dim() == 4, out.shape[-1], address(bias))
    extension().winograd2d(address(x), *x.shape[:3], *given, address(out), threads())
