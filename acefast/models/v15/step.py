"""One step of the sampler on static memory: all that a CUDA graph holds and replays."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from acefast.conditions import Conditions
from acefast.graphs import Graphs
from acefast.guidance import Guidance
from acefast.models.v15.buffers import (
    Shape,
    carve,
    carve_buffers,
    padded_conditions,
    padded_steps,
    padded_tokens,
    plan_bytes,
    step_plan,
)
from acefast.models.v15.dit import DiT, Modulation
from acefast.models.v15.dit_layer import Evaluation, LayerCondition
from acefast.ops.apg import apg_numbers, apg_reference, apg_step, scratch_shape
from acefast.ops.linear import linear
from acefast.ops.philox import int64_of
from acefast.ops.qk_norm_rope import rope_table
from acefast.ops.sampler_step import Repaint, clock, counters, sampler_step, step_table
from acefast.ops.self_attention import row_starts


class Step:
    """The steps of one batch of songs after another, each a forward of the transformer and the sampler's launch behind.

    Its memory and its launches are made for a ``Shape``; ``load`` puts a batch's numbers there. ``launch`` makes the
    same launches on the same addresses at every step of every batch: which step it is lies in ``clock``, on the device.
    ``replay`` has them as graphs: "step", "step_cfg" and, of what is computed once a batch, "prep".
    Calling it is what ``sampling.sample`` takes as ``advance``.
    """

    def __init__(self, model: DiT, shape: Shape, graphs: Graphs) -> None:
        c, device = model.config, model.norm.device
        self.model, self.shape, self.graphs = model, shape, graphs
        songs, S, rows = shape.songs, shape.tokens, shape.songs << shape.guided
        plan = step_plan(c, shape, model.norm.dtype, model.residual)
        memory = carve(graphs.arena(plan_bytes(plan), "step"), plan)
        self.buffers = carve_buffers(c, memory)
        self.latents = memory["latents"]
        self.model_latents = self.buffers.patches.view(self.latents.shape)
        self.velocity_rows = self.buffers.velocity.view(rows, *self.latents.shape[1:])
        self.states, self.source, self.context = (memory[name] for name in ("states", "source", "context"))
        self.modulation = Modulation(memory["modulation"], memory["modulation_out"])
        self.null, self.running = memory.get("null"), memory.get("running")
        nulls = [None] * len(memory["cache"]) if self.null is None else self.null
        self.layers = [LayerCondition(kv[..., 0, :], kv[..., 1, :], null) for kv, null in zip(memory["cache"], nulls)]

        # What is read as a number of something, or is a few numbers, lies outside of the arena.
        zeros = partial(torch.zeros, dtype=torch.int32, device=device)
        self.clock = clock(self.latents.shape, device=device)
        self.times = torch.zeros(shape.steps, 4, device=device)
        self.tokens, self.lengths, self.frames = zeros(rows), zeros(shape.rows), zeros(songs)
        self.seeds = zeros(songs, dtype=torch.int64) if shape.sde else None
        self.repaint = None
        if shape.repaint:
            mask = zeros(self.latents.shape[:2], dtype=torch.bool)
            self.repaint = Repaint(mask, memory["held_source"], memory["held_noise"], zeros(1))
        self.numbers = torch.zeros(4, device=device) if shape.guided else None
        self.scratch = torch.zeros(scratch_shape(self.latents.shape), device=device) if shape.guided else None
        self.counters = counters(self.latents.shape, device=device) if shape.guided else None
        rope = rope_table(S, c.head_dim, c.rope_theta, device)
        self.evaluations = [
            Evaluation(songs, both, rope, self.tokens[: songs << both], self.lengths, self.clock[:1], self.buffers)
            for both in ((False, True) if shape.guided else (False,))
        ]
        # a graph reads it, and the cache it comes from may forget it
        self.starts = [row_starts(count, S, device) for count in (songs, rows)]
        own = weakref.proxy(self)  # so that what is forgotten is gone at once, its graphs too
        self.replay = {
            False: graphs.replayed("step", lambda: own.launch(False)),
            True: graphs.replayed("step_cfg", lambda: own.launch(True)),
        }
        self.prepare = graphs.replayed("prep", lambda: own.derive())
        self._loaded = self._scheduled = None  # keys of the conditions and the schedule that lie in memory

    @staticmethod
    def fuses(guidance: Guidance) -> bool:
        """Whether the guided velocity is one that the sampler's launches compute."""
        return guidance.scale <= 1 or (guidance.variant in ("apg", "cfg") and guidance.state_dtype == torch.float32)

    @staticmethod
    def shape_of(
        model: DiT,
        songs: int,
        conditions: Conditions,
        steps: int,
        guidance: Guidance,
        *,
        sde: bool = False,
        repaint: bool = False,
        later: Conditions | None = None,
    ) -> Shape:
        """What ``load`` of these needs; see there."""
        given = [conditions] if later is None else [conditions, later]
        return Shape(
            songs,
            max(len(c.context) for c in given),
            padded_tokens(-(-conditions.context.shape[1] // model.config.patch_size)),
            padded_conditions(max(c.encoder_hidden_states.shape[1] for c in given)),
            padded_steps(steps),
            guidance.scale > 1,
            sde,
            repaint,
        )

    def load(
        self,
        conditions: Conditions,
        timesteps: Sequence[float],
        guidance: Guidance,
        *,
        seeds: Sequence[int] | None = None,
        held: tuple[Tensor, Tensor, Tensor, int] | None = None,
        later: Conditions | None = None,
        switch: int | None = None,
    ) -> Step:
        """Put a batch's numbers into memory, and what the model derives from its conditions. Returns itself.

        What lies there already is not computed again: conditions of the same ``key`` as the last ones', and the
        modulations of the same schedule.

        Args:
            conditions: of ``DiT.prepare``.
            timesteps: as in ``sampling.sample``.
            guidance: its variant must be one that ``fuses``.
            seeds: one per song, for the solver "sde".
            held: of a repaint: what it makes [T] or [B, T], clean source and initial noise [B, T, C], how many steps
                are held.
            later: conditions that take over at step ``switch``.
        """
        if not self.graphs.take(self):
            self._loaded = self._scheduled = None
        self.conditions, self.later, self.switch = conditions, later, switch
        self.timesteps, self.guidance = list(timesteps), guidance
        self._given, self._next = None, None  # the latents that are handed out, and the step the clock stands at
        T = conditions.context.shape[1]
        self.latents.zero_()  # beyond a song too: a repaint and the sampler look there, and leave it as it is
        self.model_latents.zero_()
        self.valid = conditions.prepared["valid_frames"]
        self.frames.fill_(T) if self.valid is None else self.frames.copy_(self.valid)
        tokens = (self.frames + self.model.config.patch_size - 1) // self.model.config.patch_size
        self.tokens.copy_(tokens.repeat(len(self.tokens) // len(tokens)))
        self.times[: len(timesteps)].copy_(step_table(timesteps), non_blocking=True)
        self._schedule(conditions.prepared["upstream_time"])
        self._put(conditions)
        if seeds is not None:
            self.seeds.copy_(torch.tensor([int64_of(s) for s in seeds]), non_blocking=True)
        if held is not None:
            mask, source, noise, steps = held
            self.repaint.mask[:, :T].copy_(mask != 0)
            self.repaint.source[:, :T].copy_(source)
            self.repaint.noise[:, :T].copy_(noise)
            self.repaint.steps.fill_(steps)
        if self.shape.guided:
            self.running.zero_()
            self.numbers.copy_(apg_numbers(guidance.scale, **self._apg), non_blocking=True)
        return self

    def _schedule(self, upstream_time: bool) -> None:
        key = (*self.timesteps, upstream_time)
        if key != self._scheduled:
            found = self.model.scheduled(self.timesteps, upstream_time=upstream_time)
            for own, modulation in zip(self.modulation, found):
                own[: len(modulation)].copy_(modulation)
            self._scheduled = key

    def _put(self, conditions: Conditions) -> None:
        """Conditions and what the model derives from them."""
        context, states = self._within(conditions.context), conditions.encoder_hidden_states
        T = context.shape[1]
        source = self.source.view(len(self.source), -1, context.shape[2])
        source[:, T:].zero_()
        source[:, :T].copy_(context)
        if conditions.key is not None and conditions.key == self._loaded:
            self._derive_context()
            return
        self._loaded = None  # until all of it is there
        self.lengths.copy_(conditions.lengths)
        self.states[:, states.shape[1] :].zero_()
        self.states[:, : states.shape[1]].copy_(states)
        if self.null is not None:
            self.null.copy_(self.model.constants(conditions.prepared["null"]))
        self.prepare()
        self._loaded = conditions.key

    def derive(self) -> None:
        """What no step changes: all layers' keys and values, and the context's half of the patch projection."""
        embedded = self.model.condition(self.states)
        for layer, own in zip(self.model.layers, self.layers):
            layer.cross_attention.keys_values(embedded, out=(own.k, own.v))
        self._derive_context()

    def _derive_context(self) -> None:
        patch = self.model.patch
        self.context.copy_(linear(self.source, patch.weight[:, : self.source.shape[-1]], patch.bias))

    def launch(self, unconditional: bool) -> None:
        """A step's launches and nothing else."""
        given = {"context": self.context, "layers": self.layers}
        self.model.velocity(self.buffers.patches, given, self.modulation, self.evaluations[unconditional])
        options = dict(model_latents=self.model_latents, seeds=self.seeds, repaint=self.repaint)
        options |= dict(lengths=self.frames, out=self.latents)
        cond, uncond = self.velocity_rows[: self.shape.songs], self.velocity_rows[self.shape.songs :]
        if not unconditional:
            sampler_step(self.latents, cond, self.times, self.clock, **options)
            return
        apg_step(
            *(self.latents, cond, uncond, self.running, self.numbers, self.times, self.clock),
            **options,
            scratch=self.scratch,
            counters=self.counters,
        )

    @property
    def _apg(self) -> dict[str, float]:
        g = self.guidance
        if g.variant == "cfg":  # u + scale * (c - u) is APG without momentum, bound and projection
            return dict(momentum=0.0, norm_threshold=0.0, eta=1.0)
        return dict(momentum=g.momentum, norm_threshold=g.norm_threshold, eta=g.eta)

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        """Latents [B, T, C] after ``step``; the next call overwrites what this one returns."""
        if self.later is not None and step >= self.switch:
            self._put(self.later)
            self.later = None
        if latents is not self._given or step != self._next:
            self.begin(latents, step)
        self.replay[self.guidance.active(self.timesteps[step])]()
        self._next = step + 1
        return self._given

    def begin(self, latents: Tensor, step: int) -> None:
        """Put latents [B, T, C] where the next launch, step ``step``, reads them."""
        T = latents.shape[1]
        self._given = self.latents[:, :T]
        self._given.copy_(latents)
        self.model_latents[:, :T].copy_(self._within(latents))
        self.clock.fill_(step)

    def _within(self, frames: Tensor) -> Tensor:
        """Zeros in place of what lies behind a song's own frames, [B, T, C]."""
        if self.valid is None:
            return frames
        positions = torch.arange(frames.shape[1], device=frames.device)[:, None]
        return frames.masked_fill(positions >= self.valid[:, None, None], 0)

    def velocity(self, step: int) -> Tensor:
        """The guided velocity of the step just made, [B, T, C] fp32; computed when asked for."""
        songs, T = self.shape.songs, self._given.shape[1]
        cond = self.velocity_rows[:songs, :T].float()
        if self.guidance.active(self.timesteps[step]):  # the momentum already is this step's, so none is handed in
            uncond = cond - self.running[:, :T]
            cond, _ = apg_reference(*(cond, uncond, None, self.guidance.scale), **self._apg, lengths=self.frames)
        return self._within(cond)
