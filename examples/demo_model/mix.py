"""The desk: levels, pumping, tape, and the master in one pass through the frequency domain."""

from __future__ import annotations

import numpy as np
from synth import SR, clock, fast_length, generator, loudness, place, response, room, samples

BUSES = ("kick", "drums", "bass", "keys", "lead", "vocals", "crackle")  # mono [N] or stereo [2, N]
LUFS = -16.0
CEILING = 10 ** (-1.05 / 20)  # just below -1 dBFS
KNEE = 0.6  # full scale; softly limited above
LONGEST = 1.2  # seconds of room
FADE = 0.012  # seconds at the end


def set_level(bus: np.ndarray, db: float) -> np.ndarray:
    """The RMS of where it sounds (blocks of 50 ms within 30 dB of the loudest) set to ``db`` re full scale."""
    n = bus.shape[-1] // 2400 * 2400
    power = np.square(bus[..., :n]).reshape(-1, n // 2400, 2400).mean((0, 2)) if n else np.mean(bus**2)[None]
    loud = power[power >= power.max() / 1000]
    return bus * np.float32(10 ** (db / 20) / max(1e-7, float(np.sqrt(loud.mean()))))


def pump(n: int, kicks: np.ndarray, depth: float) -> np.ndarray:
    """Gain [n] that dips by ``depth`` at each kick and comes back within a quarter of a second."""
    dip = np.exp(-clock(samples(0.35)) / 0.08) * np.minimum(clock(samples(0.35)) / 0.004, 1)
    total = np.zeros(n, np.float32)
    for kick in kicks:
        place(total, dip, samples(kick))
    return 1 - np.float32(depth) * np.minimum(total, 1)


def wobble(bus: np.ndarray, seed: int) -> np.ndarray:
    """Tape that runs unevenly: pitch sways by some 10 cents, about once in two seconds."""
    n = bus.shape[-1]
    rate = generator(seed, "tape").uniform(0.4, 0.8)
    sway = 0.0016 * SR / rate * (1 - np.cos(2 * np.pi * rate * clock(n).astype(np.float64)))
    at = np.maximum(np.arange(n) - sway, 0)
    return np.stack([np.interp(at, np.arange(n), channel).astype(np.float32) for channel in bus])


def master(
    parts: dict[str, np.ndarray], n: int, sends: dict[str, float], wet: float, variant: int, dark: float
) -> np.ndarray:
    """Sum, room, tone, loudness, limit: float32 [2, n].

    Middle and side go through the spectrum together: a high-pass at 24 Hz takes what the ear cannot hear, the side is
    cut below 150 Hz so that the bass is mono, ``dark`` Hz rolls the top off, and the K-weighted power of the same
    spectrum sets the level to LUFS. The limiter is a curve, not a gain: it leaves everything below KNEE alone.
    """
    dry, send = np.zeros((2, n), np.float32), np.zeros(n, np.float32)
    for name, part in parts.items():
        dry += part
        if sends.get(name):
            send += np.float32(sends[name]) * (part if part.ndim == 1 else part.mean(0))
    size = fast_length(n + samples(LONGEST))  # one size for all rooms, so that the filters are found again
    wet = round(min(wet, LONGEST), 1)
    left, right = np.fft.rfft(dry, size) + np.fft.rfft(send, size) * np.fft.rfft(room(wet, 5000.0, variant), size)
    middle, side = (left + right) / 2, (left - right) / 2
    middle *= response(size, low=dark, high=24)
    side *= response(size, low=dark, high=150, poles=2)
    spectrum = np.stack([middle + side, middle - side])
    gain = 10 ** ((LUFS - loudness(spectrum, size, n)) / 20)
    audio = np.fft.irfft(spectrum, size)[:, :n].astype(np.float32) * np.float32(gain)
    audio = limit(audio)
    tail = min(n, samples(FADE))
    audio[:, n - tail :] *= np.linspace(1, 0, tail, dtype=np.float32)
    return audio


def limit(audio: np.ndarray) -> np.ndarray:
    """Samples above KNEE bent towards CEILING, which none reaches."""
    size = np.abs(audio)
    over = np.maximum(size - np.float32(KNEE), 0)
    bent = KNEE + (CEILING - KNEE) * np.tanh(over / np.float32(CEILING - KNEE))
    return np.where(over > 0, np.sign(audio) * bent, audio).astype(np.float32)
