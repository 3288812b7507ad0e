"""Where sampling starts: the noise of each song, and the timesteps it is taken away at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from acefast import sampling
from acefast.ops.philox import int64_of, philox_normal
from acefast.request import Request, RequestError
from acefast.tasks import Task


def start_noise(requests: list[Request], task: Task, model: Any) -> Tensor:
    """[B, T, D] float32: each song's initial noise, from its own seed or as injected."""
    request, shape = requests[0], (task.frames, task.source.shape[-1])

    def draw(seeds: list[int]) -> Tensor:
        if request.noise_source == "philox":
            return philox_normal(seeds, shape, device=model.device)
        # Upstream: one generator per song on the compute device, drawn in the model's dtype.
        rows = [torch.Generator(model.device).manual_seed(int64_of(seed)) for seed in seeds]
        rows = [torch.randn((1, *shape), generator=g, device=model.device, dtype=model.dtype) for g in rows]
        return torch.cat(rows).float()

    if request.noise is None:
        noise = draw([r.seed for r in requests])
    else:
        given = [r.noise for r in requests]
        rows = [n if torch.is_tensor(n) else torch.from_numpy(np.array(n, np.float32)) for n in given]
        rows = [row.reshape(row.shape[-2:]) for row in rows]
        if wrong := [list(row.shape) for row in rows if tuple(row.shape) != shape]:
            raise RequestError(f"noise must be [T, {shape[1]}] with T = {shape[0]} here, got {wrong[0]}")
        noise = torch.stack(rows).to(model.device, torch.float32)
    if request.variation:
        noise = sampling.mix_noise(noise, draw([r.variation_seed for r in requests]), request.variation)
    return noise


def start_times(request: Request, model: Any) -> list[float]:
    """The schedule; in upstream precision rounded to the model's dtype, as upstream keeps it."""
    upstream = request.precision == "upstream"
    # The official base and sft models also compute it in that dtype; turbo's are exact decimals.
    rough = upstream and request.semantics == "official" and not model.traits.is_turbo
    times = request.timesteps or sampling.schedule(
        request.steps, request.sigma_shift, dtype=model.dtype if rough else torch.float64
    )
    return torch.tensor(times, dtype=model.dtype).double().tolist() if upstream else list(times)
