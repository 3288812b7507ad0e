"""Launches csrc/paired_rope_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.cpu.extension import address, extension, is_bf16, threads

LANES = 16  # channels at a time


def fits(x: Tensor, table: Tensor, out: Tensor | None) -> bool:
    """Whether the kernel takes this."""
    given = [t for t in (x, out) if t is not None]
    heads = x.shape[3] % LANES == 0 and x.numel() > 0 and all(t.stride(3) == 1 for t in given)
    return heads and is_bf16(*given) and table.is_contiguous()


def paired_rope(x: Tensor, table: Tensor, *, out: Tensor) -> Tensor:
    """See acefast.ops.paired_rope."""
    rows = (address(x), x.stride()[:3], address(table), address(out), out.stride()[:3])
    extension().paired_rope(*rows, *x.shape, threads())
    return out
