"""The diffusion loop of a batch: guidance, repaint, a cover's conditions and hooks, put together for ``sampling``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from acefast import repaint, sampling
from acefast.conditions import Conditions
from acefast.guidance import Guidance, blended, guided
from acefast.request import Request, RequestError
from acefast.tasks import Task
from acefast.values import shown

Report = Callable[[int, int], None]  # steps done, of how many


def diffusion(
    model: Any,
    requests: list[Request],
    task: Task,
    noise: Tensor,
    timesteps: list[float],
    conditions: Conditions,
    switched: Conditions | None,
) -> Callable[[Report], Tensor]:
    """All of the loop but its steps, which the function that is returned takes: [B, T, D] clean latents, float32.

    Args:
        noise: initial noise [B, T, D]; timesteps: the schedule.
        conditions, switched: what ``model.conditions`` gave.
    Raises:
        RequestError: from the steps: latents became NaN or infinite, or ``on_step`` returned something else.
    """
    request = requests[0]
    official = request.semantics == "official"
    upstream = request.precision == "upstream"
    state_dtype = model.dtype if upstream else torch.float32
    latents = noise
    if request.cover_noise:
        latents, timesteps = sampling.noised_start(timesteps, noise, task.clean.to(noise), request.cover_noise)
    steps = len(timesteps)
    switch = steps if switched is None else int(steps * request.strength)

    def predict(x: Tensor, t: float, step: int, both: bool) -> Tensor | tuple[Tensor, Tensor]:
        own = switched if official and step >= switch else conditions
        return model.velocity(x, t, own, unconditional=both)

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
        velocity = blended(velocity, lambda x, t: model.velocity(x, t, switched), request.strength)

    def correct(x: Tensor, denoised: Tensor, t: float, t_next: float) -> Tensor:
        return sampling.wavelet_correction(x, denoised, t, mode=request.dcw)

    plan, inject, held = repaint.plan_of(request, task), None, None
    if plan is not None:
        clean, made = task.clean.to(noise).expand_as(noise), task.made.to(noise.device)
        held = (made, clean, noise, plan.injected_steps(steps))

        def inject(x: Tensor, step: int, t_next: float) -> Tensor:
            return repaint.inject(x, clean, noise, made, t_next) if step < held[-1] else x

    seeds, advance = [r.seed for r in requests], None
    if request.dcw == "off" and not upstream and not blends:
        advance = model.advance(
            *(conditions, timesteps, len(noise), guidance, request.solver, seeds),
            **dict(held=held, later=switched, switch=switch),
        )

    def run(report: Report) -> Tensor:
        def on_step(info: sampling.StepInfo) -> Any:
            report(info.step + 1, info.steps)
            answer = None if request.on_step is None else _asked(request.on_step, info, model)
            _ = model.transformer  # back, if a song made by either has sent it away
            return answer

        made_latents = sampling.sample(
            velocity,
            latents,
            timesteps,
            solver=request.solver,
            seeds=seeds,
            correct=None if request.dcw == "off" else correct,
            after_step=inject if advance is None else None,
            on_step=on_step,
            state_dtype=state_dtype,
            advance=advance,
        ).float()
        if not made_latents.isfinite().all():
            raise RequestError(_not_finite(request, model.dtype, steps))
        if plan is None:
            return made_latents
        return repaint.blend_boundary(made_latents, clean, made, plan.boundary_frames)

    return run


def _asked(hook: Callable[[sampling.StepInfo], Any], info: sampling.StepInfo, model: Any) -> Any:
    """What a request's ``on_step`` answers, to latents of its own."""
    with model.graphs.apart(), torch.inference_mode(False):  # it may write into its tensor, take gradients, make a song
        info.latents = info.latents.clone()
        answer = hook(info)
    replaces = torch.is_tensor(answer) and answer.shape == info.latents.shape
    if not (answer is None or answer is False or replaces):
        needs = f"None, False or latents {list(info.latents.shape)}"
        raise RequestError(f"on_step must return {needs}, got {shown(answer)}")
    return answer


def _not_finite(request: Request, dtype: torch.dtype, steps: int) -> str:
    narrow = "" if dtype == torch.float32 else f" in {str(dtype).removeprefix('torch.')}"
    ways = ["dtype='float32'"] if narrow else []
    ways += ["less guidance"] if request.guidance_scale > 1 else []
    ways += ["another on_step"] if request.on_step is not None else []
    return (
        f"latents became NaN or infinite{narrow} within {steps} step{'s' * (steps != 1)}; "
        f"try {' or '.join([*ways, 'another seed'])}; if every song does, download the checkpoint again"
    )
