"""How ACE-Step v1 samples a task: noise, schedule, guidance, repaint, edit, put together for ``acefast.sampling``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from acefast import repaint, sampling
from acefast.conditions import Conditions
from acefast.diffusion import Loop
from acefast.edit import FlowEdit
from acefast.guidance import guided
from acefast.models.v1.config import ROWS
from acefast.models.v1.guidance import WindowGuidance, window
from acefast.models.v1.schedule import picked, schedule, start_of, stretch
from acefast.models.v1.tasks import WIDTH, build_task, extension_noise, frames_of
from acefast.noise import drawing, given_noise, start_noise
from acefast.ops.philox import int64_of
from acefast.options import REPAINT
from acefast.request import Request
from acefast.tasks import Recording, Task

EDIT_STREAM = 1 << 33  # Philox stream of an edit's first noise


class Sampling:
    """The part of ``Model`` that sampling starts from. It needs device, dtype, ``encode`` and ``velocity``."""

    def bucket(self, request: Request) -> int:
        """Frames of text2music: only songs of one length are made together, since a norm spans all frames."""
        return frames_of(request.duration)

    def task(self, requests: list[Request], recording: Recording | None) -> Task:
        """Length, source latents and mask of a batch."""
        return build_task(requests, recording, encode=self.encode)

    def torch_noise(self, generator: torch.Generator, frames: int, width: int = WIDTH) -> Tensor:
        """[1, frames, 128] in the model's dtype: a song's noise as upstream draws it, [1, 8, 16, frames]."""
        shape = (1, width // ROWS, ROWS, frames)
        return _our_order(torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype))

    def noise(self, requests: list[Request], task: Task) -> Tensor | None:
        """[B, T, 128] float32: the noise that sampling starts from; None for an edit, which starts from its source.

        In repaint and extend the frames to make have noise of ``variation_seed``, in repaint mixed with the song's.
        """
        request = requests[0]
        if request.task == "edit":
            return None
        source = request.noise_source

        def new(frames: int) -> Tensor:
            return drawing(self, _second_seeds(requests), frames, WIDTH, source)()

        if request.task == "extend":
            if request.noise is not None:
                return given_noise(requests, (task.frames, WIDTH), self)
            seeds = [r.seed for r in requests]
            noise = extension_noise(task, lambda frames: drawing(self, seeds, frames, WIDTH, source)(), new)
            return noise
        noise = start_noise(requests, task, self)
        if request.task != "repaint":
            return noise
        made = task.mask.to(noise.device)[:, None] != 0
        return torch.where(made, sampling.mix_noise(noise, new(task.frames), request.strength), noise)

    def timesteps(self, request: Request) -> list[float]:
        """The schedule, in fp32; only ``oss_steps`` go through the model's dtype, in upstream precision."""
        if request.oss_steps is not None:
            return picked(request.oss_steps, self.dtype if request.precision == "upstream" else torch.float32)
        if request.task == "audio2audio":
            return start_of(request.steps, request.strength)[0]
        return schedule(request.steps)

    def loop(
        self,
        requests: list[Request],
        task: Task,
        noise: Tensor | None,
        timesteps: list[float],
        conditions: Conditions,
        other: Conditions | None,
    ) -> Loop:
        """The loop of a batch; ``other``: of an edit, the source's conditions."""
        request, steps = requests[0], len(timesteps)
        upstream = request.precision == "upstream"
        state_dtype = self.dtype if upstream else torch.float32
        options: dict[str, Any] = dict(state_dtype=state_dtype, step_dtype=torch.float32, solver=request.solver)
        guidance = WindowGuidance(
            request.guidance_scale,
            request.guidance,
            momentum=request.guidance_momentum,
            norm_threshold=request.guidance_norm,
            eta=request.guidance_eta,
            state_dtype=state_dtype,
            window=window(steps, request.guidance_interval or 0.0),
            decay=request.guidance_decay,
            least=request.guidance_min,
            text=request.guidance_text,
            lyric=request.guidance_lyric,
        )

        def seen(given: Conditions) -> Callable[..., Tensor | tuple[Tensor, ...]]:
            return lambda x, t, step, both: self.velocity(x, t, given, unconditional=both)

        if request.task == "edit":
            guidance = replace(guidance, window=range(steps))
            still = replace(guidance, momentum=0.0)  # upstream hands the target none until the switch
            edit = FlowEdit(
                task.clean.to(self.device).float().expand(len(requests), -1, -1),
                timesteps,
                int(steps * request.edit_from),
                int(steps * request.edit_until),
                difference=(guided(seen(conditions), still), guided(seen(other), guidance)),
                target=guided(seen(conditions), guidance),
                draw=drawing(
                    *(self, _second_seeds(requests), task.frames, WIDTH, request.noise_source), first=EDIT_STREAM
                ),
                average=request.edit_average,
            )
            options |= dict(start=edit.first, after_step=edit.after_step)
            return Loop(edit.velocity, edit.start(), timesteps, options)

        velocity = guided(seen(conditions), guidance)
        if request.task in REPAINT:
            clean, made = task.clean.to(noise).expand_as(noise), task.mask.to(noise.device)
            first = int(steps * (1 - request.strength))
            t = timesteps[first]
            options |= dict(
                start=first, after_step=lambda x, step, t_next: repaint.inject(x, clean, noise, made, t_next)
            )
            return Loop(velocity, (1 - t) * clean + t * noise, timesteps, options)

        options |= dict(
            omega=stretch(request.omega), coupled=upstream, corrects_last=False, seeds=[r.seed for r in requests]
        )
        if request.solver == "sde" and request.noise_source == "torch":
            options["sde_noise"] = self._pingpong(requests, task)
        if request.task == "audio2audio":
            matched = request.noise_level == "schedule"
            level = timesteps[0] if matched else start_of(request.steps, request.strength)[1]
            noise = (1 - level) * task.clean.to(noise) + level * noise
        return Loop(velocity, noise, timesteps, options)

    def _pingpong(self, requests: list[Request], task: Task) -> Callable[[int], Tensor]:
        """Upstream's noise of the steps: all songs' from the first one's generator, behind its initial noise.

        Behind a source it is drawn into latents that lie in memory as upstream's encoder leaves them, channels last.
        """
        B, T, channels = len(requests), task.frames, WIDTH // ROWS
        generator = torch.Generator(self.device).manual_seed(int64_of(requests[0].seed))
        self.torch_noise(generator, T)

        def draw(step: int) -> Tensor:
            if task.clean is None:
                latents = torch.empty(B, channels, ROWS, T, device=self.device)
            else:
                latents = torch.empty(B, ROWS, T, channels, device=self.device).permute(0, 3, 1, 2)
            return _our_order(latents.normal_(generator=generator))

        return draw


def _our_order(latents: Tensor) -> Tensor:
    """Upstream's [B, 8, 16, T] as [B, T, 128]."""
    return latents.permute(0, 3, 2, 1).flatten(2)


def _second_seeds(requests: list[Request]) -> list[int]:
    return [(r.seed + 1) % 2**64 if r.variation_seed is None else r.variation_seed for r in requests]
