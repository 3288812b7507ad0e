"""Words for a clip, in many ways and all of them true: style, tempo, key, and two to four things one can hear."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from styles import STYLES

if TYPE_CHECKING:
    from clip import Choices

DRUMS = {
    "dusty": ("dusty drums", "dusty sampled drums", "gritty old sampler drums", "raw dusty beat"),
    "crisp": ("crisp drums", "clean punchy drums", "crisp snappy drums", "bright clean drums"),
    "hard": ("hard drums", "hard-hitting drums", "heavy distorted drums", "aggressive drums"),
    "mellow": ("mellow drums", "soft muted drums", "soft drums", "muffled laid-back drums"),
}
BASS = {
    "808": ("808 bass", "deep 808", "booming 808", "heavy 808 bass"),
    "sub": ("sub bass", "deep sub bass", "smooth sub bass", "round bass"),
    "upright": ("warm bass", "upright bass", "warm upright bass", "warm plucked bass"),
    "synth": ("synth bass", "fat synth bass", "funky synth bass", "analog bass"),
}
SLIDING = ("sliding 808", "sliding 808 bass", "808 slides", "gliding 808s")
KEYS = {
    "electric piano": ("electric piano", "Rhodes chords", "electric piano chords", "smooth e-piano"),
    "piano": ("piano", "piano chords", "soft piano", "acoustic piano"),
    "organ": ("organ", "organ chords", "drawbar organ"),
    "pad": ("synth pads", "pads", "soft pads", "ambient pad"),
    "strings": ("strings", "string section", "orchestral strings", "string chords"),
    "guitar": ("guitar", "plucked guitar", "guitar chords", "clean guitar"),
    "pluck": ("plucks", "synth plucks", "plucky synth", "synth stabs"),
    "bell": ("bells", "bell chords", "glassy bells", "shiny bells"),
}
LEADS = {
    "bell": ("bell melody", "bells", "bell lead"),
    "flute": ("flute", "flute melody", "breathy flute"),
    "whine": ("whiny synth lead", "high synth lead", "g-funk lead", "portamento lead"),
    "cowbell": ("cowbell", "cowbell melody", "cowbells"),
    "pluck": ("pluck melody", "synth pluck lead", "plucky lead"),
    "piano": ("piano melody", "piano lead", "piano riff"),
    "guitar": ("guitar melody", "guitar riff", "guitar lick"),
    "strings": ("string melody", "strings", "string lead"),
}
MOODS = {
    ("minor", "slow"): ("melancholic", "moody", "dark and slow", "nostalgic", "late night", "wistful"),
    ("minor", "middle"): ("moody", "dark", "gritty mood", "night drive", "brooding"),
    ("minor", "fast"): ("dark", "menacing", "brooding", "tense", "cold", "intense"),
    ("major", "slow"): ("warm", "relaxed", "chill", "sunny", "peaceful", "dreamy"),
    ("major", "middle"): ("uplifting", "sunny", "feel-good", "warm", "laid back"),
    ("major", "fast"): ("uplifting", "bright", "energetic", "happy", "playful", "hopeful"),
}
FRAMES = (  # the last is the one that takes a mood
    "{style} track with {rest}",
    "{style} featuring {rest}",
    "{style} instrumental with {rest}",
    "{style} beat: {rest}",
    "{mood} {style}, {rest}",
)


def facts(c: Choices) -> dict[str, tuple[str, ...]]:
    """What may be said of a clip: kind of thing, and the phrases that are true of it."""
    speed = "slow" if c.bpm < 92 else "middle" if c.bpm < 118 else "fast"
    out = {
        "drums": DRUMS[c.drums],
        "bass": SLIDING if c.slides and c.bass == "808" else BASS[c.bass],
        "keys": KEYS[c.keys] + (("arpeggio",) if c.comp == "arp" else ()),
        "mood": MOODS[c.key.split()[1], speed],
    }
    if c.lead != "none":
        out["lead"] = LEADS[c.lead]
    if c.crackle:
        out["crackle"] = ("vinyl crackle", "vinyl noise", "record crackle")
    if c.rolls:
        out["hats"] = ("rolling hi-hats", "hi-hat rolls", "fast hi-hats", "hat triplets and rolls")
    if c.swung:
        out["swing"] = ("swing", "swung groove", "swinging hats", "shuffled groove")
    if c.intro:
        out["intro"] = ("short intro", "the beat drops after a short intro")
    if c.vocals:
        out["vocals"] = ("vocal chops", "vowel vocals", "synthetic voice", "rap-timed vocal chops")
    if c.time_signature == "3":
        out["meter"] = ("waltz time", "3/4", "in three")
    return out


def caption(c: Choices, rng: np.random.Generator) -> str:
    """A caption drawn from ``facts``; about half of them tell the tempo, a quarter the key."""
    known = facts(c)
    names = STYLES[c.style].names
    style = names[int(rng.integers(len(names)))] if rng.random() < 0.6 else names[0]

    def say(kind: str) -> str:
        return known[kind][int(rng.integers(len(known[kind])))]

    count = int(rng.integers(2, 5))
    must = [kind for kind in ("vocals", "meter") if kind in known]
    rest = [str(kind) for kind in rng.permutation([k for k in known if k not in must])]
    chosen = (must + rest)[:count] if count >= len(must) else must
    if rng.random() < 0.7:
        words = [say(kind) for kind in chosen]
    else:
        frame = FRAMES[int(rng.integers(len(FRAMES)))]
        if "mood" in chosen:
            frame = FRAMES[-1]
        elif c.vocals and "instrumental" in frame:
            frame = FRAMES[0]
        listed = [say(kind) for kind in chosen if kind != "mood"]
        if listed:
            joined = ", ".join(listed[:-1]) + (" and " if len(listed) > 1 else "") + listed[-1]
            style, words = frame.format(style=style, rest=joined, mood=say("mood")), []
        else:
            words = [say("mood")]
    extras = [f"{c.bpm} bpm"] * (rng.random() < 0.5) + [c.key] * (rng.random() < 0.25)
    if not c.vocals and rng.random() < 0.1:
        extras.append("instrumental")
    words += extras
    words = [style, *words]
    if rng.random() < 0.3:
        words = [str(word) for word in rng.permutation(words)]
    text = ", ".join(words).replace("beat beat", "beat").replace("instrumental instrumental", "instrumental")
    return text[0].upper() + text[1:] if rng.random() < 0.2 else text
