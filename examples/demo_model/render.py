"""One clip from a few words: choose, play, mix.

``render`` is a pure function of its arguments. What is not given is drawn from the seed, each part from a generator of
its own, so that giving lyrics or another lead leaves the beat as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from captions import caption
from clip import Choices, Clip
from drums import CHARACTERS, VARIANTS, crackle, kit
from harmony import FLATS, PROGRESSIONS, SHARPS, Key, read_key
from mix import BUSES, master, pump, set_level, wobble
from parts import Chords, Hit, Note, bass_notes, choose_groove, chord_notes, drum_hits, lead_notes
from styles import STYLES, Style
from synth import SR, generator, hertz, place, samples
from vocals import lay, sing
from voices import BASSES, KEYS, LEADS

PAN = {"hat": 0.22, "open": 0.22, "rim": -0.35, "conga": -0.3, "shaker": -0.25, "squeak": 0.3, "crash": -0.15}
DRUM_LEVEL = {
    "kick": 0.62, "snare": 0.78, "clap": 0.7, "hat": 0.36, "open": 0.27, "crash": 0.27,
    "rim": 0.3, "conga": 0.3, "shaker": 0.2, "squeak": 0.3,
}  # fmt: skip
PART_DB = {"bass": -17.5, "keys": -20.5, "lead": -22.5, "vocals": -18.5, "crackle": -45.0}  # RMS where it sounds
ROOM_SEND = {"drums": 0.07, "keys": 0.22, "lead": 0.3, "vocals": 0.16}


def render(
    style: str,
    bpm: int | None = None,
    key: str | None = None,
    seconds: float = 10.0,
    seed: int = 0,
    lyrics: str = "",
    *,
    time_signature: str = "4",
    drums: str | None = None,
    bass: str | None = None,
    keys: str | None = None,
    lead: str | None = None,
    intro: int | None = None,
    stems: bool = False,
) -> Clip:
    """Make a clip.

    Args:
        style: a name of ``styles.STYLES``.
        bpm: 50..200; None draws one that is natural to the style.
        key: such as "C# minor"; None draws one.
        seconds: 1..600.
        lyrics: one line per bar; lines that find no room are left out of the clip and of ``Clip.lyrics``.
        time_signature: "4", or "3" for the styles that have a waltz.
        drums: a character of drums.CHARACTERS. bass, keys, lead: a name of voices.BASSES, KEYS, LEADS; lead "none".
        intro: bars without kick, snare and bass at the start; None draws 0 or 1.
        stems: keep the parts too.
    Raises:
        ValueError: a name or number is none of the above.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    spec, rng = STYLES[style], generator(seed, "choices")
    drawn = _draw(style, spec, rng)
    given = {"bpm": bpm, "key": key, "drums": drums, "bass": bass, "keys": keys, "lead": lead, "intro": intro}
    c = replace(drawn, **{k: v for k, v in given.items() if v is not None}, time_signature=time_signature)
    if lead is None and c.lead == c.keys:  # both would play the same sound
        c = replace(c, lead="none")
    _check(c, spec, seconds)
    return _Session(c, spec, seconds, seed).play(lyrics, stems)


def _draw(style: str, spec: Style, rng: np.random.Generator) -> Choices:
    def one(options):
        return options[int(rng.integers(len(options)))]

    minor = rng.random() < spec.minor
    note, odd = one(SHARPS if rng.random() < 0.6 else FLATS), rng.random(4) < 0.12
    bassline, comp = one(spec.bassline), one(spec.comp)
    return Choices(
        style=style,
        bpm=int(rng.integers(spec.bpm[0], spec.bpm[1] + 1)),
        key=f"{note} {'minor' if minor else 'major'}",
        time_signature="4",
        drums=one(CHARACTERS) if odd[0] else one(spec.drums),  # now and then what the style would not take, so that
        bass=one(list(BASSES)) if odd[1] else one(spec.bass),  # captions have to be read
        keys=one(list(KEYS)) if odd[2] else one(spec.keys),
        lead=one([*LEADS, "none"]) if odd[3] else one(spec.lead),
        comp=comp,
        bassline=bassline,
        intro=int(rng.random() < 0.12),
        crackle=bool(rng.random() < spec.crackle),
        swing=float(rng.uniform(*spec.swing)),
        tone=float(rng.random()),
    )


def _check(c: Choices, spec: Style, seconds: float) -> None:
    read_key(c.key)
    if not 50 <= c.bpm <= 200:
        raise ValueError(f"bpm must be 50..200, got {c.bpm}")
    if not 1 <= seconds <= 600:
        raise ValueError(f"seconds must be 1..600, got {seconds}")
    if c.time_signature != "4" and (c.time_signature != "3" or spec.waltz is None):
        raise ValueError(
            f"time_signature of {c.style} must be 4{' or 3' if spec.waltz else ''}, got {c.time_signature!r}"
        )
    for name, known in (("drums", CHARACTERS), ("bass", BASSES), ("keys", KEYS), ("lead", [*LEADS, "none"])):
        if getattr(c, name) not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(c, name)!r}")


class _Session:
    """One clip in the making: its grid, its buses, and the notes it has made already."""

    def __init__(self, choices: Choices, spec: Style, seconds: float, seed: int) -> None:
        self.c, self.spec, self.seed = choices, spec, seed
        self.n = samples(seconds)
        self.step = 15 / choices.bpm  # seconds of a sixteenth
        self.width = 4 * int(choices.time_signature)
        self.bars = int(np.ceil(seconds / (self.step * self.width) - 1e-6))
        self.intro = min(choices.intro, max(0, self.bars - 2))
        self.buses: dict[str, np.ndarray] = {}
        self.onsets: dict[str, np.ndarray] = {}
        self.notes: dict[tuple, np.ndarray] = {}  # chords come back every few bars: each note is made once

    def rng(self, part: str) -> np.random.Generator:
        return generator(self.seed, part)

    def at(self, step: float, straight: bool = False) -> float:
        """Seconds of a step; odd sixteenths come late by the swing."""
        odd = not straight and float(step).is_integer() and int(step) % 2
        return (step + (2 * self.c.swing - 1 if odd else 0)) * self.step

    def play(self, lyrics: str, keep: bool) -> Clip:
        c, key = self.c, read_key(self.c.key)
        patterns = self.spec.four if c.time_signature == "4" else self.spec.waltz
        rng = self.rng("song")
        groove = choose_groove(self.spec, patterns, rng)
        degrees = PROGRESSIONS[key.mode][int(rng.integers(len(PROGRESSIONS[key.mode])))]
        chords = Chords(degrees, int(rng.choice(self.spec.chord_bars)))
        size = int(rng.choice(self.spec.chord))
        glide = {"drill": 0.75, "trap": 0.3, "phonk": 0.3}.get(c.style, 0.15) if c.bass == "808" else 0.0

        hits = drum_hits(groove, self.bars, self.intro, self.width, self.rng("drums"))
        hits = {name: [h for h in list_ if self.at(*h[::2]) < self.n / SR] for name, list_ in hits.items()}
        low = bass_notes(
            c.bassline, key, chords, hits.get("kick", []), self.bars, self.intro, self.width, glide, self.rng("bass")
        )
        chord = chord_notes(
            c.comp, key, chords, size, 58 if c.keys != "bell" else 70, self.bars, self.width, self.rng("keys")
        )
        sung_text, sung = lay(lyrics, c.bpm, self.width, self.intro, int(self.n / SR / self.step / self.width + 1e-6))
        top = []
        if c.lead != "none":
            low_lead = {"whine": 72, "bell": 72, "cowbell": 67, "strings": 64}.get(c.lead, 67)
            start = self.intro + (2 if self.bars - self.intro > 6 and rng.random() < 0.4 else 0)
            busy = c.lead == "cowbell"
            top = lead_notes(key, chords, low_lead, busy, self.bars, start, self.width, self.rng("lead"))

        self._drums(hits, key)
        self._bass(low)
        spread = 0.35 if c.keys in ("pad", "strings") else 0.22
        self._pitched("keys", chord, lambda n, s: KEYS[c.keys](n.pitch, s, c.tone), spread)
        self._pitched("lead", top, lambda n, s: LEADS[c.lead](n.pitch, s, c.tone), 0.0)
        self._voice(sung, key, chords)
        if c.crackle:
            self.buses["crackle"] = crackle(self.n, self.seed % (1 << 31))
        late = sum(not h.straight and h.step % 2 == 1 for name in hits for h in hits[name])
        rolled = {int(h.step // 4) for h in hits.get("hat", []) if h.straight}
        c = replace(
            c,
            intro=self.intro,
            swung=c.swing >= 0.56 and late >= 2 * self.bars,
            rolls=len(rolled) >= 2,
            slides=sum(n.end not in (0, n.pitch) and self.at(n.step + n.length) < self.n / SR for n in low) >= 2,
            vocals=bool(sung),
            lead=c.lead if len(self.onsets.get("lead", ())) else "none",
        )
        audio, parts = self._mix(keep)
        beat = np.arange(int(np.ceil(self.n / SR / (4 * self.step) - 1e-9))) * 4 * self.step
        return Clip(
            audio, caption(c, self.rng("caption")), sung_text, c.bpm, c.key, c.time_signature, c.style, self.seed, c,
            self.onsets, beat, parts,
        )  # fmt: skip

    def _drums(self, hits: dict[str, list[Hit]], key: Key) -> None:
        """Place the kit. Only hats and percussion are played by hand: kick, snare and clap lie on the grid."""
        rng = self.rng("hands")
        loose = 0.006 if self.c.drums in ("dusty", "mellow") else 0.002
        sounds = kit(self.c.drums, int(rng.integers(VARIANTS)), key.root)
        bus, kicks = np.zeros((2, self.n), np.float32), np.zeros(self.n, np.float32)
        for name, events in hits.items():
            times = []
            pan = PAN.get(name, 0.0)
            side = np.array([[1 - pan], [1 + pan]], np.float32)
            sound = sounds[name] if name in ("kick", "snare", "clap") else side * sounds[name]
            for event in events:
                by_hand = name not in ("kick", "snare", "clap") and not event.straight
                late = float(np.clip(rng.normal(0, loose / 2), -loose, loose)) if by_hand else 0.0
                time = max(0.0, self.at(event.step, event.straight) + late)
                level = event.level * DRUM_LEVEL[name] * float(rng.uniform(0.9, 1.0) if by_hand else 1.0)
                place_stereo(kicks if name == "kick" else bus, sound, samples(time), level)
                times.append(time)
            self.onsets[name] = np.array(sorted(times))
        self.buses |= {"drums": bus, "kick": kicks}

    def _bass(self, notes: list[Note]) -> None:
        bus = np.zeros(self.n, np.float32)
        voice = BASSES[self.c.bass]
        for note in notes:
            seconds = max(0.06, note.length * self.step * 0.94)
            name = ("bass", note.pitch, note.end, round(seconds, 4))
            if name not in self.notes:
                sound = voice(note.pitch, note.end or note.pitch, seconds, self.c.tone)
                self.notes[name] = (
                    sound
                    / np.float32(max(1e-6, np.sqrt(np.mean(sound**2))))
                    * np.float32(
                        (hertz(34) / hertz(note.pitch)) ** 0.25  # the ear hears low notes as softer
                    )
                )
            place(bus, self.notes[name], samples(self.at(note.step)))
        self.buses["bass"] = bus
        self.onsets["bass"] = self._starts(notes)

    def _pitched(self, part: str, notes: list[Note], voice: Callable, spread: float) -> None:
        """Notes of one instrument, the lower ones to the left by ``spread``."""
        bus = np.zeros((2, self.n), np.float32)
        for note in notes:
            seconds = max(0.08, note.length * self.step * 0.95)
            name = (part, note.pitch, round(seconds, 4))
            if name not in self.notes:
                self.notes[name] = voice(note, seconds)
            pan = spread * float(np.clip((note.pitch - 58) / 8, -1, 1))
            start = samples(self.at(note.step))
            place(bus[0], self.notes[name], start, note.level * (1 - pan))
            place(bus[1], self.notes[name], start, note.level * (1 + pan))
        if notes:
            self.buses[part] = bus
            self.onsets[part] = self._starts(notes)

    def _voice(self, sung: list, key: Key, chords: Chords) -> None:
        rng, bus, times = self.rng("voice"), np.zeros(self.n, np.float32), []
        low = int(rng.integers(46, 56))
        for word in sung:
            degree = chords.at(word.step, self.width)
            tones = sorted(low + (key.pitch(degree + d, low) - low) % 12 for d in (0, 2, 4))
            pitch = tones[int(rng.choice([0, 0, 1, 1, 2]))]
            time = self.at(word.step)
            place(bus, sing(word.syllable, pitch, word.length * self.step), samples(time))
            times.append(time)
        if sung:
            self.buses["vocals"], self.onsets["vocals"] = bus, np.array(times)

    def _starts(self, notes: list[Note]) -> np.ndarray:
        times = np.unique([self.at(note.step) for note in notes])
        return times[times < self.n / SR]

    def _mix(self, keep: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        c, rng = self.c, self.rng("mix")
        parts = {name: self.buses[name] for name in BUSES if name in self.buses}
        for name, db in PART_DB.items():
            if name in parts:
                parts[name] = set_level(parts[name], db + float(rng.uniform(-1.5, 1.5)))
        if c.style == "lo-fi" and "keys" in parts:
            parts["keys"] = wobble(parts["keys"], self.seed)
        depth = 0.55 if c.style in ("hip house", "jersey club", "phonk") else 0.3
        duck = pump(self.n, self.onsets.get("kick", np.array([])), depth)
        for name in ("keys", "bass"):
            if name in parts:
                parts[name] = parts[name] * duck
        wet = float(rng.uniform(*self.spec.wet))
        dark = {"mellow": 6500, "dusty": 12_000}.get(c.drums, 0)
        audio = master(parts, self.n, ROOM_SEND, wet, int(rng.integers(8)), dark)
        stems = {name: np.broadcast_to(part, (2, self.n)).copy() for name, part in parts.items()} if keep else {}
        return audio, stems


def place_stereo(bus: np.ndarray, sound: np.ndarray, start: int, gain: float) -> None:
    """``place`` for a sound that is mono or [2, N]."""
    if sound.ndim == 1:
        place(bus, sound, start, gain)
    else:
        for channel, half in zip(bus, sound):
            place(channel, half, start, gain)
