"""A level for audio whose end is not known yet: a running limiter.

A song's peak is known only when all of it is, so a stream is not normalised. A fixed gain is applied instead and
whatever then passes the ceiling is turned down, and only that. Audio is float32 numpy, [2, N], at 48 kHz.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from acefast.waveform import SAMPLE_RATE

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
