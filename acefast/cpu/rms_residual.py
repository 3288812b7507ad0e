"""Launches csrc/rms_residual_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.checks import is_rows
from acefast.cpu.extension import address, extension, is_bf16, rows, threads

LANES = 16  # of which C is a multiple


def fits(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor | None, out: Tensor | None) -> bool:
    """Whether the kernel takes this."""
    given = [t for t in (h, x, out) if t is not None]
    vectors = weight.stride(0) == 1 and bias.stride(0) == 1
    return is_bf16(weight, bias, *given) and h.shape[-1] % LANES == 0 and vectors and all(map(is_rows, given))


def rms_residual(
    h: Tensor, weight: Tensor, bias: Tensor, x: Tensor | None, *, relu: bool, eps: float, out: Tensor
) -> Tensor:
    """See acefast.ops.rms_residual."""
    count, stride = rows(h)
    extension().rms_residual(
        *(count, h.shape[-1], address(h), stride, address(weight), address(bias), address(x)),
        *(0 if x is None else rows(x)[1], relu, eps, address(out), rows(out)[1], threads()),
    )
    return out
