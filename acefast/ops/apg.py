"""Adaptive projected guidance: what conditions add to the velocity, with momentum, a bounded norm and no parallel part.

With c and u the conditional and unconditional velocity, m the momentum, norms and products over time for each song and
channel:

    m    <- (c - u) + momentum * m
    d    =  m * min(1, norm_threshold / |m|)
    par  =  <d, c> c / |c|^2
    v    =  c + (scale - 1) * ((d - par) + eta * par)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_shape

OP = "apg"
ORDER: tuple[str, ...] = ()

_TINY = 1e-12  # the least norm of c that is divided by, as upstream


def apg_reference(
    cond: Tensor,
    uncond: Tensor,
    running: Tensor | None,
    scale: float,
    *,
    momentum: float = -0.75,
    norm_threshold: float = 2.5,
    eta: float = 0.0,
    time_dim: int | Sequence[int] = 1,
    state_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """What the op means: sums over time in fp64, the rest in ``state_dtype``; see ``apg``."""
    wide = widest_dtype(cond.device)
    c = cond.to(state_dtype)
    running = c - uncond.to(state_dtype) if running is None else c - uncond.to(state_dtype) + momentum * running
    d = running
    if norm_threshold > 0:
        norm = torch.linalg.vector_norm(d, dim=time_dim, keepdim=True, dtype=wide).to(state_dtype)
        d = d * (norm_threshold / norm).clamp_(max=1.0)  # a norm of zero gives inf, and 0 * 1 stays 0
    d_wide, c_wide = d.to(wide), c.to(wide)
    length = torch.linalg.vector_norm(c_wide, dim=time_dim, keepdim=True).clamp_(min=_TINY)
    parallel = c_wide * ((d_wide * c_wide).sum(time_dim, keepdim=True) / length / length)
    update = (d_wide - parallel).to(state_dtype)
    if eta:
        update = update + eta * parallel.to(state_dtype)
    return (c + (scale - 1.0) * update).to(cond.dtype), running


def apg(
    cond: Tensor,
    uncond: Tensor,
    running: Tensor | None,
    scale: float,
    *,
    momentum: float = -0.75,
    norm_threshold: float = 2.5,
    eta: float = 0.0,
    time_dim: int | Sequence[int] = 1,
    state_dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One guided step.

    Args:
        cond, uncond: the two velocities, one shape, such as [B, T, C].
        running: what the previous guided step returned as its second result; None before the first.
        scale: guidance scale; 1 returns ``cond``.
        momentum: share of ``running`` kept; negative values damp.
        norm_threshold: the largest norm of the difference, absolute; 0 or less bounds nothing.
        eta: share kept of the difference's part parallel to ``cond``.
        time_dim: dimension or dimensions that norms and products run over.
        state_dtype: of the difference, the momentum and the bound. fp32; bf16 is upstream's habit, which also rounds
            after each of the formula's operations (the projection is fp64 in both).
        backend: "reference"; None leaves the choice to acefast.backends.
    Returns:
        The velocity in ``cond``'s dtype, and the momentum in ``state_dtype``, each of ``cond``'s shape.
    Raises:
        ValueError: shapes differ.
        BackendUnavailable: the backend named cannot run here.
    Source: Sadat et al., Eliminating oversaturation and artifacts of high guidance scales (arXiv 2410.02416), with the
    norms over time as ACE-Step has them.
    """
    check_shape(OP, "uncond", uncond, cond.shape, "cond's shape")
    if running is not None:
        check_shape(OP, "running", running, cond.shape, "cond's shape")
    choose_backend(OP, backend, cond.device, ORDER)
    return apg_reference(
        cond,
        uncond,
        running,
        scale,
        momentum=momentum,
        norm_threshold=norm_threshold,
        eta=eta,
        time_dim=time_dim,
        state_dtype=state_dtype,
    )


def widest_dtype(device: torch.device) -> torch.dtype:
    """fp64, or fp32 on the one kind of device that has none: sums over time are then right to about 1e-6."""
    return torch.float32 if device.type == "mps" else torch.float64
