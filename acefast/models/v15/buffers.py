"""Static memory of the transformer on a GPU: every step writes to the same addresses, so that a graph may hold it.

Each song has a fixed number of token rows, its length rounded up. Rows beyond the length hold numbers that nothing
valid depends on; they only have to be finite, so all memory starts as zeros.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from acefast.models.v15.config import Config

ALIGNMENT = 256  # bytes


def padded_tokens(tokens: int) -> int:
    """Rows that a song of so many tokens takes: tiles of a matrix product are 128 rows whatever the length."""
    step = 128 if tokens <= 2048 else 256
    return -(-tokens // step) * step


def padded_conditions(conditions: int) -> int:
    """Rows that a song's keys and values take in the cache."""
    step = 64 if conditions <= 512 else 256
    return -(-conditions // step) * step


class Buffers(NamedTuple):
    """Where each op of a step writes, [rows, S, width] each. On a CPU all are None: ops make their own memory."""

    patches: Tensor | None = None  # latents in the model's dtype, the frames of a token side by side
    x: Tensor | None = None  # residual stream
    first: Tensor | None = None  # residual stream before unconditional rows split off, half the rows
    h: Tensor | None = None  # what a norm makes of it
    y: Tensor | None = None  # what a sublayer adds to it
    attended: Tensor | None = None
    qkv: Tensor | None = None  # this and the next two are never alive together and share memory
    query: Tensor | None = None
    hidden: Tensor | None = None
    velocity: Tensor | None = None  # as patches
    tokens: Tensor | None = None  # [rows] int32, valid tokens of each song

    @classmethod
    def allocate(
        cls,
        c: Config,
        batch: int,
        tokens: int,
        *,
        unconditional: bool,
        dtype: torch.dtype,
        residual: torch.dtype,
        device: torch.device,
    ) -> Buffers:
        """One arena for ``batch`` songs of ``tokens`` rows, and as many unconditional ones behind them."""
        rows, H, D, patch = (
            batch << unconditional,
            c.hidden_size,
            c.head_dim,
            c.patch_size * c.audio_acoustic_hidden_dim,
        )
        q = c.num_attention_heads * D
        wide = {"qkv": q + 2 * c.num_key_value_heads * D, "query": q, "hidden": c.intermediate_size}
        plan = {  # name: rows, width, dtype
            "patches": (batch, patch, dtype),
            "x": (rows, H, residual),
            "first": (batch if unconditional else 0, H, residual),
            "h": (rows, H, dtype),
            "y": (rows, H, dtype),
            "attended": (rows, q, dtype),
            "wide": (rows, max(wide.values()), dtype),
            "velocity": (rows, patch, dtype),
        }
        sizes = [math.prod(spec[:2]) * tokens * spec[2].itemsize for spec in plan.values()]
        sizes = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
        parts = torch.zeros(sum(sizes), dtype=torch.uint8, device=device).split(sizes)

        def carve(part: Tensor, rows: int, width: int, dtype: torch.dtype) -> Tensor:
            return part[: rows * tokens * width * dtype.itemsize].view(dtype).view(rows, tokens, width)

        memory = dict(zip(plan, parts))
        found = {name: carve(memory[name], *spec) for name, spec in plan.items() if name != "wide"}
        found |= {name: carve(memory["wide"], rows, width, dtype) for name, width in wide.items()}
        return cls(**found)

    def rows(self, count: int) -> Buffers:
        """The first ``count`` rows of each."""
        return Buffers(*(None if t is None else t[:count] for t in self))

    @property
    def before_split(self) -> Buffers:
        """The first half of all rows, with the residual stream where splitting it does not overwrite it."""
        return self.rows(0 if self.first is None else len(self.first))._replace(x=self.first)

    @property
    def norm(self) -> tuple[Tensor, Tensor] | None:
        """``out`` of ``residual_norm``: where it writes the residual stream and what it makes of it."""
        return None if self.x is None else (self.x, self.h)

    def norm_as(self, *shape: int) -> tuple[Tensor, Tensor] | None:
        """``norm`` in another shape of as many rows, [*shape, H]."""
        return None if self.x is None else (self.x.view(*shape, -1), self.h.view(*shape, -1))


NO_BUFFERS = Buffers()
