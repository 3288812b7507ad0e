"""Rows between zeros: how the autoencoder's activations lie in memory on a GPU, so that no kernel's loop needs a mask.

    x = guarded(B, L, C, dtype=torch.float16, device=device)  # [B, L, C], a view of [B, GUARD + L + GUARD, C]

A kernel is given ``whole(x)`` and reads up to GUARD rows beyond the ends of each song as it reads any other. Whoever
writes the rows writes zeros to the guards as well: memory is used again for rows of another width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acefast.checks import check_contiguous

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
        return clear_guards(guarded(batch, rows, channels, dtype=dtype, device=device, memory=memory))
    around = memory[: elements(batch, rows, channels)].view(batch, GUARD + rows + GUARD, channels)
    return around[:, GUARD : GUARD + rows]


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


def clear_guards(x: Tensor) -> Tensor:
    """Write zeros to the guards of guarded rows, and return them."""
    around = whole(x)
    around[:, :GUARD] = 0
    around[:, GUARD + x.shape[1] :] = 0
    return x


def check_rows(op: str, name: str, tensor: Tensor, guards: bool) -> None:
    """Raise ValueError unless [B, L, C] is contiguous; with ``guards``, unless it lies as ``guarded`` lays it."""
    if not guards:
        check_contiguous(op, name, tensor)
    elif not is_guarded(tensor):
        raise ValueError(
            f"{op}: {name} must lie between guards of {GUARD} rows (acefast.guarded), got strides "
            f"{tuple(tensor.stride())} and offset {tensor.storage_offset()} for {list(tensor.shape)}"
        )


def lay(y: Tensor, out: Tensor | None, guards: bool) -> Tensor:
    """Contiguous rows as an op returns them: in ``out`` if there is one, with ``guards`` between zeros."""
    if out is None:
        return with_guards(y) if guards else y
    out.copy_(y)
    return clear_guards(out) if guards else out


Results = tuple[Tensor | None, ...]  # of an op, None for each that is not asked for


def room(x: Tensor, shape: Sequence[int], asked: Sequence[bool], out: Results, guards: bool) -> Results:
    """Where a kernel, which clears the guards itself, writes the results that are asked for: rows of ``shape`` like x.

    That is ``out`` where there is one and it lies between ``guards``, else new memory.
    """

    def new() -> Tensor:
        return guarded(*shape, dtype=x.dtype, device=x.device, memory=x.new_empty(elements(*shape)))

    return tuple((t if guards and t is not None else new()) if one else None for one, t in zip(asked, out))


def handed_over(written: Results, out: Results, guards: bool) -> Results:
    """What a kernel has written, as the op returns it: contiguous, and in ``out``, unless it is to have ``guards``."""
    if guards:
        return written
    return tuple(None if t is None else lay(t.contiguous(), o, False) for t, o in zip(written, out))
