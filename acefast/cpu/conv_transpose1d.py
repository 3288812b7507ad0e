"""Launches csrc/conv_transpose1d_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.cpu import conv1d
from acefast.cpu.conv1d import Outputs, Wave, results
from acefast.cpu.extension import address, extension, threads
from acefast.cpu.snake import LANES


def fits(x: Tensor, weight: Tensor, bias: Tensor, wave: Wave | None) -> bool:
    """Whether the kernel takes this."""
    narrow = conv1d.is_narrow(weight.shape[1])
    return conv1d.fits(x, weight, bias, wave=wave, narrow=narrow) and (narrow or len(bias) % LANES == 0)


def conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int,
    wave: Wave | None,
    out: Outputs,
) -> None:
    """Writes the results that ``out`` has; see acefast.ops.conv_transpose1d."""
    for i, song in enumerate(x):
        to = results(i, out, bias, wave)
        extension().conv_transpose1d(address(song), *song.shape, address(weight), stride, to, threads())
