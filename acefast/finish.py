"""From a decoded waveform to a song: its level, what a task keeps of its source, fades; at once or in pieces."""

from __future__ import annotations

import numpy as np

from acefast.limiter import Limiter
from acefast.repaint import plan_of
from acefast.request import Request, options
from acefast.tasks import Task
from acefast.waveform import check_finite, fade, normalise, peak, splice


def level_of(request: Request, task: Task) -> float | None:
    """The peak, in dBFS, that a song is decoded to; None where it leaves at its own or kept parts are put back."""
    plan = plan_of(request, task)
    return None if plan is not None and plan.splice else request.normalize


def finish(wave: np.ndarray, request: Request, task: Task) -> np.ndarray:
    """The waveform [2, N] as it leaves, of one decoded to ``level_of``, whose memory it takes: kept parts put back,
    ends faded.

    Where the source's own samples are put back the level stays theirs, unless ``normalize`` asks for another than the
    default; a peak above full scale is divided out of what was made before, as upstream divides it out of any song,
    and stays with ``normalize=None``.
    """
    plan, level = plan_of(request, task), request.normalize
    check_finite("audio", wave, "; the decoder overflowed, try dtype='float32' or another seed")
    if plan is not None and plan.splice:
        made, wave = wave if level is None else wave / np.float32(max(peak(wave), 1.0)), task.recording.waveform
        for start, end in task.recording.sample_regions:
            wave = splice(made, wave, start, end, plan.wave_fade_seconds)
        wave = wave[:, : made.shape[1]]
        level = None if level == options()["normalize"].default else level
        wave = normalise(wave, level)
    return fade(wave, request.fade_in, request.fade_out, in_place=True)


class Finish:
    """What ``finish`` does to a song, done piece by piece: level, the source put back, fades.

    With ``normalize=None`` and no gain these are the very samples that it makes. Else the limiter, whose ceiling is
    ``normalize``, stands for its level; it acts on what is made, and the source's own samples stay as they are.
    """

    def __init__(self, request: Request, total: float, task: Task | None = None, gain: float = 0.0) -> None:
        """``total``: samples of the song, infinity for one without an end; ``gain``: dB."""
        self.request, self.total, self.at = request, total, 0
        self.factor = np.float32(10 ** (gain / 20))
        self.limiter = None if request.normalize is None else Limiter(10 ** (request.normalize / 20))
        self.recording = self.fade_seconds = None
        plan = None if task is None else plan_of(request, task)
        if plan is not None and plan.splice:
            self.recording, self.fade_seconds = task.recording, plan.wave_fade_seconds

    def __call__(self, wave: np.ndarray, final: bool) -> np.ndarray:
        """The next decoded [2, n] samples; returns [2, m] finished ones."""
        check_finite("audio", wave, "; the decoder overflowed, try dtype='float32' or another seed")
        if self.factor != 1:
            wave = wave * self.factor
        if self.limiter is not None:
            wave = self.limiter(wave, final)
        at, n = self.at, wave.shape[1]
        if self.recording is not None:
            made, wave = wave, self.recording.waveform[:, at : at + n]
            for start, end in self.recording.sample_regions:
                wave = splice(made, wave, start, end, self.fade_seconds, at=at, total=self.total)
        self.at += n
        return fade(wave, self.request.fade_in, self.request.fade_out, at=at, total=self.total)
