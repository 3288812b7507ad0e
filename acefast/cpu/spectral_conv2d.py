"""Launches csrc/spectral_conv2d_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.cpu.conv1d import results
from acefast.cpu.extension import address, extension, threads


def spectral_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool, out: Tensor) -> None:
    """Writes ``out``; see acefast.ops.spectral_conv2d."""
    to = results(slice(None), (None, out) if silu else (out, None), bias, None)
    extension().spectral_conv2d(address(x), *x.shape, address(weight), weight.dim() == 4, to, threads())
