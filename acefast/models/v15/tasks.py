"""What a task shows the model beside the noise: source latents, mask, length, and what of the source survives.

Source: the context table of ACE-Step 1.5's handler (text2music, cover, repaint, extend, lego, extract, complete).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from acefast.audio import load_audio
from acefast.ops.philox import philox_normal
from acefast.request import Request
from acefast.waveform import is_silent

RATE = 48_000
HOP = 1920  # samples per latent frame
MIN_FRAMES = 128  # the official code never generates less than 5.12 s
POSTERIOR_STREAM = 1 << 32  # Philox stream of the posterior's noise, beyond those of the sampler


@dataclass
class Source:
    """The source audio of a task, padded for an extension, and the regions of it that are made anew."""

    waveform: np.ndarray  # [2, N] float32 at 48 kHz
    regions: tuple[tuple[int, int], ...]  # samples [start, end), in order and apart

    @property
    def frames(self) -> int:
        """Whole latent frames."""
        return self.waveform.shape[1] // HOP

    def mask(self) -> Tensor:
        """[T] float32: 1 where latent frames are generated, 0 where they are kept."""
        mask, T = torch.zeros(self.frames), self.frames
        for start, end in self.regions:
            first = min(start // HOP, T - 1)
            mask[first : max(end // HOP, first + 1)] = 1.0
        return mask


@dataclass
class Task:
    """A batch of songs in latent frames. B is the number of songs, or 1 where all of them share it."""

    frames: int
    seconds: float  # what the prompt says the duration is
    source: Tensor  # [B, T, D] float32: the source half of the context
    mask: Tensor  # [T] float32: the mask half
    clean: Tensor | None = None  # [B, T, D]: the encoded source, for tasks with one
    audio: Source | None = None  # the source itself, where a part of it is kept
    codes: list[list[int]] | None = None  # 5 Hz codes of each row of ``source``, given or taken from the audio

    def context(self, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """[batch, T, 2 * D]: source latents and mask side by side."""
        source = self.source.expand(batch, -1, -1)
        mask = self.mask.to(source.device)[None, :, None].expand(source.shape)
        return torch.cat([source, mask], -1).to(device, dtype)


def read_source(request: Request) -> Source | None:
    """The request's source audio and window, checked; None for a task without one.

    Raises:
        RequestError: the audio cannot be used, or the window does not fit it.
    """
    if request.source is None:
        return None
    audio = load_audio(request.source, "source")
    window = request.check_window(audio.shape[1] / RATE)
    before, after = round(window.before * RATE), round(window.after * RATE)
    regions = tuple((round(start * RATE), round(end * RATE)) for start, end in window.regions)
    return Source(np.pad(audio, ((0, 0), (before, after))), regions)


def read_audio(request: Request) -> tuple[Source | None, np.ndarray | None]:
    """The request's source (see ``read_source``) and its reference audio, [2, N]; None for one that it has not.

    A silent reference is none. Raises RequestError where audio cannot be used.
    """
    reference = None if request.reference is None else load_audio(request.reference, "reference")
    return read_source(request), None if reference is None or is_silent(reference) else reference


def frames_of(seconds: float, semantics: str) -> int:
    """Latent frames of a song of ``seconds``: the official rule, or diffusers'."""
    if semantics == "diffusers":
        return math.ceil(seconds * (RATE / HOP))
    return max(MIN_FRAMES, int(RATE * round(seconds, 1)) // HOP)


def build_task(
    requests: list[Request],
    audio: Source | None,
    *,
    silence: Callable[[int], Tensor],
    encode: Callable[[np.ndarray], tuple[Tensor, Tensor]],
    to_codes: Callable[[Tensor], list[int]],
    from_codes: Callable[[list[int]], Tensor],
) -> Task:
    """Source latents, mask and length of ``requests``, which differ only in prompt, lyrics and seed.

    Args:
        audio: what ``read_source`` returned for them.
        silence: frames -> [1, T, D] float32, the latents of silence.
        encode: waveform [2, N] -> posterior mean and standard deviation, each [1, T, D].
        to_codes, from_codes: latents [1, T, D] to 5 Hz codes, and codes to latent hints [1, 5 * n, D].
    """
    request = requests[0]
    if request.codes is not None:
        return _from_codes(request, silence, from_codes)
    if audio is None:
        frames = frames_of(request.duration, request.semantics)
        return Task(frames, request.duration, silence(frames), _whole(request, frames))
    clean = _encoded(requests, audio, encode)
    frames, seconds = audio.frames, audio.waveform.shape[1] / RATE
    if request.task == "cover":
        codes = [to_codes(row[None]) for row in clean]
        hints = torch.cat([from_codes(c)[:, :frames] for c in codes])
        return Task(frames, seconds, hints, _whole(request, frames), clean, codes=codes)
    if request.task in ("repaint", "extend"):
        mask = audio.mask()
        source = torch.where(mask[None, :, None].to(clean.device) > 0, silence(frames).to(clean.device), clean)
        return Task(frames, seconds, source, _whole(request, frames, mask), clean, audio)
    mask = audio.mask() if request.task == "lego" else None
    return Task(frames, seconds, clean, _whole(request, frames, mask), clean)


def _from_codes(request: Request, silence: Callable[[int], Tensor], from_codes: Callable[[list[int]], Tensor]) -> Task:
    hints = from_codes(request.codes)
    n = hints.shape[1]
    wanted = n if request.duration is None else frames_of(request.duration, request.semantics)
    frames = max(n, wanted, 0 if request.semantics == "diffusers" else MIN_FRAMES)
    # What lies behind the last code is silence taken from the silence latent's beginning, as upstream takes it.
    source = torch.cat([hints, silence(frames - n).to(hints)], 1) if frames > n else hints
    return Task(frames, frames * HOP / RATE, source, _whole(request, frames), codes=[list(request.codes)])


def _whole(request: Request, frames: int, mask: Tensor | None = None) -> Tensor:
    """The mask as the request wants it told: explicit, or one value everywhere."""
    value = {"explicit": None, "ones": 1.0, "twos": 2.0}[request.chunk_mask]
    if value is not None:
        return torch.full((frames,), value)
    return torch.ones(frames) if mask is None else mask


def _encoded(requests: list[Request], audio: Source, encode: Callable[[np.ndarray], tuple[Tensor, Tensor]]) -> Tensor:
    """[1, T, D] posterior mean, or [B, T, D] samples of the posterior, each from its own song's seed."""
    mean, std = encode(audio.waveform)
    if requests[0].posterior == "mean":
        return mean
    shape, seeds = tuple(mean.shape[1:]), [r.seed for r in requests]
    return mean + std * philox_normal(seeds, shape, stream=POSTERIOR_STREAM, device=mean.device)
