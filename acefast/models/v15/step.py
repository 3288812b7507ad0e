"""One step of the sampler on static memory: all that a CUDA graph holds and replays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acefast.conditions import Conditions
from acefast.guidance import Guidance
from acefast.models.v15.dit import DiT, Modulation
from acefast.ops.apg import apg_reference, apg_step, scratch_shape
from acefast.ops.philox import int64_of
from acefast.ops.sampler_step import Repaint, clock, sampler_step, step_table
from acefast.ops.self_attention import row_starts


class Step:
    """The steps of one batch of songs, each a forward of the transformer and the sampler's launch behind it.

    ``launch`` makes the same launches on the same addresses at every step: which one it is lies in ``clock``, on the
    device. Everything else here happens between the steps. Calling it is what ``sampling.sample`` takes as ``advance``.
    """

    def __init__(
        self,
        model: DiT,
        conditions: Conditions,
        timesteps: Sequence[float],
        songs: int,
        guidance: Guidance,
        *,
        seeds: Sequence[int] | None = None,
        repaint: Repaint | None = None,
        later: Conditions | None = None,
        switch: int | None = None,
    ) -> None:
        """
        Args:
            conditions: of a ``DiT.prepare`` that made static memory, with ``timesteps`` (or more) as its schedule.
            timesteps: as in ``sampling.sample``.
            songs: rows of the latents.
            guidance: its variant must be one that ``fuses``.
            seeds: one per song: the solver is "sde" then, else "euler".
            repaint: see ``acefast.ops.sampler_step``.
            later: conditions of the same shape that take over at step ``switch``.
        """
        prepared = conditions.prepared
        T, C, device = conditions.context.shape[1], model.config.audio_acoustic_hidden_dim, model.norm.device
        self.model, self.timesteps, self.guidance, self.repaint = model, list(timesteps), guidance, repaint
        self.buffers = buffers = model.static_buffers(conditions, songs)
        self.songs, self.conditions, self.later, self.switch = songs, conditions, later, switch
        self.latents = torch.zeros(songs, T, C, device=device)
        self.model_latents = buffers.patches.view(songs, -1, C)
        self.velocity_rows = buffers.velocity.view(len(buffers.velocity), -1, C)[:, :T]
        self.frames = prepared["frames"]  # [B or 1, T] mask, or None
        self.lengths = None if self.frames is None else self.frames.sum(1).expand(songs).to(torch.int32)
        self.times = step_table(timesteps, device=device)
        self.clock = clock(self.latents.shape, device=device)
        self.modulation = Modulation(*map(torch.stack, zip(*(prepared["times"][t] for t in timesteps))))
        self.seeds = None if seeds is None else torch.tensor([int64_of(s) for s in seeds], device=device)
        self.scale = torch.full((1,), guidance.scale, device=device)
        guided = guidance.scale > 1
        self.running = torch.zeros_like(self.latents) if guided else None
        self.scratch = torch.zeros(scratch_shape(self.latents.shape), device=device) if guided else None
        self.evaluations = [
            model.evaluation(prepared, songs, unconditional, buffers, self.clock[:1]) for unconditional in (False, True)
        ]
        # a graph reads it, and the cache it comes from may forget it
        self.held = [row_starts(rows, buffers.x.shape[1], device) for rows in (songs, len(buffers.x))]
        self._next = None  # the step the clock stands at, if ``latents`` are its

    @staticmethod
    def fuses(guidance: Guidance) -> bool:
        """Whether the guided velocity is one that the sampler's launches compute."""
        return guidance.scale <= 1 or (guidance.variant in ("apg", "cfg") and guidance.state_dtype == torch.float32)

    def load(self, latents: Tensor, step: int) -> None:
        """Put latents [B, T, C] where the next launch, step ``step``, reads them."""
        self.latents.copy_(latents)
        own = latents if self.frames is None else latents.masked_fill(~self.frames[..., None], 0)
        self.model_latents[:, : latents.shape[1]].copy_(own)
        self.clock.fill_(step)

    def launch(self, unconditional: bool, prepared: dict | None = None) -> None:
        """A step's launches and nothing else."""
        prepared = prepared or self.conditions.prepared
        e = self.evaluations[unconditional]._replace(lengths=prepared["lengths"])
        self.model.velocity(self.buffers.patches, prepared, self.modulation, e)
        options = dict(model_latents=self.model_latents, seeds=self.seeds, repaint=self.repaint)
        options |= dict(lengths=self.lengths, out=self.latents)
        cond = self.velocity_rows[: self.songs]
        if not unconditional:
            sampler_step(self.latents, cond, self.times, self.clock, **options)
            return
        apg_step(
            *(self.latents, cond, self.velocity_rows[self.songs :], self.running, self.scale, self.times, self.clock),
            **self._apg,
            **options,
            scratch=self.scratch,
        )

    @property
    def _apg(self) -> dict[str, float]:
        g = self.guidance
        if g.variant == "cfg":  # u + scale * (c - u) is APG without momentum, bound and projection
            return dict(momentum=0.0, norm_threshold=0.0, eta=1.0)
        return dict(momentum=g.momentum, norm_threshold=g.norm_threshold, eta=g.eta)

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        """Latents [B, T, C] after ``step``; the next call overwrites what this one returns."""
        if latents is not self.latents or step != self._next:
            self.load(latents, step)
        switched = self.later is not None and step >= self.switch
        self.launch(self.guidance.active(self.timesteps[step]), (self.later if switched else self.conditions).prepared)
        self._next = step + 1
        return self.latents

    def velocity(self, step: int) -> Tensor:
        """The guided velocity of the step just made, [B, T, C] fp32; computed when asked for."""
        cond = self.velocity_rows[: self.songs].float()
        if self.guidance.active(self.timesteps[step]):  # the momentum already is this step's, so none is handed in
            uncond = cond - self.running
            cond, _ = apg_reference(*(cond, uncond, None, self.guidance.scale), **self._apg, lengths=self.lengths)
        return cond if self.frames is None else cond.masked_fill(~self.frames[..., None], 0)
