"""Finite scalar quantisation: six numbers to one audio code and back, in fp32: a code must not depend on rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from acefast.backends import choose_backend

OP = "fsq"
ORDER: tuple[str, ...] = ()  # no kernels yet


def fsq_reference(z: Tensor, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """What the op means; every kernel is held to it."""
    last = torch.tensor(levels, dtype=torch.float32, device=z.device) - 1
    soft = 1 + 1 / last
    y = ((z.float() / soft).tanh() * soft).clamp(-1, 1)
    n = (last * (y + 1) / 2 + 0.5).floor()
    return n * (2 / last) - 1, (n.long() * _basis(levels, z.device)).sum(-1)


def fsq(z: Tensor, levels: Sequence[int], *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Round each ``z[..., d]`` to one of ``levels[d]`` even steps of [-1, 1] and number the combination.

    ``s = L / (L - 1)``, ``y = clamp(s * tanh(z / s), -1, 1)``, ``n = floor((L - 1) * (y + 1) / 2 + 1/2)``;
    the value is ``2n / (L - 1) - 1``, the code ``sum(n[d] * levels[0] * ... * levels[d - 1])``.

    Args:
        z: [..., len(levels)], any float dtype.
        levels: steps of each dimension, (8, 8, 8, 5, 5, 5) in every checkpoint.
        backend: "reference"; None leaves the choice to acefast.backends.
    Returns:
        values [..., len(levels)] fp32 and codes [...] int64 in 0 .. prod(levels) - 1.
    Raises:
        ValueError: the last size is not ``len(levels)``.
        BackendUnavailable: the backend named cannot take this input.
    Source: FSQ of lucidrains/vector-quantize-pytorch >= 1.27.15, symmetry preserving; _AceStepResidualFSQ in diffusers.
    """
    if z.shape[-1] != len(levels):
        raise ValueError(f"{OP}: z must be [..., {len(levels)}], got {list(z.shape)}")
    choose_backend(OP, backend, z.device, ORDER)
    return fsq_reference(z, levels)


def fsq_values(codes: Tensor, levels: Sequence[int]) -> Tensor:
    """The values of codes [...] int64, [..., len(levels)] fp32: the inverse of ``fsq``.

    Codes outside 0 .. prod(levels) - 1 are clamped to it, as upstream clamps what the planner writes.
    """
    sizes = torch.tensor(levels, device=codes.device)
    n = codes.clamp(0, math.prod(levels) - 1)[..., None] // _basis(levels, codes.device) % sizes
    return n.float() * (2 / (sizes.float() - 1)) - 1


def _basis(levels: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([math.prod(levels[:d]) for d in range(len(levels))], device=device)
