"""Launches csrc/linear_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.checks import is_rows
from acefast.cpu.extension import K_STEP, address, extension, is_bf16, rows, threads
from acefast.panels import rows_of


def fits(x: Tensor, weight: Tensor, bias: Tensor | None, *others: Tensor | None) -> bool:
    """Whether the kernel takes this; ``others`` are the residual and the result, where there are any."""
    tensors = [t for t in (x, weight, *others) if t is not None]
    inner = x.shape[-1] % K_STEP == 0 and x.numel() > 0 and weight.numel() > 0
    inner = inner and (weight.dim() == 2 or weight.is_contiguous())
    return is_bf16(*tensors, bias) and inner and all(map(is_rows, tensors)) and (bias is None or bias.stride(0) == 1)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, *, gelu: bool = False, residual: Tensor | None = None
) -> None:
    """Writes ``out``, which may be the residual; see acefast.ops.linear."""
    count, stride = rows(x)
    weight_stride = weight.stride(0) if weight.dim() == 2 else 0  # of panels
    extension().linear(
        *(address(x), count, x.shape[-1], stride, address(weight), weight_stride, rows_of(weight), address(bias), gelu),
        *(address(residual), 0 if residual is None else rows(residual)[1], address(out), rows(out)[1], threads()),
    )
