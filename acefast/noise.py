"""Noise of a batch: drawn from each song's own seed, or given."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acefast import sampling
from acefast.ops.philox import int64_of, philox_normal
from acefast.request import Request, RequestError
from acefast.tasks import Task


def drawing(model: Any, seeds: list[int], frames: int, width: int, source: str, first: int = 0) -> Callable[[], Tensor]:
    """A function that draws anew at each call: [B, frames, width] float32, each row from its own seed.

    Args:
        model: whose device it is; with torch's generators also its dtype and its ``torch_noise`` count.
        source: "philox" or "torch": upstream's, one generator per song on the compute device.
        first: Philox stream of the first call; later ones count on.
    """
    if source == "philox":
        streams = itertools.count(first)
        return lambda: philox_normal(seeds, (frames, width), stream=next(streams), device=model.device)
    rows = [torch.Generator(model.device).manual_seed(int64_of(seed)) for seed in seeds]
    return lambda: torch.cat([model.torch_noise(g, frames, width) for g in rows]).float()


def start_noise(requests: list[Request], task: Task, model: Any) -> Tensor:
    """[B, T, D] float32: each song's initial noise, from its own seed or as injected."""
    request, shape = requests[0], (task.frames, task.source.shape[-1])

    def draw(seeds: list[int]) -> Tensor:
        return drawing(model, seeds, *shape, request.noise_source)()

    noise = draw([r.seed for r in requests]) if request.noise is None else given_noise(requests, shape, model)
    if request.variation:
        noise = sampling.mix_noise(noise, draw([r.variation_seed for r in requests]), request.variation)
    return noise


def given_noise(requests: list[Request], shape: tuple[int, int], model: Any) -> Tensor:
    """[B, *shape] float32: the noise that requests bring; raises RequestError where it is of another shape."""
    given = [r.noise for r in requests]
    rows = [n if torch.is_tensor(n) else torch.from_numpy(np.array(n, np.float32)) for n in given]
    rows = [row.reshape(row.shape[-2:]) for row in rows]
    if wrong := [list(row.shape) for row in rows if tuple(row.shape) != shape]:
        raise RequestError(f"noise must be [T, {shape[1]}] with T = {shape[0]} here, got {wrong[0]}")
    return torch.stack(rows).to(model.device, torch.float32)
