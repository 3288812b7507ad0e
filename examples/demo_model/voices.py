"""Pitched instruments: ``voice(midi, seconds, tone)`` is one note, mono float32 [N], N with its release.

``tone`` in 0..1 makes it brighter. Levels are only roughly alike: the mix sets each part's own. Struck strings are
two or three wavetables over each other, the brighter the shorter; the rest is FM or plain subtraction, whose filter is
in the wavetable.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from synth import SR, clock, decay, filtered, gate, harmonics, hertz, lookup, noise, phase, samples, saturate, sine

Voice = Callable[[float, float, float], np.ndarray]


def struck(kind: str, midi: float, seconds: float, layers: tuple[tuple[float, float, float], ...], release: float):
    """A string or bar: layers of (cutoff in Hz, level, decay in seconds) of one wavetable kind."""
    f, shape = hertz(midi), gate(seconds, 0.002, release)
    cycles = phase(f, len(shape))
    out = np.zeros_like(shape)
    for cutoff, level, fall in layers:
        out += lookup(harmonics(kind, f, cutoff), cycles) * decay(len(shape), fall) * np.float32(level)
    return out * shape


def electric_piano(midi: float, seconds: float, tone: float) -> np.ndarray:
    """FM: a tine that rings short and high over a bar that is struck harder the brighter it is."""
    f, shape = hertz(midi), gate(seconds, 0.003, 0.18)
    n = len(shape)
    c = phase(f, n)
    bar = sine(c + (0.1 + 0.16 * tone) * sine(c) * decay(n, 0.5))
    tine = sine(c + 0.08 * sine(c * 14)) * decay(n, 0.12)
    tremolo = 1 + np.float32(0.12) * np.sin(np.float32(2 * np.pi * 4.6) * clock(n))
    return (bar * decay(n, 1.6) + np.float32(0.1 + 0.2 * tone) * tine) * shape * tremolo


def piano(midi: float, seconds: float, tone: float) -> np.ndarray:
    """Hammered strings."""
    bright = 2500 + 5000 * tone
    return struck("saw", midi, seconds, ((bright, 0.5, 0.15), (bright / 3, 0.6, 0.7), (700, 0.5, 1.8)), 0.12)


def guitar(midi: float, seconds: float, tone: float) -> np.ndarray:
    """A plucked string."""
    return struck("plucked", midi, seconds, ((2000 + 4000 * tone, 0.7, 0.12), (1400, 0.7, 0.6), (600, 0.3, 1.4)), 0.08)


def pluck(midi: float, seconds: float, tone: float) -> np.ndarray:
    """A synthesiser's short stab."""
    return struck("saw", midi, seconds, ((2500 + 6000 * tone, 0.8, 0.06), (1200 + 1000 * tone, 0.6, 0.22)), 0.1)


def bell(midi: float, seconds: float, tone: float) -> np.ndarray:
    """FM at three times the pitch, all of it in tune."""
    shape = gate(seconds, 0.001, 0.5)
    n = len(shape)
    c = phase(hertz(midi), n)
    return sine(c + (0.12 + 0.16 * tone) * sine(c * 3) * decay(n, 0.35)) * decay(n, 0.6) * shape


def organ(midi: float, seconds: float, tone: float) -> np.ndarray:
    """Drawbars and a slow rotor."""
    shape = gate(seconds, 0.006, 0.04)
    t = clock(len(shape))
    c = phase(hertz(midi), len(shape)) + np.float32(0.02) * np.sin(np.float32(2 * np.pi * 6.1) * t)
    return lookup(harmonics("organ", hertz(midi), 2000 + 6000 * tone), c % 1) * shape


def detuned(kind: str, midi: float, seconds: float, cutoff: float, attack: float, release: float) -> np.ndarray:
    """Three of a kind, 7 cents apart, each starting elsewhere in its cycle."""
    f, shape = hertz(midi), gate(seconds, attack, release)
    table = harmonics(kind, f, cutoff)
    apart = ((0.996, 0.0), (1.0, 0.37), (1.0039, 0.71))
    return sum(lookup(table, phase(f * ratio, len(shape)) + np.float32(start)) for ratio, start in apart) * shape


def pad(midi: float, seconds: float, tone: float) -> np.ndarray:
    """A soft, slow chord."""
    return detuned("saw", midi, seconds, 500 + 900 * tone, min(0.25, seconds / 3), 0.5)


def strings(midi: float, seconds: float, tone: float) -> np.ndarray:
    """A bowed section."""
    return detuned("saw", midi, seconds, 1800 + 3000 * tone, min(0.09, seconds / 3), 0.25)


def flute(midi: float, seconds: float, tone: float) -> np.ndarray:
    """A breathy tone; its vibrato sets in late."""
    f, shape = hertz(midi), gate(seconds, 0.04, 0.08)
    n = len(shape)
    t = clock(n)
    vibrato = np.minimum(t / 0.4, 1) * np.sin(np.float32(2 * np.pi * 5.2) * t)
    breath = filtered(noise(n, "breath"), band=2 * f, q=1.5)
    return (lookup(harmonics("flute", f, 4000), phase(f * (1 + 0.006 * vibrato), n)) + 0.05 * breath) * shape


def whine(midi: float, seconds: float, tone: float) -> np.ndarray:
    """West coast's high lead: nearly a sine, sliding up into each note."""
    shape = gate(seconds, 0.015, 0.06)
    t = clock(len(shape))
    bend = 2 ** ((-1.5 * np.exp(-t / 0.035) + 0.12 * np.sin(2 * np.pi * 5.6 * t)) / 12)
    return lookup(harmonics("saw", hertz(midi), 1100 + 1500 * tone), phase(hertz(midi) * bend, len(shape))) * shape


def cowbell(midi: float, seconds: float, tone: float) -> np.ndarray:
    """Two square waves a fifth apart, driven."""
    f, shape = hertz(midi), gate(min(seconds, 0.3), 0.001, 0.1)
    n = len(shape)
    cutoff = 4000 + 4000 * tone
    both = lookup(harmonics("square", f, cutoff), phase(f, n)) + 0.6 * lookup(
        harmonics("square", 1.5 * f, cutoff), phase(1.5 * f, n)
    )
    return saturate(both * decay(n, 0.12), 1.5) * shape


def slide(start: float, end: float, seconds: float, over: float = 0.09) -> np.ndarray:
    """Frequency in Hz, [N], of a note that stays on one pitch and reaches the other in its last third."""
    n = samples(seconds)
    turn = np.clip((np.arange(n) / SR - seconds * 0.62) / over, 0, 1)
    return hertz(start) * 2 ** ((end - start) / 12 * turn * turn * (3 - 2 * turn))


def bass_808(start: float, end: float, seconds: float, tone: float) -> np.ndarray:
    """A sine with a kick's attack, saturated; slides from one pitch to the other where they differ."""
    shape = gate(seconds, 0.003, 0.06)
    n = len(shape)
    f = np.full(n, hertz(end))
    path = slide(start, end, seconds)
    f[: len(path)] = path
    f *= 1 + 1.2 * np.exp(-np.arange(n) / (0.012 * SR))
    return saturate(sine(phase(f, n)) * decay(n, 1.1), 1.4 + 2.2 * tone) * shape


def bass_sub(start: float, end: float, seconds: float, tone: float) -> np.ndarray:
    """A round sine with a little of its octave."""
    shape = gate(seconds, 0.008, 0.05)
    c = phase(hertz(start), len(shape))
    return saturate(sine(c) + np.float32(0.1 + 0.2 * tone) * sine(2 * c), 1.1) * decay(len(shape), 2.0) * shape


def bass_upright(start: float, end: float, seconds: float, tone: float) -> np.ndarray:
    """A thick plucked string: woody and warm."""
    layers = ((500 + 900 * tone, 0.5, 0.08), (260, 0.8, 0.45), (130, 0.5, 0.9))
    return struck("plucked", start, seconds, layers, 0.06)


def bass_synth(start: float, end: float, seconds: float, tone: float) -> np.ndarray:
    """A fat analogue bass: saw over square, its filter closing."""
    shape = gate(seconds, 0.004, 0.04)
    f, n = hertz(start), len(shape)
    c = phase(f, n)
    body = lookup(harmonics("square", f, 350), c) + 0.5 * lookup(harmonics("saw", f, 420), phase(f * 1.004, n))
    return (body + lookup(harmonics("saw", f, 1500 + 2000 * tone), c) * decay(n, 0.1)) * shape


KEYS: dict[str, Voice] = {
    "electric piano": electric_piano,
    "piano": piano,
    "organ": organ,
    "pad": pad,
    "strings": strings,
    "guitar": guitar,
    "pluck": pluck,
    "bell": bell,
}
LEADS: dict[str, Voice] = {
    "bell": bell,
    "flute": flute,
    "whine": whine,
    "cowbell": cowbell,
    "pluck": pluck,
    "piano": piano,
    "guitar": guitar,
    "strings": strings,
}
BASSES = {"808": bass_808, "sub": bass_sub, "upright": bass_upright, "synth": bass_synth}
