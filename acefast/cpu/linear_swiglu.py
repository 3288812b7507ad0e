"""Launches csrc/linear_swiglu_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.checks import is_rows
from acefast.cpu.extension import K_STEP, address, extension, is_bf16, rows, threads
from acefast.panels import rows_of


def fits(x: Tensor, weight: Tensor, up: Tensor | None, out: Tensor | None) -> bool:
    """Whether the kernel takes this."""
    tensors = [t for t in (x, weight, up, out) if t is not None]
    wide = x.shape[-1] % K_STEP == 0 and (up is None or up.stride() == weight.stride())
    if weight.dim() == 4:
        wide = wide and weight.is_contiguous() and (up is not None or len(weight) % 2 == 0)
    return is_bf16(*tensors) and wide and all(t.numel() and is_rows(t) for t in tensors)


def linear_swiglu(x: Tensor, weight: Tensor, up: Tensor | None, *, out: Tensor) -> Tensor:
    """See acefast.ops.linear_swiglu."""
    gate, up = weight.chunk(2) if up is None else (weight, up)
    count, stride = rows(x)
    gate_stride = gate.stride(0) if gate.dim() == 2 else 0  # of panels
    extension().linear_swiglu(
        *(address(x), count, x.shape[-1], stride, address(gate), address(up), gate_stride, rows_of(gate)),
        *(address(out), rows(out)[1], threads()),
    )
    return out
