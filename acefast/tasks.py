"""What a request brings along and what it becomes for the model: the seam between requests and both model families.

``read_audio`` looks at the request's recordings before any weight is touched. A model family turns requests into a
``Task``; the pipeline samples, splices and finishes by what stands there, and knows nothing of frames otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from acefast.audio import SAMPLE_RATE, load_audio
from acefast.request import Request
from acefast.stages import memory_told
from acefast.waveform import is_silent


@dataclass
class Recording:
    """The source audio of a task, padded for an extension, and the regions of it that are made anew."""

    waveform: np.ndarray  # [2, N] float32 at 48 kHz
    regions: tuple[tuple[float, float], ...]  # seconds [start, end), in order and apart
    before: int = 0  # samples of silence that were put in front
    after: int = 0  # and behind

    @property
    def seconds(self) -> float:
        """Length."""
        return self.waveform.shape[1] / SAMPLE_RATE

    @property
    def sample_regions(self) -> list[tuple[int, int]]:
        """The regions in samples, each end at the nearest one."""
        return [(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)) for start, end in self.regions]

    def mask(self, frames: int, hop: int, semantics: str = "official") -> Tensor:
        """[frames] float32: 1 where latent frames, of ``hop`` samples each, are made anew, 0 where they are kept.

        A time is rounded down to a frame in each upstream's own floating point, which for 1.16 s and others is one
        frame before the exact one; the recording's end is exact.
        """

        def frame(seconds: float) -> int:
            if seconds >= self.seconds:
                return self.waveform.shape[1] // hop
            return int(seconds * (SAMPLE_RATE / hop) if semantics == "diffusers" else seconds * SAMPLE_RATE // hop)

        mask = torch.zeros(frames)
        for start, end in self.regions:
            first = min(frame(start), frames - 1)
            mask[first : max(frame(end), first + 1)] = 1.0
        return mask


@dataclass
class Task:
    """A batch of songs in latent frames. B is the number of songs, or 1 where all of them share it."""

    frames: int
    seconds: float  # what the prompt says the duration is, see ``told``
    source: Tensor  # [B, T, D] float32: what the model is shown of the song
    mask: Tensor  # [T] float32: what it is told of each frame beside that; of v1: 1 at the frames that are made
    clean: Tensor | None = None  # [B, T, D]: the encoded source, for tasks with one
    recording: Recording | None = None  # the source itself, where a part of its waveform is kept
    made: Tensor | None = None  # [T]: where a part is kept, 1 at the frames that are made anew
    codes: list[list[int]] | None = None  # audio codes of each row of ``source``, given or taken from the source
    lengths: list[int] | None = None  # frames of each song, where their durations differ; ``frames`` is the most
    added: tuple[int, int] = (0, 0)  # frames put in front of and behind the source, for v1
    apart: tuple[Tensor, Tensor] | None = None  # [1, n, D] each: kept of the source, before and behind what is sampled

    def told(self, request: Request) -> float:
        """What the prompt of one of the songs says its duration is, in seconds."""
        return self.seconds if self.lengths is None else request.duration

    def whole(self, latents: Tensor) -> tuple[Task, Tensor]:
        """Task and latents [B, T, D] of the whole song: with what was kept ``apart`` while it was sampled."""
        if self.apart is None:
            return self, latents
        before, after = (part.to(latents).expand(len(latents), -1, -1) for part in self.apart)
        latents = torch.cat([before, latents, after], 1)
        return replace(self, frames=latents.shape[1], apart=None), latents

    def only(self, i: int) -> Task:
        """The task of song ``i`` as if it had been made alone, for what happens after sampling."""
        codes = self.codes and [self.codes[min(i, len(self.codes) - 1)]]
        lengths = self.lengths and [self.lengths[i]]
        return replace(self, frames=lengths[0] if lengths else self.frames, codes=codes, lengths=lengths)


@memory_told("reading audio", "give a shorter recording")
def read_audio(request: Request) -> tuple[Recording | None, np.ndarray | None]:
    """The request's source with its window, and its reference audio, [2, N]; None for one that it has not.

    A silent reference is none.
    Raises:
        RequestError: audio cannot be used, or the window does not fit it.
    """
    reference = None if request.reference is None else load_audio(request.reference, "reference")
    source = None if request.source is None else _source(request)
    return source, None if reference is None or is_silent(reference) else reference


def _source(request: Request) -> Recording:
    audio = load_audio(request.source, "source")
    window = request.check_window(audio.shape[1] / SAMPLE_RATE)
    before, after = round(window.before * SAMPLE_RATE), round(window.after * SAMPLE_RATE)
    return Recording(np.pad(audio, ((0, 0), (before, after))), window.regions, before, after)
