"""What a task gives ACE-Step v1 to work on: length, the source's latents, the frames that are made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from acefast.audio import SAMPLE_RATE
from acefast.families import V1_LONGEST
from acefast.models.v1.config import FRAME, MEL_HOP, RATE, ROWS
from acefast.options import REPAINT
from acefast.request import Request
from acefast.tasks import Recording, Task
from acefast.values import RequestError

WIDTH = 8 * ROWS  # numbers of a latent frame


def frames_of(seconds: float) -> int:
    """Latent frames of a song of ``seconds``, rounded down in upstream's own floating point; 10.77 are a second."""
    return int(seconds * RATE / MEL_HOP / (FRAME // MEL_HOP))


MOST_FRAMES = frames_of(V1_LONGEST)  # made at once


def check_source(request: Request, recording: Recording | None) -> None:
    """Refuse a source that is too long for its task, before anything is computed."""
    if recording is None:
        return
    seconds, most, task = recording.seconds, V1_LONGEST, f"task={request.task!r}"
    if request.task != "extend":
        if seconds > most + 0.1:
            raise RequestError(f"source lasts {seconds:.2f} seconds and {most:g} is the most in {task}; cut it")
        return
    (begin, _), (_, end) = recording.regions[0], recording.regions[-1]
    if recording.before and recording.after and seconds > most + 0.1:
        raise RequestError(
            f"source and what is added are {seconds:.2f} seconds, and {most:g} is the most in {task} on both sides; "
            "extend one side after the other"
        )
    if end - begin >= most and seconds > most + 0.1:
        raise RequestError(f"{task} makes less than {most:g} seconds at once, got {end - begin:.2f}; extend in turns")


def build_task(requests: list[Request], recording: Recording | None, *, encode: Callable[[np.ndarray], Tensor]) -> Task:
    """Length, source latents and mask of ``requests``, which may be made together (``acefast.batches``).

    Args:
        recording: what ``acefast.tasks.read_audio`` found of their source, and ``check_source`` let pass.
        encode: waveform [2, N] at 48 kHz -> latents [1, T, 128] float32.
    """
    request = requests[0]
    if recording is None:
        frames = frames_of(request.duration)
        return Task(frames, request.duration, torch.zeros(1, 1, WIDTH).expand(1, frames, -1), torch.ones(frames))
    n = recording.waveform.shape[1]
    clean = encode(recording.waveform[:, recording.before : n - recording.after])
    if request.task == "extend":
        return _extension(recording, clean)
    frames, mask = clean.shape[1], torch.ones(clean.shape[1])
    if request.task in REPAINT:
        mask = _mask(recording, frames)
    return Task(frames, recording.seconds, clean, mask, clean)


def _extension(recording: Recording, source: Tensor) -> Task:
    """The source with zeros in front or behind; of a song over 240 s the far end of the source is put apart.

    Upstream counts the new end without what it adds in front; takes what it puts back from what it still has, not from
    what it cut off; puts it back in front along the wrong axis; and cannot add more than the source's length.
    """
    before, after = recording.before / SAMPLE_RATE, recording.after / SAMPLE_RATE
    frames = source.shape[1]
    left = max(1, frames_of(before)) if before else 0
    right = max(1, frames_of(recording.seconds - before) - frames) if after else 0
    mask = torch.cat([torch.ones(left), _mask(recording, frames), torch.ones(right)])
    clean, total = torch.nn.functional.pad(source, (0, 0, left, right)), left + frames + right
    first, last, apart = 0, total, None
    if total > MOST_FRAMES and not (left and right):
        first, last = (total - MOST_FRAMES, total) if right else (0, MOST_FRAMES)
        apart = (clean[:, :first], clean[:, last:])
    clean, mask = clean[:, first:last], mask[first:last]
    return Task(last - first, recording.seconds, clean, mask, clean, added=(left, right), apart=apart)


def _mask(recording: Recording, frames: int) -> Tensor:
    """[frames]: 1 at the frames of a source that a recording's regions cover.

    The source's end is that of its last frame, which upstream, rounding it down, does not reach where there is padding.
    """
    before = recording.before / SAMPLE_RATE
    end_of_source = recording.seconds - recording.after / SAMPLE_RATE

    def frame(seconds: float) -> int:
        return frames if seconds >= end_of_source else min(frames_of(max(0.0, seconds - before)), frames)

    mask = torch.zeros(frames)
    for start, end in recording.regions:
        first = frame(start)
        least = 0 if recording.before or recording.after else 1  # a repaint makes a frame at least
        mask[first : max(frame(end), first + least)] = 1
    return mask


def extension_noise(task: Task, own: Callable[[int], Tensor], new: Callable[[int], Tensor]) -> Tensor:
    """[B, T, D]: the noise of an extension: one over the source, another one over what is added.

    Args:
        own, new: number of frames -> noise [B, frames, D].
    """
    left, right = task.added
    apart = 0 if task.apart is None else task.apart[0].shape[1]
    rest = 0 if task.apart is None else task.apart[1].shape[1]
    frames = task.frames + apart + rest - left - right
    added = new(max(frames, left + right))
    noise = torch.cat([added[:, :left], own(frames), added[:, added.shape[1] - right :]], 1)
    return noise[:, apart : apart + task.frames]
