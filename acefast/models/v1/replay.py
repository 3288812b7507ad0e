"""A pass of ACE-Step v1's transformer on static memory, which a CUDA graph holds and replays."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from acefast.conditions import Conditions
from acefast.graphs import Graphs
from acefast.models.v1.dit_layer import Evaluation, LayerCondition
from acefast.models.v15.buffers import carve, padded_conditions, plan_bytes
from acefast.ops.self_attention import compute_dtype

if TYPE_CHECKING:
    from acefast.models.v1.dit import DiT


class PassShape(NamedTuple):
    """All that a pass's launches depend on; whatever else a song brings is loaded into memory."""

    songs: int
    branches: int  # 2 or 3 in the steps that are guided
    shared: bool  # one row of conditions serves all songs
    frames: int  # of a song; a norm spans them, so they are not rounded up
    conditions: int  # as padded

    @property
    def rows(self) -> int:
        """Of conditions."""
        return self.branches * (1 if self.shared else self.songs)

    @classmethod
    def of(cls, conditions: Conditions, songs: int, branches: int) -> PassShape:
        """Of the evaluations of ``songs`` songs in so many branches."""
        rows, frames = conditions.context.shape[:2]
        width = conditions.prepared["layers"][0].k.shape[2]
        return cls(songs, branches, rows < songs, frames, padded_conditions(width))


class Pass:
    """All launches of ``DiT.evaluate``, for any noise level and conditions of one ``PassShape``.

    What it computes between its inputs and its result, a graph's own pool holds.
    """

    def __init__(self, model: DiT, shape: PassShape, graphs: Graphs) -> None:
        c, dtype = model.config, model.dtype
        self.model, self.shape, self.graphs = model, shape, graphs
        heads, H, frame = c.num_attention_heads, c.hidden_size, c.frame_size
        plan = {
            "latents": ((shape.songs, shape.frames, frame), torch.float32),
            "velocity": ((shape.songs * shape.branches, shape.frames, frame), dtype),
            "blocks": ((6, H), torch.float32),
            "out": ((H,), torch.float32),
            "mask": ((shape.rows, 1, 1, shape.conditions), compute_dtype(model.out.weight)),
            "cache": ((c.num_layers, 2, shape.rows, heads, shape.conditions, c.attention_head_dim), dtype),
        }
        self.memory = memory = carve(graphs.arena(plan_bytes(plan), "pass"), plan)
        self.layers = [LayerCondition(*both) for both in memory["cache"]]
        self.evaluation = Evaluation(shape.songs * shape.branches, model.rope(shape.frames), memory["mask"])
        own = weakref.proxy(self)  # so that what is forgotten is gone at once, its graph too
        self.replay = graphs.replayed("pass", lambda: own.launch())
        self._loaded: Hashable = None  # key of the conditions that lie in memory

    def launch(self) -> None:
        """What a graph holds."""
        m = self.memory
        m["velocity"].copy_(self.model.evaluate(m["latents"], m["blocks"], m["out"], self.layers, self.evaluation))

    def __call__(self, conditions: Conditions, latents: Tensor, times: tuple[Tensor, Tensor]) -> Tensor:
        """Velocities [songs * branches, T, 128] fp32 in memory of their own; ``times``: of ``DiT.embeddings``."""
        if not self.graphs.take(self) or conditions.key != self._loaded:
            self._loaded = None  # until all of it is there
            self._put(conditions)
            self._loaded = conditions.key
        for name, given in (("latents", latents), ("blocks", times[0]), ("out", times[1])):
            self.memory[name].copy_(given)
        self.replay()
        return self.memory["velocity"].to(torch.float32, copy=True)

    def _put(self, conditions: Conditions) -> None:
        """Keys and values, and which of them there are."""
        prepared, rows = conditions.prepared, self.shape.rows
        width = prepared["layers"][0].k.shape[2]
        for own, given in zip(self.layers, prepared["layers"]):
            for into, kept in zip(own, given):
                into[:, :, :width].copy_(kept[:rows])
                into[:, :, width:].zero_()
        mask = self.memory["mask"]
        mask[..., width:].fill_(torch.finfo(mask.dtype).min)
        given = prepared["mask"]
        mask[..., :width].zero_() if given is None else mask[..., :width].copy_(given[:rows])
