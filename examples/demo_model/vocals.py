"""Lyrics, as far as they are honest here: one sung vowel per syllable. These are vowels, not words.

A syllable's letters choose the vowel (its formants) and, by the consonant ahead, a short hiss or a puff of noise. The
lines are laid on the beat, one line per bar (two where the tempo is above SLOW), and the pitches are the key's.
Syllables are counted by a rule of thumb for English; a word without Latin vowels counts as one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from synth import clock, filtered, gate, hertz, lookup, noise, normalised, phase, samples, wavetable

SLOW = 115  # bpm up to which a line takes one bar
FORMANTS = {  # Hz, three resonances of a grown man's vowels, rounded
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (280, 2250, 2900),
    "o": (500, 850, 2400),
    "u": (310, 870, 2240),
    "uh": (600, 1190, 2390),
}
GROUPS = (  # letters of a syllable's middle and its vowel, first match
    (r"ee|ea|ie|y$|ey", "i"),
    (r"oo|ou|ew|ue|ui", "u"),
    (r"ai|ay|ei|e", "e"),
    (r"oa|ow|au|aw|o", "o"),
    (r"a", "a"),
    (r"i|y", "i"),
    (r"u", "uh"),
)


class Syllable(NamedTuple):
    """``vowel`` names its formants; ``onset`` is "hiss" (s, f, sh), "puff" (t, k, p) or ""."""

    vowel: str
    onset: str


class Sung(NamedTuple):
    """A syllable in time: position and length in sixteenths from the song's start."""

    step: int
    length: int
    syllable: Syllable


def syllables(text: str) -> list[Syllable]:
    """The syllables of a line; what stands in [brackets] is a heading and silent."""
    words = re.findall(r"[^\W_]+(?:['\u2019][^\W_]+)*", re.sub(r"\[.*?\]", " ", text))
    return [syllable for word in words for syllable in _word(word)]


def _word(word: str) -> list[Syllable]:
    letters = re.sub(r"[^a-z]", "", word.lower())
    groups = list(re.finditer(r"[aeiouy]+", re.sub(r"^y", "j", letters)))
    if len(groups) > 1 and groups[-1].group() == "e":  # a final e is silent (time), but for little; so are -es and -ed
        end = letters[groups[-1].start() - 1 :]
        silent = (end[1:] == "e" and not re.search(r"[^aeiouy]le$", letters)) or (
            (end[1:] == "ed" and end[0] not in "td") or (end[1:] == "es" and end[0] not in "szxcgh")
        )
        groups = groups[:-1] if silent else groups
    if not groups:
        return [Syllable("uh", "")]
    out, last = [], 0
    for group in groups:
        vowel = next(v for pattern, v in GROUPS if re.search(pattern, group.group()))
        ahead = letters[last : group.start()]
        onset = "hiss" if re.search(r"s|f|sh|z|ch", ahead) else "puff" if re.search(r"[tkpcq]", ahead) else ""
        out.append(Syllable(vowel, onset))
        last = group.end()
    return out


def lay(lyrics: str, bpm: int, steps_per_bar: int, first_bar: int, bars: int) -> tuple[str, list[Sung]]:
    """Put the lines on the grid.

    Args:
        lyrics: lines; headings such as [verse] are kept but silent.
        first_bar, bars: where the voice may start, and the song's whole bars.
    Returns:
        the lines that found room, and their syllables in time, one each. A line too long for its bar goes on into the
        next; the first line that does not fit ends the song's words.
    """
    unit = 1 if bpm <= SLOW else 2  # sixteenths are too fast to sing above
    room = steps_per_bar - 1  # a breath
    bar, sung, kept = first_bar, [], []
    for line in lyrics.splitlines():
        words = syllables(line)
        if not words:
            kept.append(line)
            continue
        need = -(-len(words) // room) * unit
        if bar + need > bars:
            break
        grid = need * steps_per_bar // unit
        places = sorted([*range(0, grid, 2), *range(1, grid, 2)][: len(words)])  # eighths, then what lies between
        ends = [*places[1:], min(places[-1] + 2, grid)]
        for place, end, word in zip(places, ends, words):
            length = min(max(end - place, 1), 2) * unit
            sung.append(Sung(bar * steps_per_bar + place * unit, length, word))
        kept.append(line)
        bar += need
    return ("\n".join(kept).strip() if sung else ""), sung


@lru_cache(maxsize=256)
def _glottis(vowel: str, midi: int) -> np.ndarray:
    """Wavetable: the harmonics of a voice, shaped by the vowel's three resonances."""
    n = np.arange(1, int(7000 / hertz(midi)) + 1)
    f = n * hertz(midi)
    gain = np.full(len(n), 0.02)
    for centre, width, level in zip(FORMANTS[vowel], (80, 110, 160), (1.0, 0.6, 0.3)):
        gain += level / np.sqrt(1 + ((f - centre) / (width / 2)) ** 2)
    return wavetable(gain / n**0.6)


def sing(syllable: Syllable, midi: int, seconds: float) -> np.ndarray:
    """One note, mono float32 [N], its vowel at sample 0 up to any hiss, which takes the first 50 ms."""
    shape = gate(max(0.05, seconds * 0.85), 0.015, 0.05)
    t = clock(len(shape))
    bend = 2 ** ((-0.8 * np.exp(-t / 0.03) + 0.15 * np.sin(2 * np.pi * 5.5 * t) * np.minimum(t / 0.2, 1)) / 12)
    note = lookup(_glottis(syllable.vowel, midi), phase(hertz(midi) * bend, len(t))) * shape
    if syllable.onset:
        n = samples(0.05 if syllable.onset == "hiss" else 0.018)
        burst = noise(n, syllable.onset) * np.linspace(1, 0, n, dtype=np.float32)
        burst = normalised(filtered(burst, high=4500 if syllable.onset == "hiss" else 1800), 0.8)
        note[:n] = note[:n] * np.linspace(0, 1, n, dtype=np.float32) + burst[: len(note)]
    return note
