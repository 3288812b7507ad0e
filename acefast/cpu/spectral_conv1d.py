"""Launches csrc/spectral_conv1d_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.cpu.conv1d import Outputs, Wave, results, snake_of
from acefast.cpu.extension import address, extension, threads


def spectral_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: int,
    *,
    dilation: int,
    residual: Tensor | None,
    share: float,
    total: Tensor | None,
    before: Wave | None,
    wave: Wave | None,
    out: Outputs,
) -> None:
    """Writes the results that ``out`` has; see acefast.ops.spectral_conv1d."""
    to = results(slice(None), out, bias, wave, residual, total)
    of_panels, width = weight.dim() == 4, next(t.shape[2] for t in out if t is not None)
    geometry = (*map(address, (*snake_of(before), weight)), of_panels, width, kernel, dilation)
    extension().spectral_conv1d(address(x), *x.shape, *geometry, to, share, threads())
