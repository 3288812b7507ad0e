"""Signals made for measures to read: sines, noise, and loops of synthetic drums."""

from __future__ import annotations

import math

import numpy as np

RATE = 48_000


def sine(hz: float, seconds: float = 1.0, amplitude: float = 1.0, phase: float = 0.0, rate: int = RATE) -> np.ndarray:
    """[N], float64."""
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate + phase)


def stereo(channel: np.ndarray) -> np.ndarray:
    return np.stack([channel, channel]).astype(np.float32)


def noise(seconds: float = 1.0, amplitude: float = 0.1, seed: int = 0) -> np.ndarray:
    g = np.random.default_rng(seed)
    return (amplitude * g.standard_normal((2, round(seconds * RATE)))).astype(np.float32)


def _drums() -> dict[str, np.ndarray]:
    g, t = np.random.default_rng(1), np.arange(12_000) / RATE
    burst = g.standard_normal(len(t) + 1)
    return {
        "kick": np.sin(2 * np.pi * (50 * t + 3 * (1 - np.exp(-40 * t)))) * np.exp(-14 * t),
        "snare": (0.5 * burst[1:] + 0.5 * np.sin(2 * np.pi * 190 * t)) * np.exp(-22 * t),
        "hat": 0.25 * np.diff(burst) * np.exp(-60 * t),
    }


DRUMS = _drums()
EIGHTHS, SIXTEENTHS = tuple(range(0, 16, 2)), tuple(range(16))
# Sixteenths of a bar on which each drum falls.
PATTERNS = {
    "boom bap": dict(kick=(0, 3, 8, 10), snare=(4, 12), hat=(*EIGHTHS, 15)),
    "off-beat hats": dict(kick=(0, 4, 8, 12), snare=(4, 12), hat=(2, 6, 10, 14)),
    "trap": dict(kick=(0, 7, 10), snare=(8,), hat=(*SIXTEENTHS, 13.5, 14.5, 15.5)),
    "drill": dict(kick=(0, 10), snare=(6, 14), hat=(0, 3, 6, 8, 11, 14)),
    "jersey club": dict(kick=(0, 4, 8, 11, 14), snare=(3, 6, 12), hat=EIGHTHS),
}


def loop(pattern: dict, bpm: float, seconds: float = 12, swing: float = 0.5, human: float = 0.0) -> np.ndarray:
    """float32 [2, N]; ``swing`` is the off sixteenth's place in its eighth, ``human`` the timing's spread in s."""
    g, sixteenth = np.random.default_rng(0), 15 / bpm
    out = np.zeros(round((seconds + 1) * RATE))
    for bar in range(math.ceil(seconds / (16 * sixteenth))):
        for drum, steps in pattern.items():
            for step in steps:
                place = step - 1 + 2 * swing if step % 2 == 1 else step
                start = round(RATE * max(0, (16 * bar + place) * sixteenth + human * g.standard_normal()))
                if start < seconds * RATE:
                    out[start : start + len(DRUMS[drum])] += DRUMS[drum]
    return stereo(0.4 * out[: round(seconds * RATE)])


# Against a reference
