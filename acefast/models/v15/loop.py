"""How ACE-Step 1.5 samples a task: guidance, repaint, a cover's conditions, put together for ``acefast.sampling``."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from acefast import repaint, sampling
from acefast.conditions import Conditions
from acefast.diffusion import Loop
from acefast.guidance import Guidance, blended, guided
from acefast.noise import start_noise
from acefast.request import Request
from acefast.tasks import Task


class Sampling:
    """The part of ``Model`` that sampling starts from."""

    def torch_noise(self, generator: torch.Generator, frames: int, width: int) -> Tensor:
        """[1, frames, width] in the model's dtype: as upstream draws a song's noise."""
        return torch.randn((1, frames, width), generator=generator, device=self.device, dtype=self.dtype)

    def noise(self, requests: list[Request], task: Task) -> Tensor:
        """[B, T, D] float32: where sampling starts."""
        return start_noise(requests, task, self)

    def timesteps(self, request: Request) -> list[float]:
        """The schedule; in upstream precision rounded to the model's dtype, as upstream keeps it."""
        upstream = request.precision == "upstream"
        # The official base and sft models also compute it in that dtype; turbo's are exact decimals.
        rough = upstream and request.semantics == "official" and not self.traits.is_turbo
        times = request.timesteps or sampling.schedule(
            request.steps, request.sigma_shift, dtype=self.dtype if rough else torch.float64
        )
        return torch.tensor(times, dtype=self.dtype).double().tolist() if upstream else list(times)

    def loop(
        self,
        requests: list[Request],
        task: Task,
        noise: Tensor,
        timesteps: list[float],
        conditions: Conditions,
        switched: Conditions | None,
    ) -> Loop:
        """The loop of a batch; ``switched``: the conditions that a cover's later steps see."""
        request = requests[0]
        official = request.semantics == "official"
        upstream = request.precision == "upstream"
        state_dtype = self.dtype if upstream else torch.float32
        latents = noise
        if request.cover_noise:
            latents, timesteps = sampling.noised_start(timesteps, noise, task.clean.to(noise), request.cover_noise)
        steps = len(timesteps)
        switch = steps if switched is None else int(steps * request.strength)

        def predict(x: Tensor, t: float, step: int, both: bool) -> Tensor | tuple[Tensor, Tensor]:
            own = switched if official and step >= switch else conditions
            return self.velocity(x, t, own, unconditional=both)

        guidance = Guidance(
            request.guidance_scale,
            request.guidance,
            request.guidance_interval or (0.0, 1.0),
            request.semantics,
            request.guidance_momentum,
            request.guidance_norm,
            request.guidance_eta,
            state_dtype=state_dtype,
        )
        velocity = guided(predict, guidance)
        blends = switched is not None and not official
        if blends:
            velocity = blended(velocity, lambda x, t: self.velocity(x, t, switched), request.strength)

        def correct(x: Tensor, denoised: Tensor, t: float, t_next: float) -> Tensor:
            return sampling.wavelet_correction(x, denoised, t, mode=request.dcw)

        plan, inject, held, finish = repaint.plan_of(request, task), None, None, None
        if plan is not None:
            clean, made = task.clean.to(noise).expand_as(noise), task.made.to(noise.device)
            held = (made, clean, noise, plan.injected_steps(steps))
            finish = partial(repaint.blend_boundary, source=clean, mask=made, frames=plan.boundary_frames)

            def inject(x: Tensor, step: int, t_next: float) -> Tensor:
                return repaint.inject(x, clean, noise, made, t_next) if step < held[-1] else x

        seeds, advance = [r.seed for r in requests], None
        if request.dcw == "off" and not upstream and not blends:
            advance = self.advance(
                *(conditions, timesteps, len(noise), guidance, request.solver, seeds),
                **dict(held=held, later=switched, switch=switch),
            )
        options = dict(
            solver=request.solver,
            seeds=seeds,
            correct=None if request.dcw == "off" else correct,
            after_step=inject if advance is None else None,
            state_dtype=state_dtype,
            advance=advance,
        )
        return Loop(velocity, latents, timesteps, options, finish)
