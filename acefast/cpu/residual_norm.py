"""Launches csrc/residual_norm_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.cpu.extension import address, extension, is_bf16, threads

LANES = 16  # of which H is a multiple


def fits(x: Tensor, weight: Tensor | None, *others: Tensor | None) -> bool:
    """Whether the kernel takes these; ``others`` [B, S, H] too."""
    wide = x.shape[-1] % LANES == 0 and x.numel() > 0
    return wide and is_bf16(x, weight, *others) and all(t is None or t.stride(-1) == 1 for t in (x, weight, *others))


def residual_norm(
    x: Tensor,
    weight: Tensor | None,
    y: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    step: Tensor | None,
    eps: float,
    out: tuple[Tensor | None, Tensor],
) -> tuple[Tensor | None, Tensor]:
    """See acefast.ops.residual_norm; without y, ``out[0]`` is not looked at."""
    vectors = [t if t is None or step is None else t[int(step)] for t in (gate, scale, shift)]
    gate, scale, shift = (None if t is None else t.float().contiguous() for t in vectors)
    new, h = x if y is None else out[0], out[1]
    extension().residual_norm(
        *(*x.shape, *_place(x), *_place(y), address(gate), address(weight), address(scale), address(shift), eps),
        *(*_place(None if y is None else new), *_place(h), threads()),
    )
    return new, h


def _place(tensor: Tensor | None) -> tuple[int, int, int]:
    """Where [B, S, H] begins, and elements from one song to the next and from one row to the next."""
    return (0, 0, 0) if tensor is None else (tensor.data_ptr(), *tensor.stride()[:2])
