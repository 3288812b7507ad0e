"""What is played: events in time, per part, as positions in sixteenths. No sound is made here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from harmony import Key, melody, voicing
from styles import Patterns, Style

LEVEL = {"x": 1.0, "o": 0.45}
LEAD_RHYTHMS = (
    "x..x..x.....x...",
    "x.....x.x.......",
    "..x...x..x..x...",
    "x...x..x........",
    "x.x...x.x...x...",
    "x..x..x..x..x.x.",
)


class Hit(NamedTuple):
    """A drum: ``step`` may lie between sixteenths; ``straight`` hits are a roll's, which swing leaves alone."""

    step: float
    level: float
    straight: bool = False


class Note(NamedTuple):
    """A note from ``pitch`` (MIDI) to ``end`` (the same but for slides), ``length`` in sixteenths."""

    step: float
    length: float
    pitch: int
    level: float = 1.0
    end: int = 0


def pattern_hits(pattern: str, bar: int, width: int) -> list[tuple[int, float]]:
    """Steps within the bar, and levels, of a pattern of one or more bars; written for 4/4, it is cut to ``width``."""
    if not pattern:
        return []
    period = 16 if len(pattern) % 16 == 0 else 12
    first = bar * period % len(pattern)
    return [(i, LEVEL[c]) for i, c in enumerate(pattern[first : first + period][:width]) if c != "."]


class Groove(NamedTuple):
    """The patterns and sounds one clip took."""

    kick: str
    snare: str
    hat: str
    open: str
    ghost: str
    backbeat: tuple[str, ...]
    percussion: str
    rolls: float


def choose_groove(style: Style, patterns: Patterns, rng: np.random.Generator) -> Groove:
    """One of each of the style's alternatives."""

    def one(options):
        return options[int(rng.integers(len(options)))]

    return Groove(
        *(one(getattr(patterns, name)) for name in ("kick", "snare", "hat", "open", "ghost")),
        one(style.backbeat),
        one(style.percussion),
        style.rolls,
    )


def drum_hits(groove: Groove, bars: int, intro: int, width: int, rng: np.random.Generator) -> dict[str, list[Hit]]:
    """All drum hits. Intro bars have hats at most; every fourth bar ends in a fill; after intro and at every eighth bar
    the crash."""
    hits: dict[str, list[Hit]] = {}

    def hit(name: str, step: float, level: float, straight: bool = False) -> None:
        hits.setdefault(name, []).append(Hit(step, level, straight))

    hats_in_intro = rng.random() < 0.4
    for bar in range(bars):
        at = bar * width
        fill = rng.choice(["none", "snare", "stop", "kick"]) if bar % 4 == 3 else "none"
        late = width - 4  # a fill takes the last beat
        if bar >= intro:
            for step, level in pattern_hits(groove.kick, bar - intro, width):
                if not (fill == "stop" and step >= late):
                    hit("kick", at + step, level)
            for step, level in pattern_hits(groove.snare, bar - intro, width):
                for name in groove.backbeat:
                    hit(name, at + step, level)
            for step, level in pattern_hits(groove.ghost, bar - intro, width):
                hit(groove.percussion, at + step, level)
            if fill == "snare":
                for i, step in enumerate((late + 1, late + 2, late + 3)):
                    hit(groove.backbeat[0], at + step, 0.45 + 0.15 * i)
            if fill == "kick":
                hit("kick", at + width - 2, 0.8)
            if (bar == intro and intro) or (bar and (bar - intro) % 8 == 0):
                hit("crash", at, 0.8)
        if bar >= intro or hats_in_intro:
            _hats(groove, bar, at, width, fill, rng, hit)
    return hits


def _hats(
    groove: Groove, bar: int, at: int, width: int, fill: str, rng: np.random.Generator, hit: Callable[..., None]
) -> None:
    """The hats of the bar at step ``at``, told to ``hit``."""
    opened = {step for step, _ in pattern_hits(groove.open, bar, width)}
    for step in opened:
        hit("open", at + step, 0.8)
    closed = pattern_hits(groove.hat, bar, width)
    for beat in range(0, width, 4):
        if fill == "stop" and beat >= width - 4:
            continue
        here = [(s, v) for s, v in closed if beat <= s < beat + 4 and s not in opened]
        if rng.random() < groove.rolls:  # 32nds or triplets take half of the beat or all of it
            per_beat = int(rng.choice([8, 8, 6, 12]))
            start = int(rng.choice([0, 2])) if per_beat != 12 else 2
            here = [(s, v) for s, v in here if s < beat + start]
            count = (4 - start) * per_beat // 4
            up = rng.random() < 0.6
            for i in range(count):
                ramp = (i + 1) / count
                hit("hat", at + beat + start + i * 4 / per_beat, 0.4 + 0.55 * (ramp if up else 1 - ramp), True)
        for step, level in here:
            hit("hat", at + step, level)


class Chords(NamedTuple):
    """The progression: degree per bar."""

    degrees: tuple[int, ...]
    bars: int  # per chord

    def at(self, step: float, width: int) -> int:
        """The degree that sounds at ``step``."""
        return self.degrees[int(step // (width * self.bars)) % len(self.degrees)]


def bass_notes(
    kind: str, key: Key, chords: Chords, kicks: list[Hit], bars: int, intro: int, width: int, glide: float, rng
) -> list[Note]:
    """The bass from the intro's end on: with the kick, walking, in octaves, or 808s that slide with chance ``glide``.

    Roots lie within 28..39 (E1 to D#2); an 808's slide goes an octave or a fifth up, or to the next note.
    """
    low, end = 28, bars * width
    octaves = rng.permutation([0, 12, 0, 0, 12, 0])
    steps = sorted({h.step for h in kicks if h.level > 0.5})
    if kind == "octaves":
        rhythm = str(rng.choice(["x.x.x.x.x.x.x.x.", "..x...x...x...xx", "x..x..x.x..x..x."]))
        steps = [bar * width + s for bar in range(intro, bars) for s, _ in pattern_hits(rhythm, 0, width)]
    elif kind == "walk":
        extra = {bar * width + width - 2 for bar in range(intro, bars)}
        steps = sorted({*steps, *extra, *(bar * width for bar in range(intro, bars))})
    notes = []
    for i, step in enumerate(steps):
        following = steps[i + 1] if i + 1 < len(steps) else end
        degree = chords.at(step, width)
        pitch = low + (key.pitch(degree, low) - low) % 12
        target = pitch
        if kind == "octaves":
            pitch = target = pitch + int(octaves[i % len(octaves)])
        elif kind == "walk" and step % width == width - 2:  # lead to the next bar from the note beside its root
            nxt = chords.at(step + 2, width)
            side = key.pitch(nxt + int(rng.choice([-1, 1, 4])), low)
            pitch = target = low + (side - low) % 12
        elif kind == "808" and following - step >= 4 and rng.random() < glide:
            nearby = low + (key.pitch(chords.at(following, width), low) - low) % 12
            fifth = key.pitch(degree + 4, low) - key.pitch(degree, low) == 7
            target = int(rng.choice([pitch + 12, pitch + 7 if fifth else pitch + 12, nearby]))
        longest = 10 if kind == "808" else 8 if kind in ("kick", "walk") else 1.6
        notes.append(Note(step, min(following - step, longest), pitch, 1.0, target))
    return notes


def chord_notes(comp: str, key: Key, chords: Chords, size: int, centre: int, bars: int, width: int, rng) -> list[Note]:
    """Chords: held, arpeggiated in eighths, or struck in a pattern."""
    notes = []
    order = rng.permutation(4) if rng.random() < 0.5 else np.arange(4)
    for bar in range(bars):
        at = bar * width
        tones = voicing(key, chords.at(at, width), size, centre)
        if comp == "held":
            if bar % chords.bars == 0:
                length = width * min(chords.bars, bars - bar)
                notes += [Note(at, length, pitch) for pitch in tones]
        elif comp == "arp":
            ladder = [*tones, tones[0] + 12, tones[1] + 12][:4]
            for i, step in enumerate(range(0, width, 2)):
                notes.append(Note(at + step, 2, ladder[order[i % 4]], 1.0 if step % 4 == 0 else 0.75))
        else:
            places = pattern_hits(comp, 0, width)
            ends = [*(s for s, _ in places[1:]), width]
            for (step, level), stop in zip(places, ends):
                notes += [Note(at + step, min(stop - step, 10), pitch, level) for pitch in tones]
    return notes


def lead_notes(key: Key, chords: Chords, low: int, busy: bool, bars: int, intro: int, width: int, rng) -> list[Note]:
    """A two-bar motif that comes back, its second bar now and then silent."""
    rhythm = "x.x.x.xxx.x.x.x." if busy else str(rng.choice(LEAD_RHYTHMS))
    second = "" if not busy and rng.random() < 0.4 else rhythm if busy else str(rng.choice(LEAD_RHYTHMS))
    shape = int(rng.integers(1 << 30))
    notes = []
    for pair in range(intro, bars, 2):
        steps = [s for s, _ in pattern_hits(rhythm, 0, width)]
        steps += [width + s for s, _ in pattern_hits(second, 0, width)]
        steps = [s for s in steps if pair * width + s < bars * width]
        degrees = [chords.at(pair * width + s, width) for s in steps]
        pitches = melody(np.random.default_rng(shape), key, degrees, low, [s % 4 == 0 for s in steps])
        ends = [*steps[1:], 2 * width]
        for step, stop, pitch in zip(steps, ends, pitches):
            notes.append(Note(pair * width + step, min(stop - step, 6), pitch))
    return notes
