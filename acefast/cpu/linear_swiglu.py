"""Launches csrc/linear_swiglu_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.checks import is_rows
from acefast.cpu.extension import K_STEP, address, extension, is_bf16, rows, threads


def fits(x: Tensor, weight: Tensor, out: Tensor | None) -> bool:
    """Whether the kernel takes this."""
    tensors = (x, weight) if out is None else (x, weight, out)
    return is_bf16(*tensors) and x.shape[-1] % K_STEP == 0 and all(t.numel() and is_rows(t) for t in tensors)


def linear_swiglu(x: Tensor, weight: Tensor, *, out: Tensor) -> Tensor:
    """See acefast.ops.linear_swiglu."""
    count, stride = rows(x)
    extension().linear_swiglu(
        *(address(x), count, x.shape[-1], stride, address(weight), weight.stride(0), len(weight) // 2),
        *(address(out), rows(out)[1], threads()),
    )
    return out
