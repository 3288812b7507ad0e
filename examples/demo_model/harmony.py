"""Keys, scales and chords. All chords here are stacked from their key's own seven notes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

SHARPS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
FLATS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
STEPS = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
PENTATONIC = {"major": (0, 1, 2, 4, 5), "minor": (0, 2, 3, 4, 6)}  # as degrees of the scale
PROGRESSIONS = {  # degrees, 0 is the tonic
    "minor": (
        (0, 5, 2, 6), (0, 0, 5, 6), (0, 3, 0, 4), (0, 6, 5, 6), (0, 5, 3, 4), (0, 3, 6, 2), (0, 0, 3, 5), (5, 6, 0, 0),
    ),
    "major": ((0, 5, 3, 4), (0, 3, 0, 4), (0, 4, 5, 3), (3, 2, 1, 0), (1, 4, 0, 5), (0, 2, 3, 3), (5, 3, 0, 4)),
}  # fmt: skip


class Key(NamedTuple):
    """A tonic, 0..11 from C up, and "major" or "minor"."""

    root: int
    mode: str

    def pitch(self, degree: int, low: int) -> int:
        """MIDI note of a degree (any integer); degree 0 is the first tonic at or above ``low``."""
        octave, step = divmod(degree, 7)
        return low + (self.root - low) % 12 + 12 * octave + STEPS[self.mode][step]


def read_key(name: str) -> Key:
    """Key of a name such as "C# minor" or "Bb major"; ValueError for any other form."""
    note, _, mode = name.partition(" ")
    for names in (SHARPS, FLATS):
        if note in names and mode in STEPS:
            return Key(names.index(note), mode)
    raise ValueError(f"key must be a note and a mode such as 'C# minor' or 'Bb major', got {name!r}")


def voicing(key: Key, degree: int, size: int, centre: int) -> list[int]:
    """MIDI notes of a chord of ``size`` stacked thirds, each in the octave around ``centre``: little moves."""
    classes = [key.pitch(degree + 2 * i, 60) % 12 for i in range(size)]
    return sorted(centre - 6 + (pc - centre + 6) % 12 for pc in classes)


def melody(rng: np.random.Generator, key: Key, chords: Iterable[int], low: int, strong: Iterable[bool]) -> list[int]:
    """A walk over the pentatonic scale within an octave and a half of ``low``; strong beats take a note of their chord.

    Args:
        chords: the chord's degree at each note.
        strong: whether each note lies on a beat.
    """
    ladder = [key.pitch(7 * octave + d, low) for octave in (0, 1) for d in PENTATONIC[key.mode]][:8]
    at, notes = int(rng.integers(2, 6)), []
    for chord, beat in zip(chords, strong):
        at = int(np.clip(at + rng.choice([-2, -1, -1, 0, 1, 1, 2]), 0, len(ladder) - 1))
        note = ladder[at]
        if beat:
            tones = {key.pitch(chord + 2 * i, low) % 12 for i in range(3)}
            near = [p for p in range(low, low + 20) if p % 12 in tones]
            note = min(near, key=lambda p: abs(p - ladder[at]))
        notes.append(note)
    return notes
