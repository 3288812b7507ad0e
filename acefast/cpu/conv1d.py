"""Launches csrc/conv1d_cpu.cpp, and how all convolutions say what becomes of their sums."""

from __future__ import annotations

from torch import Tensor

from acefast.cpu.extension import K_STEP, address, contiguous, extension, is_bf16, threads

Wave = tuple[Tensor, Tensor] | str  # see acefast.ops.snake
Outputs = tuple[Tensor | None, Tensor | None]  # a result and what the next layer reads, each where it is asked for


def fits(x: Tensor, weight: Tensor, *others: Tensor | None, wave: Wave | None = None, narrow: bool = False) -> bool:
    """Whether the kernel takes this; ``others`` are read or written beside them, any Cin is taken where ``narrow``."""
    tensors = (x, weight, *others)
    filled = x.numel() > 0 and weight.numel() > 0 and (narrow or x.shape[-1] % K_STEP == 0)
    return filled and is_bf16(*tensors) and contiguous(*tensors, *snake_of(wave))


def is_narrow(results: int) -> bool:
    """Whether convolve_narrow of csrc/cpu/convolution.h takes rows of so many results."""
    return results in (1, 2, 4, 8, 16)


def snake_of(wave: Wave | None) -> tuple[Tensor | None, Tensor | None]:
    """Alpha and inv_beta, None each of SiLU or nothing."""
    return (None, None) if wave is None or isinstance(wave, str) else wave


def outputs(x: Tensor, shape: tuple[int, int, int], asked: tuple[bool, bool], out: Outputs) -> Outputs:
    """Where results are written: in ``out`` if they are to be, else in new memory."""
    first, second = ((x.new_empty(shape) if o is None else o) if one else None for one, o in zip(asked, out))
    return first, second


def results(
    song: int | slice,
    out: Outputs,
    bias: Tensor | None,
    wave: Wave | None,
    residual: Tensor | None = None,
    total: Tensor | None = None,
) -> list[int]:
    """``Addresses`` in csrc/cpu/module.cpp, of one song or of all."""
    y, waved, residual, total = (None if t is None else t[song] for t in (*out, residual, total))
    width = (waved if y is None else y).shape[-1]
    return [*map(address, (y, waved)), width, *map(address, (bias, residual, total, *snake_of(wave)))]


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int,
    padding: int,
    dilation: int,
    residual: Tensor | None,
    share: float,
    total: Tensor | None,
    wave: Wave | None,
    out: Outputs,
) -> None:
    """Writes the results that ``out`` has; see acefast.ops.conv1d."""
    Cout, K, Cin = weight.shape
    rows = next(t.shape[1] for t in out if t is not None)
    geometry = (Cout, K, stride, padding, dilation, rows)
    for i, song in enumerate(x):
        to = results(i, out, bias, wave, residual, total)
        extension().conv1d(address(song), len(song), Cin, address(weight), *geometry, to, share, threads())
