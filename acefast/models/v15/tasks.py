"""What a task shows ACE-Step 1.5 beside the noise: source latents, mask and length.

Source: the context table of ACE-Step 1.5's handler (text2music, cover, repaint, extend, lego, extract, complete).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from acefast.ops.philox import philox_normal
from acefast.request import Request
from acefast.tasks import Recording, Task

RATE = 48_000
HOP = 1920  # samples per latent frame
MIN_FRAMES = 128  # the official code never generates less than 5.12 s
# Philox streams of the posterior's noise, beyond those of the sampler: of the source and of the reference audio.
POSTERIOR_STREAM, REFERENCE_STREAM = 1 << 32, (1 << 32) + 1


def frames_of(seconds: float, semantics: str) -> int:
    """Latent frames of a song of ``seconds``: the official rule, or diffusers'."""
    if semantics == "diffusers":
        return math.ceil(seconds * (RATE / HOP))
    return max(MIN_FRAMES, int(RATE * round(seconds, 1)) // HOP)


def build_task(
    requests: list[Request],
    recording: Recording | None,
    *,
    silence: Callable[[int], Tensor],
    encode: Callable[[np.ndarray], tuple[Tensor, Tensor]],
    to_codes: Callable[[Tensor], list[int]],
    from_codes: Callable[[list[int]], Tensor],
) -> Task:
    """Source latents, mask and length of ``requests``, which may be made together (``acefast.batches``).

    Args:
        recording: what ``acefast.tasks.read_audio`` found of their source.
        silence: frames -> [1, T, D] float32, the latents of silence.
        encode: waveform [2, N] -> posterior mean and standard deviation, each [1, T, D].
        to_codes, from_codes: latents [1, T, D] to 5 Hz codes, and codes to latent hints [1, 5 * n, D].
    """
    request = requests[0]
    if request.codes is not None:
        return _from_codes(request, silence, from_codes)
    if recording is None:
        lengths = [frames_of(r.duration, r.semantics) for r in requests]
        frames, differ = max(lengths), len({r.duration for r in requests}) > 1
        task = Task(frames, request.duration, silence(frames), _whole(request, frames))
        return replace(task, lengths=lengths) if differ else task
    clean = posterior(requests, encode(recording.waveform), POSTERIOR_STREAM)
    if request.semantics == "official":
        clean = _filled(clean, MIN_FRAMES, silence)
    frames, seconds = clean.shape[1], recording.seconds
    if request.task == "cover":
        codes = [to_codes(row[None]) for row in clean]
        hints = torch.cat([from_codes(c)[:, :frames] for c in codes])
        return Task(frames, seconds, hints, _whole(request, frames), clean, codes=codes)
    if request.task in ("repaint", "extend"):
        mask = recording.mask(frames, HOP, request.semantics)
        source = torch.where(mask[None, :, None].to(clean.device) > 0, silence(frames).to(clean.device), clean)
        return Task(frames, seconds, source, _whole(request, frames, mask), clean, recording, mask)
    mask = recording.mask(frames, HOP, request.semantics) if request.task == "lego" else None
    return Task(frames, seconds, clean, _whole(request, frames, mask), clean)


def continuation(frames: int, kept: Tensor | None, silence: Tensor) -> Task:
    """What goes on from the latents ``kept`` [1, n, D], as an extension of them would: a song of ``frames`` frames.

    Args:
        silence: [1, frames, D], where it is made.
    """
    if kept is None:
        return Task(frames, frames * HOP / RATE, silence, torch.ones(frames))
    made = (torch.arange(frames) >= kept.shape[1]).float()
    source = torch.cat([kept, silence[:, kept.shape[1] :]], 1)
    return Task(frames, frames * HOP / RATE, source, made, source, made=made)


def _from_codes(request: Request, silence: Callable[[int], Tensor], from_codes: Callable[[list[int]], Tensor]) -> Task:
    source = from_codes(request.codes)
    if request.semantics == "official":
        source = _filled(source, frames_of(request.duration, request.semantics), silence)
    frames = source.shape[1]
    seconds = frames * HOP / RATE if request.duration is None else request.duration
    return Task(frames, seconds, source, _whole(request, frames), codes=[list(request.codes)])


def _filled(latents: Tensor, frames: int, silence: Callable[[int], Tensor]) -> Tensor:
    """[B, T, D] latents with silence behind them up to ``frames``: from the silence latent's beginning, as upstream."""
    missing = frames - latents.shape[1]
    if missing <= 0:
        return latents
    return torch.cat([latents, silence(missing).to(latents).expand(len(latents), -1, -1)], 1)


def _whole(request: Request, frames: int, mask: Tensor | None = None) -> Tensor:
    """The mask as the request wants it told: explicit, or one value everywhere."""
    value = {"explicit": None, "ones": 1.0, "twos": 2.0}[request.chunk_mask]
    if value is not None:
        return torch.full((frames,), value)
    return torch.ones(frames) if mask is None else mask


def posterior(requests: list[Request], encoded: tuple[Tensor, Tensor], stream: int) -> Tensor:
    """[1, T, D] the mean of encoded audio, or [B, T, D] samples of its posterior, each from its own song's seed."""
    mean, std = encoded
    if requests[0].posterior == "mean":
        return mean
    return mean + std * philox_normal([r.seed for r in requests], mean.shape[1:], stream=stream, device=mean.device)
