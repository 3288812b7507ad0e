"""The styles: what each allows, as data. A pattern is one character per sixteenth: x loud, o soft, . nothing; it may
span several bars. What is written for 3/4 stands under ``waltz``: only styles that have been played so have it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Patterns:
    """Choices per drum; every list holds alternatives, of which a clip takes one."""

    kick: tuple[str, ...]
    snare: tuple[str, ...]
    hat: tuple[str, ...]
    open: tuple[str, ...] = ("",)
    ghost: tuple[str, ...] = ("",)  # extra soft hits of the percussion below


@dataclass(frozen=True)
class Style:
    """One style.

    Attributes:
        names: how captions call it, the first is the one ``render`` takes.
        bpm: natural tempi, lowest and highest.
        swing: how late off-sixteenths come: 0.5 is straight, 0.66 a triplet.
        four, waltz: patterns in 4/4, and in 3/4 or None.
        backbeat: sounds that may play the snare pattern, each a tuple played together.
        percussion: sounds that may play the ghost pattern.
        rolls: chance per beat that hi-hats break into 32nds or triplets.
        drums, bass, keys, lead: kit characters (drums.py) and instruments (voices.py); lead may be "none".
        minor: share of clips in minor.
        chord: numbers of notes in a chord. chord_bars: bars per chord.
        comp: chord patterns, "held" or "arp" or a pattern; bassline: "kick", "808", "walk" or "octaves".
        crackle: share of clips with vinyl noise. wet: seconds of room.
    """

    names: tuple[str, ...]
    bpm: tuple[int, int]
    swing: tuple[float, float]
    four: Patterns
    backbeat: tuple[tuple[str, ...], ...]
    percussion: tuple[str, ...]
    drums: tuple[str, ...]
    bass: tuple[str, ...]
    keys: tuple[str, ...]
    lead: tuple[str, ...]
    bassline: tuple[str, ...]
    comp: tuple[str, ...]
    minor: float
    waltz: Patterns | None = None
    rolls: float = 0.0
    chord: tuple[int, ...] = (3,)
    chord_bars: tuple[int, ...] = (1,)
    crackle: float = 0.0
    wet: tuple[float, float] = (0.4, 0.8)


EIGHTHS, SIXTEENTHS, OFFBEATS = "x.o.x.o.x.o.x.o.", "xoxoxoxoxoxoxoxo", "..x...x...x...x."
BACKBEAT, HALFTIME = "....x.......x...", "........x......."

STYLES = {
    style.names[0]: style
    for style in (
        Style(
            names=(
                "boom bap",
                "boom-bap",
                "90s boom bap hip hop",
                "old school hip hop, boom bap",
                "golden age rap beat",
            ),
            bpm=(80, 100),
            swing=(0.54, 0.62),
            four=Patterns(
                kick=("x.....x.x.......", "x..o......x.....", "x......x..x.....", "x.....xx..x.....x......x..xo...."),
                snare=(BACKBEAT, "....x..o.o..x...", "....x.......x..o"),
                hat=(EIGHTHS, "x.o.x.o.x.oox.o.", "x.x.x.x.x.x.x.x."),
                open=("", "..............x.", "......x........."),
                ghost=("", "...........o..o.", "..o.......o....."),
            ),
            waltz=Patterns(
                kick=("x.....x.....", "x.........x."),
                snare=("........x...", "....x...x..."),
                hat=("x.o.x.o.x.o.",),
            ),
            backbeat=(("snare",), ("snare",), ("snare", "clap")),
            percussion=("rim", "conga", "shaker"),
            drums=("dusty", "dusty", "crisp"),
            bass=("upright", "upright", "sub"),
            keys=("electric piano", "piano", "guitar", "strings"),
            lead=("none", "flute", "piano", "bell"),
            bassline=("walk", "kick"),
            comp=("held", "x.....x.........", "x.........x....."),
            minor=0.8,
            chord=(3, 4),
            chord_bars=(1, 1, 2),
            crackle=0.6,
        ),
        Style(
            names=("lo-fi", "lofi hip hop", "lo-fi hip hop", "chillhop", "lofi study beat"),
            bpm=(70, 90),
            swing=(0.56, 0.64),
            four=Patterns(
                kick=("x......x.x......", "x.........x.....", "x......xx......."),
                snare=(BACKBEAT, "....x.......x..o"),
                hat=(EIGHTHS, "x.o.x.oox.o.x.o.", "..o...o...o...o."),
                ghost=("", "......o.......o.", "...o.....o......"),
            ),
            waltz=Patterns(kick=("x.....x.....",), snare=("........x...", "....x...x..."), hat=("x.o.x.o.x.o.",)),
            backbeat=(("snare",), ("rim",), ("snare", "rim")),
            percussion=("rim", "shaker", "conga"),
            drums=("mellow", "mellow", "dusty"),
            bass=("sub", "upright"),
            keys=("electric piano", "electric piano", "piano", "guitar", "pad"),
            lead=("none", "flute", "bell", "guitar"),
            bassline=("kick", "walk"),
            comp=("held", "x.........x.....", "x..............."),
            minor=0.5,
            chord=(4, 4, 5),
            crackle=0.9,
            wet=(0.5, 0.9),
        ),
        Style(
            names=("west coast", "g-funk", "west coast g-funk", "west coast rap beat", "90s g-funk"),
            bpm=(88, 108),
            swing=(0.52, 0.57),
            four=Patterns(
                kick=("x..x..x...x.....", "x.....x.x.x.....", "x..x....x.x.....", "x......x..x...x."),
                snare=(BACKBEAT,),
                hat=(EIGHTHS, SIXTEENTHS, "x.x.x.x.x.x.x.x."),
                open=("", "..............x."),
                ghost=("", "..o...o...o...o."),
            ),
            backbeat=(("snare", "clap"), ("clap",), ("snare",)),
            percussion=("shaker", "conga"),
            drums=("crisp",),
            bass=("synth", "synth", "sub"),
            keys=("electric piano", "organ", "pad", "strings"),
            lead=("whine", "whine", "none", "flute"),
            bassline=("octaves", "kick"),
            comp=("held", "..x...x...x...x.", "x..x..x........."),
            minor=0.85,
            chord=(3, 4),
            chord_bars=(1, 2),
        ),
        Style(
            names=("hip house", "hip-house", "house rap beat", "club rap, hip house"),
            bpm=(108, 128),
            swing=(0.5, 0.54),
            four=Patterns(
                kick=("x...x...x...x...",),
                snare=(BACKBEAT,),
                hat=(SIXTEENTHS, "o.x.o.x.o.x.o.x.", OFFBEATS),
                open=(OFFBEATS, "......x.......x."),
                ghost=("", "...o..o....o..o."),
            ),
            backbeat=(("clap",), ("snare", "clap")),
            percussion=("conga", "shaker", "rim"),
            drums=("crisp", "hard"),
            bass=("synth", "sub"),
            keys=("organ", "piano", "pluck", "strings"),
            lead=("none", "bell", "pluck"),
            bassline=("octaves",),
            comp=("x..x..x...x.....", "..x...x...x...x.", "x..x..x..x..x..."),
            minor=0.65,
            chord=(3, 4),
            wet=(0.4, 0.7),
        ),
        Style(
            names=("phonk", "drift phonk", "memphis rap, phonk", "dark phonk"),
            bpm=(115, 140),
            swing=(0.5, 0.53),
            four=Patterns(
                kick=("x.....x...x.....", "x..x..x...x...x.", "x...x...x...x..."),
                snare=(BACKBEAT, "....x.......x.x."),
                hat=(SIXTEENTHS, "x.x.x.x.x.x.x.x.", OFFBEATS),
                open=("", OFFBEATS),
            ),
            backbeat=(("snare", "clap"), ("clap",)),
            percussion=("rim",),
            drums=("hard", "hard", "dusty"),
            bass=("808",),
            keys=("pad", "strings", "bell"),
            lead=("cowbell",),
            bassline=("808",),
            comp=("held",),
            minor=1.0,
            chord_bars=(1, 2),
            crackle=0.4,
            wet=(0.6, 1.1),
        ),
        Style(
            names=("trap", "trap beat", "southern trap", "atlanta trap", "modern trap, rap beat"),
            bpm=(120, 160),
            swing=(0.5, 0.5),
            four=Patterns(
                kick=("x.........x.....", "x.....x.......x.", "x..x......x.....", "x.........x.....x.....x...x.x..."),
                snare=(HALFTIME, "........x......o"),
                hat=("x.x.x.x.x.x.x.x.", "xoxoxoxoxoxoxoxo", "x.xox.xox.xox.xo"),
                open=("", "..............x.", "......x........."),
                ghost=("", "...o......o.....", "......o.......o."),
            ),
            backbeat=(("clap",), ("snare", "clap"), ("snare",)),
            percussion=("rim", "conga"),
            rolls=0.4,
            drums=("crisp", "crisp", "hard"),
            bass=("808",),
            keys=("bell", "pluck", "piano", "pad", "strings"),
            lead=("bell", "flute", "none", "pluck"),
            bassline=("808",),
            comp=("held", "arp", "arp", "x.....x.....x..."),
            minor=0.9,
            chord_bars=(1, 2),
            wet=(0.6, 1.2),
        ),
        Style(
            names=("drill", "uk drill", "drill beat", "brooklyn drill", "dark drill rap beat"),
            bpm=(134, 150),
            swing=(0.5, 0.5),
            four=Patterns(
                kick=("x.....x.........x..x......x.....", "x..........x....x.....x........."),
                snare=("........x...................x...", "........x.............x.....x..."),
                hat=("x..x..x.x..x..x.", "x..x..x..x..x.x."),
                open=("", "..............................x."),
                ghost=("...o..o.......o.", "......o....o..o."),
            ),
            backbeat=(("snare",), ("snare", "clap")),
            percussion=("rim", "conga"),
            rolls=0.22,
            drums=("crisp", "hard"),
            bass=("808",),
            keys=("piano", "strings", "pad", "bell"),
            lead=("strings", "bell", "none", "flute", "piano"),
            bassline=("808",),
            comp=("held", "arp", "x..x..x........."),
            minor=1.0,
            chord_bars=(1, 2),
            wet=(0.6, 1.2),
        ),
        Style(
            names=("jersey club", "jersey club rap", "jersey club beat", "club rap, jersey club"),
            bpm=(128, 150),
            swing=(0.5, 0.5),
            four=Patterns(
                kick=("x...x...x..x..x.",),
                snare=("....x.......x...", "...o..x....o..x.", "....x..o....x.o."),
                hat=(OFFBEATS, "x.x.x.x.x.x.x.x.", "..x...x...x...xo"),
                open=("", OFFBEATS),
                ghost=("...x..x.........", "......x..x..x...", ".......x..x....."),
            ),
            backbeat=(("clap",), ("snare", "clap")),
            percussion=("squeak", "squeak", "rim"),
            drums=("hard", "crisp"),
            bass=("808", "sub"),
            keys=("pluck", "pad", "piano", "bell", "electric piano"),
            lead=("none", "pluck", "bell"),
            bassline=("kick", "808"),
            comp=("held", "x..x..x...x.....", "arp"),
            minor=0.6,
            chord=(3, 4),
            wet=(0.4, 0.9),
        ),
    )
}
