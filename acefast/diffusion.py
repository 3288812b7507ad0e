"""The diffusion loop of a batch: what a model family makes of a task is run, reported and looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from acefast import sampling
from acefast.conditions import Conditions
from acefast.request import Request, RequestError
from acefast.tasks import Task
from acefast.values import shown

Report = Callable[[int, int], None]  # steps done, of how many


@dataclass
class Loop:
    """All that sampling a batch takes but its hooks; a model's ``loop`` makes one for each task."""

    velocity: sampling.Velocity  # guided
    latents: Tensor  # [B, T, D]: where sampling starts, at ``timesteps[options["start"]]``
    timesteps: list[float]
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of ``sampling.sample``
    finish: Callable[[Tensor], Tensor] | None = None  # after the last step


def diffusion(
    model: Any,
    requests: list[Request],
    task: Task,
    noise: Tensor | None,
    timesteps: list[float],
    conditions: Conditions,
    other: Conditions | None,
) -> Callable[[Report], Tensor]:
    """All of the loop but its steps, which the function that is returned takes: [B, T, D] clean latents, float32.

    Args:
        noise, timesteps: what ``model.noise`` and ``model.timesteps`` gave.
        conditions, other: what ``model.conditions`` gave.
    Raises:
        RequestError: from the steps: latents became NaN or infinite, or ``on_step`` returned something else.
    """
    request = requests[0]
    loop = model.loop(requests, task, noise, timesteps, conditions, other)

    def run(report: Report) -> Tensor:
        def on_step(info: sampling.StepInfo) -> Any:
            report(info.step + 1, info.steps)
            answer = None if request.on_step is None else _asked(request.on_step, info, model)
            _ = model.transformer  # back, if a song made by either has sent it away
            return answer

        latents = sampling.sample(loop.velocity, loop.latents, loop.timesteps, on_step=on_step, **loop.options).float()
        if not latents.isfinite().all():
            raise RequestError(_not_finite(request, model.dtype, len(loop.timesteps)))
        return latents if loop.finish is None else loop.finish(latents)

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
