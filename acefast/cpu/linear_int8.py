"""Launches csrc/linear_int8_cpu.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from acefast.cpu.extension import address, extension, threads

DEPTH = 64  # of which K is a multiple


def fits(
    x: Tensor, weight: Tensor, gate: Tensor | None, step: Tensor | None, *, swiglu: bool, dtype: torch.dtype
) -> bool:
    """Whether the kernel takes this."""
    sizes = x.numel() > 0 and x.shape[-1] % DEPTH == 0 and len(weight) % (16 << swiglu) == 0 and len(weight) > 0
    one_gate = step is None and (gate is None or gate.stride(0) == 1)
    return x.device.type == "cpu" and dtype == torch.bfloat16 and sizes and one_gate


def linear_int8(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    swiglu: bool = False,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    step: None = None,
    out: Tensor,
) -> None:
    """Launches the kernel; the op has checked the inputs. ``out`` is ``residual`` where there is one."""
    N, K = weight.shape
    extension().linear_int8(
        *(address(x), address(x_scale), x.numel() // K, K, address(weight), address(weight_scale), N // (1 + swiglu)),
        *(address(bias), address(gate), address(out), swiglu, residual is not None, threads()),
    )
