"""Drum sounds, synthesised: each is a mono float32 array whose peak is 1, its attack at sample 0.

A kit is a dict of sounds of one character:
    dusty   an old sampler: 12 bits at half the rate, no treble
    crisp   clean and bright
    hard    driven into saturation
    mellow  soft attacks, dull
Kits are cached: a clip asks for one of VARIANTS kits per character, its kick tuned to the clip's key.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from synth import (
    clock,
    crushed,
    decay,
    filtered,
    generator,
    hertz,
    noise,
    normalised,
    phase,
    samples,
    saturate,
    sine,
)

CHARACTERS = ("dusty", "crisp", "hard", "mellow")
VARIANTS = 16

Kit = dict[str, np.ndarray]


def sweep(n: int, start: float, end: float, seconds: float) -> np.ndarray:
    """Sine that falls from ``start`` to ``end`` Hz, by a factor of e each ``seconds``."""
    t = clock(n)
    cycles = end * t + (start - end) * seconds * (1 - np.exp(-t / seconds))
    return sine(cycles - np.floor(cycles))


def ease(x: np.ndarray, attack: float = 0.0008, end: float = 0.01) -> np.ndarray:
    """``x`` with short linear ends, so that it neither clicks in nor breaks off."""
    rise, fall = samples(attack), samples(end)
    x[:rise] *= np.linspace(0, 1, rise, dtype=np.float32)
    x[-fall:] *= np.linspace(1, 0, fall, dtype=np.float32)
    return x


def kick(tune: float, seconds: float, punch: float, click: float, drive: float, seed: int) -> np.ndarray:
    """A falling sine that settles on ``tune`` Hz, with a click of noise."""
    n = samples(seconds * 3.2)
    body = sweep(n, tune * punch, tune, 0.022) * decay(n, seconds)
    snap = filtered(noise(n, "click", seed) * decay(n, 0.003), low=6000, high=900)
    return ease(normalised(saturate(normalised(body + click * snap), drive)), 0.0005, 0.03)


def snare(tune: float, seconds: float, tone: float, bright: float, seed: int) -> np.ndarray:
    """Two modes of a skin and the rattle of the wires, with a sharp first crack."""
    n = samples(seconds * 4)
    skin = (sweep(n, tune * 1.6, tune, 0.012) + 0.5 * sweep(n, tune * 2.4, tune * 1.78, 0.01)) * decay(n, seconds / 3)
    wires = filtered(noise(n, "wires", seed), high=1400, low=bright) * decay(n, seconds)
    crack = filtered(noise(n, "crack", seed), high=2500) * decay(n, 0.006)
    return ease(normalised(tone * skin + normalised(wires, 0.8) + 0.6 * normalised(crack)))


def clap(seconds: float, bright: float, seed: int) -> np.ndarray:
    """Four hands within 30 ms, then their room."""
    rng = generator("clap", seed)
    n = samples(0.03 + seconds * 4)
    t = clock(n)
    shape = np.zeros(n, np.float32)
    for start in (0.0, *np.sort(rng.uniform(0.006, 0.022, 2))):
        shape += np.where(t >= start, np.exp(-(t - start) / 0.004, where=t >= start, out=np.zeros_like(t)), 0)
    shape += np.where(t >= 0.026, np.exp(-np.maximum(t - 0.026, 0) / seconds), 0)
    return ease(normalised(filtered(noise(n, "hands", seed) * shape, band=1500, q=0.9, high=500, low=bright)))


def metal(seconds: float, high: float, seed: int) -> np.ndarray:
    """Cymbal: six square waves whose pitches fit no scale, and noise, without what lies below ``high`` Hz."""
    n = samples(seconds * 4.5)
    base = generator("metal", seed).uniform(0.92, 1.08)
    ring = sum(np.sign(phase(f * base, n) - 0.5) for f in (2053, 3047, 3699, 5229, 5401, 8003))
    return ease(
        normalised(filtered(0.18 * ring + 0.5 * noise(n, "hiss", seed), high=high, poles=3) * decay(n, seconds))
    )


def rim(seed: int) -> np.ndarray:
    """Stick on the rim: two short knocks of wood."""
    n, shift = samples(0.09), generator("rim", seed).uniform(0.9, 1.15)
    wood = sine(phase(1720 * shift, n)) * decay(n, 0.008) + 0.8 * sine(phase(480 * shift, n)) * decay(n, 0.012)
    return ease(normalised(wood + 0.25 * noise(n, "stick", seed) * decay(n, 0.003)))


def conga(tune: float) -> np.ndarray:
    """A hand drum."""
    n = samples(0.35)
    return ease(normalised(sweep(n, tune * 1.35, tune, 0.02) * decay(n, 0.08)), 0.002)


def shaker(seconds: float, seed: int) -> np.ndarray:
    """Beads: noise that swells and falls."""
    n = samples(0.12)
    t = clock(n)
    swell = np.minimum(t / 0.018, 1) * np.exp(-np.maximum(t - 0.018, 0) / seconds)
    return ease(normalised(filtered(noise(n, "beads", seed), high=5500, poles=3) * swell))


def squeak() -> np.ndarray:
    """The chirp, up and down, of jersey club's bed springs."""
    n = samples(0.11)
    t = clock(n)
    return ease(normalised(sine(phase(900 + 700 * np.sin(np.pi * t / 0.11), n)) * np.sin(np.pi * t / 0.11)), 0.004)


@lru_cache(maxsize=64)
def kit(character: str, variant: int, root: int) -> Kit:
    """The sounds of one kit.

    Args:
        character: one of CHARACTERS.
        variant: 0..VARIANTS - 1; other pitches, lengths and noises.
        root: pitch class 0..11 of the key: the kick settles on it or on its fifth, within 41..65 Hz.
    """
    rng = generator("kit", character, variant)
    u = rng.uniform
    seed = int(rng.integers(1 << 30))
    pitch = 28 + (root + (7 if rng.random() < 0.3 else 0) - 28) % 12  # E1 up to D#2
    dusty, hard, mellow = character == "dusty", character == "hard", character == "mellow"
    bright = {"dusty": 5500, "crisp": 14_000, "hard": 11_000, "mellow": 3800}[character]
    snare_tune = hertz(52 + (root - 52) % 12)
    sounds = {
        "kick": kick(
            hertz(pitch),
            u(0.09, 0.15) if not hard else u(0.13, 0.19),
            u(3.0, 5.0) if mellow else u(4.5, 7.5),
            {"dusty": 0.35, "crisp": 0.6, "hard": 0.8, "mellow": 0.12}[character],
            4.0 if hard else u(1.2, 2.0),
            seed,
        ),
        "snare": snare(snare_tune, u(0.05, 0.09), u(0.4, 0.9), bright, seed),
        "clap": clap(u(0.045, 0.09), bright, seed),
        "hat": metal(u(0.016, 0.034), 5000 if mellow else u(6000, 8500), seed),
        "open": metal(u(0.09, 0.15), 5000 if mellow else u(5500, 7500), seed),
        "crash": metal(u(0.3, 0.45), 3000, seed + 1),
        "rim": rim(seed),
        "conga": conga(hertz(60 + (root - 60) % 12)),
        "shaker": shaker(u(0.02, 0.035), seed),
        "squeak": squeak(),
    }
    if hard:
        sounds["snare"] = normalised(saturate(sounds["snare"], 2.5))
        sounds["clap"] = normalised(saturate(sounds["clap"], 2.0))
    if dusty:
        sounds = {name: crushed(filtered(x, low=9000), 12, 2) for name, x in sounds.items()}
    if dusty or mellow:
        sounds = {name: normalised(filtered(x, low=2.2 * bright)) for name, x in sounds.items()}
    for sound in sounds.values():
        sound.flags.writeable = False
    return sounds


def crackle(n: int, seed: int) -> np.ndarray:
    """A worn record: some twenty clicks of any size per second over a faint rumble of dust; float32 [2, n], RMS 1."""
    rng = generator("crackle", seed)
    count = rng.poisson(22 * n / 48_000)
    clicks = np.zeros((2, n), np.float32)
    side, where = rng.integers(0, 2, count), rng.integers(0, n, count)
    clicks[side, where] = rng.exponential(1.0, count) ** 1.6 * rng.choice([-1, 1], count)
    out = filtered(clicks + 0.012 * noise(n, "dust", seed), low=5500, high=500, poles=1)
    return out / max(float(np.sqrt(np.mean(out**2))), 1e-9)
