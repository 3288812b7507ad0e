"""Static memory of the transformer on a GPU: every step writes to the same addresses, so that a graph may hold it.

Each song has a fixed number of token rows, its length rounded up. Rows beyond the length hold numbers that nothing
valid depends on; they only have to be finite, which they are where what is loaded is zero there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from acefast.models.v15.config import Config

ALIGNMENT = 256  # bytes
Plan = dict[str, tuple[tuple[int, ...], torch.dtype]]  # shape and dtype by name


def padded_tokens(tokens: int) -> int:
    """Rows that a song of so many tokens takes: tiles of a matrix product are 128 rows whatever the length."""
    step = 128 if tokens <= 2048 else 256
    return -(-tokens // step) * step


def padded_conditions(conditions: int) -> int:
    """Rows that a song's keys and values take in the cache."""
    step = 64 if conditions <= 512 else 256
    return -(-conditions // step) * step


def padded_steps(steps: int) -> int:
    """Steps that there is room for: 8, 16, 32 and so on."""
    return max(8, 1 << (steps - 1).bit_length())


class Shape(NamedTuple):
    """All that a step's launches depend on; whatever else a song brings is loaded into memory."""

    songs: int
    rows: int  # of conditions: 1 where all songs share them, else one a song
    tokens: int  # as padded
    conditions: int  # as padded
    steps: int  # as padded
    guided: bool = False  # unconditional rows behind the songs', in the steps that are guided
    sde: bool = False
    repaint: bool = False


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


def step_plan(c: Config, shape: Shape, dtype: torch.dtype, residual: torch.dtype) -> Plan:
    """What a step keeps in the arena, ``Buffers`` first.

    Args:
        dtype: of weights and activations; ``residual``: of the residual stream.
    """
    songs, S, R, E, H, D = shape.songs, shape.tokens, shape.rows, shape.conditions, c.hidden_size, c.head_dim
    rows, frames, patch = songs << shape.guided, S * c.patch_size, c.patch_size * c.audio_acoustic_hidden_dim
    q, kv, layers = c.num_attention_heads * D, c.num_key_value_heads * D, c.num_hidden_layers
    latents = (songs, frames, c.audio_acoustic_hidden_dim), torch.float32
    plan: Plan = {
        "patches": ((songs, S, patch), dtype),
        "x": ((rows, S, H), residual),
        "first": ((songs * shape.guided, S, H), residual),
        "h": ((rows, S, H), dtype),
        "y": ((rows, S, H), dtype),
        "attended": ((rows, S, q), dtype),
        "wide": ((rows, S, max(q + 2 * kv, c.intermediate_size)), dtype),
        "velocity": ((rows, S, patch), dtype),
        "latents": latents,
        "states": ((R, E, c.encoder_hidden_size), dtype),
        "source": ((R, S, 2 * patch), dtype),  # context of all frames of a token
        "context": ((R, S, H), residual),  # what the patch projection makes of it
        "cache": ((layers, R, c.num_key_value_heads, E, 2, D), dtype),  # keys and values
        "modulation": ((shape.steps, layers, 6, H), torch.float32),
        "modulation_out": ((shape.steps, 2, H), torch.float32),
    }
    if shape.guided:
        plan |= {"null": ((layers, 2, 1, H), dtype), "running": latents}
    if shape.repaint:
        plan |= {"held_source": latents, "held_noise": latents}
    return plan


def plan_bytes(plan: Plan) -> int:
    """Memory that ``plan`` takes of an arena."""
    return sum(_bytes(spec) for spec in plan.values())


def carve(memory: Tensor, plan: Plan) -> dict[str, Tensor]:
    """The tensors of ``plan`` one behind the other in ``memory``, uint8 of ``plan_bytes``."""
    parts = memory.split([_bytes(spec) for spec in plan.values()])
    return {name: _view(part, *spec) for part, (name, spec) in zip(parts, plan.items())}


def carve_buffers(c: Config, memory: dict[str, Tensor]) -> Buffers:
    """The ``Buffers`` among what ``carve`` made of a ``step_plan``."""
    wide, q = memory["wide"], c.num_attention_heads * c.head_dim
    widths = {"qkv": q + 2 * c.num_key_value_heads * c.head_dim, "query": q, "hidden": c.intermediate_size}
    found = {name: memory[name] for name in Buffers._fields if name in memory}
    for name, width in widths.items():
        found[name] = wide.flatten()[: math.prod(wide.shape[:2]) * width].view(*wide.shape[:2], width)
    return Buffers(**found)


def _bytes(spec: tuple[tuple[int, ...], torch.dtype]) -> int:
    return -(-math.prod(spec[0]) * spec[1].itemsize // ALIGNMENT) * ALIGNMENT


def _view(part: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return part[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
