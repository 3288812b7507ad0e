"""Endless labelled clips. An item depends on nothing but the data set's seed, its split and the item's index.

Two walls keep training and testing apart. A clip's seed is even in training and odd held out, so no beat is on both
sides. And one caption in eight, told by a checksum of its text (``is_held_out``), is never given to a training clip,
so a test may pick prompts no training run has read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b

import numpy as np
from captions import caption
from render import Clip, render
from styles import STYLES
from synth import generator
from vocals import syllables

SPLITS = ("train", "held-out")
WORDS = """
money city night light street time rhyme moving feeling never ever over under higher river fire flow go slow know
show road gold cold soul roll low day way play say stay late fate great ring king sing bring thing dream team deep
sleep keep beat heat seat me free see we be move groove room moon soon cool true blue through you back black track
stack that cap map tap run sun one love above enough son top stop drop hot shot lot got not mind shine line mine
fine ride side wide pride alive tonight fight right bright yesterday tomorrow remember melody memory energy
everybody somebody believe believing another brother mother window yellow shadow echo open hold hello summer winter
water paper power tower hour about around down town sound ground crown the a my your in on to and we I it up for
with from no all so now here there
""".split()  # noqa: SIM905 - a list of quoted words is no easier to read


def is_held_out(prompt: str) -> bool:
    """Whether this caption (in any case) is kept from training: one in eight is."""
    return zlib.crc32(prompt.casefold().encode()) % 8 == 0


def clip_seed(seed: int, split: str, index: int) -> int:
    """The seed of a data set's item: 48 bits of a hash, then one bit for the split."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    digest = blake2b(f"{seed}/{split}/{index}".encode(), digest_size=6).digest()
    return 2 * int.from_bytes(digest, "big") + SPLITS.index(split)


def random_lyrics(rng: np.random.Generator, lines: int) -> str:
    """Lines of 4 to 12 syllables, words drawn without sense; some under a heading, as users write them."""
    out = [str(rng.choice(["[Verse]", "[Chorus]", "[Verse 1]"]))] if rng.random() < 0.4 else []
    for _ in range(lines):
        target, words, count = int(rng.integers(4, 13)), [], 0
        while count < target:
            words.append(WORDS[int(rng.integers(len(WORDS)))])
            count = len(syllables(" ".join(words)))
        out.append(" ".join(words))
    return "\n".join(out)


def random_clip(seed: int, seconds: float = 10.0, vocals: float = 0.3) -> Clip:
    """A clip of which everything is drawn from ``seed``; its caption is held out where the seed is odd.

    Args:
        vocals: share of clips with lyrics.
    """
    rng = generator(seed, "clip")
    style = list(STYLES)[int(rng.integers(len(STYLES)))]
    low, high = STYLES[style].bpm
    bpm = int(rng.integers(low, high + 1))
    if rng.random() < 0.15:  # beyond the style's own, so that the tempo is heard in the number and not in the style
        bpm = int(np.clip(rng.integers(low - 15, high + 16), 65, 165))
    waltz = STYLES[style].waltz is not None and rng.random() < 0.1
    bars = seconds * bpm / (180 if waltz else 240)
    lyrics = random_lyrics(rng, max(1, int(bars / (1 if bpm <= 115 else 2)))) if rng.random() < vocals else ""
    clip = render(style, bpm, seconds=seconds, seed=seed, lyrics=lyrics, time_signature="3" if waltz else "4")
    prompt, redraw = clip.prompt, 0
    while is_held_out(prompt) != bool(seed % 2):
        redraw += 1
        prompt = caption(clip.choices, generator(seed, "caption", redraw))
    return replace(clip, prompt=prompt)


class Dataset:
    """``size`` random clips, indexable and iterable, rendered anew each time one is asked for.

    Args:
        size: number of items; a longer data set begins with the same items.
        seed: another seed is another data set.
        split: "train" or "held-out"; see the module's docstring.
        seconds: length of every clip.
        vocals: share of clips with lyrics.
    """

    def __init__(
        self, size: int, seed: int = 0, split: str = "train", seconds: float = 10.0, vocals: float = 0.3
    ) -> None:
        clip_seed(seed, split, 0)  # refuses a wrong split now
        self.size, self.seed, self.split, self.seconds, self.vocals = size, seed, split, seconds, vocals

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Clip:
        if not 0 <= index < self.size:
            raise IndexError(f"index must be 0..{self.size - 1}, got {index}")
        return random_clip(clip_seed(self.seed, self.split, index), self.seconds, self.vocals)

    def __iter__(self) -> Iterator[Clip]:
        return (self[i] for i in range(self.size))
