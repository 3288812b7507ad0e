"""Rows between zeros: how the autoencoder's activations lie in memory on a GPU, so that no kernel's loop needs a mask.

    x = guarded(B, L, C, dtype=torch.float16, device=device)  # [B, L, C], a view of [B, GUARD + L + GUARD, C]

A kernel is given ``whole(x)`` and reads up to GUARD rows beyond the ends of each song as it reads any other. Whoever
writes the rows writes zeros to the guards as well: memory is used again for rows of another width.
"""

from __future__ import annotations

import torch
from torch import Tensor

GUARD = 32  # rows a side; the widest kernel, seven taps of dilation 9, reaches 27


def elements(batch: int, rows: int, channels: int) -> int:
    """Elements of memory that such rows take, guards included."""
    return batch * (GUARD + rows + GUARD) * channels


def guarded(
    batch: int, rows: int, channels: int, *, dtype: torch.dtype, device: torch.device, memory: Tensor | None = None
) -> Tensor:
    """Rows [B, L, C] with guards around each song's, in new memory (whose guards are zero) or in ``memory``.

    Args:
        memory: flat, of ``dtype``, at least ``elements(...)`` long; nothing in it is changed.
    """
    if memory is None:
        memory = torch.empty(elements(batch, rows, channels), dtype=dtype, device=device)
        memory.view(batch, -1, channels)[:, :GUARD] = 0
        memory.view(batch, -1, channels)[:, GUARD + rows :] = 0
    whole = memory[: elements(batch, rows, channels)].view(batch, -1, channels)
    return whole[:, GUARD : GUARD + rows]


def with_guards(x: Tensor) -> Tensor:
    """A copy of rows [B, L, C], with guards."""
    return guarded(*x.shape, dtype=x.dtype, device=x.device).copy_(x)


def is_guarded(x: Tensor) -> bool:
    """Whether [B, L, C] lies as ``guarded`` lays it; what the guards hold is not looked at."""
    B, L, C = x.shape
    song = (GUARD + L + GUARD) * C
    behind = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset() - B * song + GUARD * C
    return x.stride() == (song, C, 1) and x.storage_offset() >= GUARD * C and behind >= 0


def whole(x: Tensor) -> Tensor:
    """Guarded rows [B, L, C] with their guards, [B, GUARD + L + GUARD, C] contiguous: what a kernel is given."""
    B, L, C = x.shape
    return x.as_strided((B, L + 2 * GUARD, C), x.stride(), x.storage_offset() - GUARD * C)
