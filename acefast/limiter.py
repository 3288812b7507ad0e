"""A level for audio whose end is not known yet: a running limiter, and all that a stream's audio goes through.

A song's peak is known only when all of it is, so a stream is not normalised. A fixed gain is applied instead and
whatever then passes the ceiling is turned down, and only that. Audio is float32 numpy, [2, N], at 48 kHz.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from acefast.repaint import plan_of
from acefast.request import Request
from acefast.tasks import Task
from acefast.waveform import SAMPLE_RATE, check_finite, fade, splice

BLOCK = 48  # samples, 1 ms, that have one peak
AHEAD = 5  # blocks: gain is down before the peak comes
RELEASE = 20.0  # dB a second at which it comes back


class Limiter:
    """Keeps every sample within a ceiling by turning both channels down around the loud ones.

    Needed gain   r[k] = min(1, ceiling / peak of block k), blocks of 1 ms counted from the first sample
    Ahead         m[k] = min(r[k - 1], ..., r[k + 4])
    Release       e[k] = min(m[k], e[k - 1] * 10 ** (20 dB/s * 1 ms / 20 dB))
    Attack        the gain at the start of block k is mean(e[k - 4], ..., e[k]), a straight line to the next one's

    Gain falls over 5 ms before a peak and rises by 20 dB a second behind it; where nothing is too loud it is exactly 1
    and samples keep their bits. Five milliseconds and what is left of a block are held back until more comes. The
    result does not depend on how the audio is cut into pieces.
    """

    def __init__(self, ceiling: float) -> None:
        self.ceiling = np.float32(ceiling)
        self._grow = 10 ** (RELEASE * BLOCK / SAMPLE_RATE / 20)
        self._held = np.zeros((2, 0), np.float32)  # samples that are not out yet, from a block's start on
        self._measured = 0  # blocks of those whose peak is in _needed
        self._needed: deque[float] = deque([1.0], AHEAD + 1)
        self._eased: deque[float] = deque([1.0] * AHEAD, AHEAD)
        self._gains: list[float] = []  # at the starts of the held blocks, as far as known

    def __call__(self, audio: np.ndarray, final: bool = False) -> np.ndarray:
        """Take the next [2, n] samples; return [2, m] that are done, with ``final`` all that is held."""
        held = np.concatenate([self._held, audio.astype(np.float32)], 1)
        n = held.shape[1]
        if final:
            held = np.pad(held, ((0, 0), (0, -n % BLOCK)))
        blocks = held.shape[1] // BLOCK
        peaks = np.abs(held[:, self._measured * BLOCK : blocks * BLOCK]).reshape(2, -1, BLOCK).max((0, 2), initial=0)
        needed = np.minimum(1, float(self.ceiling) / np.maximum(peaks.astype(np.float64), float(self.ceiling)))
        for r in [*needed.tolist(), *[1.0] * (AHEAD * final)]:
            self._needed.append(r)
            if len(self._needed) == AHEAD + 1:
                self._eased.append(min(1.0, min(self._needed), self._eased[-1] * self._grow))
                self._gains.append(sum(self._eased) / AHEAD)
        done = min(len(self._gains) - 1, blocks) if self._gains else 0
        edges = np.array(self._gains[: done + 1])
        steps = np.arange(BLOCK) / BLOCK
        gain = (edges[:-1, None] + np.diff(edges)[:, None] * steps).astype(np.float32).ravel()
        out = (held[:, : done * BLOCK] * gain).clip(-self.ceiling, self.ceiling)  # rounding may end a hair above
        self._held, self._gains, self._measured = held[:, done * BLOCK :].copy(), self._gains[done:], blocks - done
        return out[:, :n]


class Finish:
    """What ``acefast.pipeline.finish`` does to a song, done piece by piece: level, the source put back, fades.

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
