"""What a render gives back: the audio and all that is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from synth import SR


@dataclass(frozen=True)
class Choices:
    """All that captions may tell of a clip, each of it heard in the audio."""

    style: str
    bpm: int
    key: str
    time_signature: str
    drums: str
    bass: str
    keys: str
    lead: str
    comp: str
    bassline: str
    intro: int
    crackle: bool
    swing: float  # where the off-sixteenth lies; 0.5 is straight
    swung: bool = False  # and enough is played there to hear it
    rolls: bool = False
    slides: bool = False
    vocals: bool = False
    tone: float = 0.5


@dataclass(frozen=True, eq=False)
class Clip:
    """A rendered clip and all that is known of it.

    Attributes:
        audio: float32 [2, N] at 48 kHz, peaks at most -1 dBFS.
        prompt: the caption; every word of it is true of the audio.
        lyrics: the lines that are sung, "" for none.
        bpm, key, time_signature: as the prompt template writes them: 92, "C# minor", "4".
        style: a name of ``styles.STYLES``.
        seed: as given.
        choices: what was chosen.
        onsets: seconds of every start, per part: drums by name, "bass", "keys", "lead", "vocals".
        beats: seconds of every beat.
        stems: the parts before the master, float32 [2, N] each, where asked for.
    """

    audio: np.ndarray
    prompt: str
    lyrics: str
    bpm: int
    key: str
    time_signature: str
    style: str
    seed: int
    choices: Choices
    onsets: dict[str, np.ndarray]
    beats: np.ndarray
    stems: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        return self.audio.shape[1] / SR

    @property
    def instrumental(self) -> bool:
        """Whether nothing is sung."""
        return not self.lyrics

    @property
    def language(self) -> str:
        """For the lyric prompt: syllables are counted as English ones."""
        return "en" if self.lyrics else "unknown"
