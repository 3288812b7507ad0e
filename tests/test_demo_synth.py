"""The demo model's training sound: what its labels say is what one hears."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "examples/demo_model"
sys.path.insert(0, str(FOLDER))  # its files import each other as plain modules

from captions import BASS, DRUMS, KEYS, LEADS, SLIDING, facts  # noqa: E402
from dataset import Dataset, clip_seed, is_held_out, random_clip  # noqa: E402
from render import render  # noqa: E402
from styles import STYLES  # noqa: E402
from synth import SR, loudness  # noqa: E402
from vocals import syllables  # noqa: E402

HOP = 240  # 5 ms
LYRICS = "money in the morning\nwalking through the city\nI remember everything\nall I want is melody"


@pytest.fixture(scope="module")
def clips():
    """One clip of 9 s per style, without its intro."""
    return {style: render(style, seconds=9, seed=11, intro=0) for style in STYLES}


def flux(audio: np.ndarray) -> np.ndarray:
    """How much the log spectrum rises per 5 ms: [frames]; frame i looks at samples up to 240 * i + 480."""
    padded = np.pad(audio.mean(0), (480, 480))
    frames = np.lib.stride_tricks.sliding_window_view(padded, 960)[::HOP] * np.hanning(960)
    log = np.log1p(100 * np.abs(np.fft.rfft(frames)))
    return np.maximum(np.diff(log, axis=0, prepend=log[:1]), 0).sum(1)


def hits(clip) -> np.ndarray:
    return np.unique(np.concatenate([clip.onsets.get(name, []) for name in ("kick", "snare", "clap")]))


@pytest.mark.parametrize("style", STYLES)
def test_tempo_heard_is_the_tempo_told(clips, style):
    clip = clips[style]
    rise = flux(clip.audio)
    time = np.arange(len(rise)) * HOP / SR
    tempi = clip.bpm * np.linspace(0.92, 1.08, 321)
    pulse = np.abs(np.exp(-2j * np.pi * np.outer(tempi / 60 * 2, time)) @ (rise - rise.mean()))  # at eighths
    assert abs(tempi[pulse.argmax()] / clip.bpm - 1) < 0.01


@pytest.mark.parametrize("style", STYLES)
def test_kick_and_snare_are_on_the_grid_and_in_the_audio(clips, style):
    clip = clips[style]
    steps = hits(clip) * clip.bpm / 15
    late = 2 * clip.choices.swing - 1
    even = np.abs(steps - 2 * np.round(steps / 2)) < 1e-6
    assert (even | (np.abs((steps - late - 1) / 2 - np.round((steps - late - 1) / 2)) < 1e-6)).all()
    assert len(steps) >= 2 * len(clip.beats) / 4
    rise = flux(clip.audio)
    first = np.round(hits(clip)[hits(clip) > 0.05] * SR / HOP).astype(int)
    loudest = np.array([rise[i - 2 : i + 3].max() for i in first])
    assert np.mean(loudest > 2 * np.median(rise)) > 0.9


def test_style_and_tempo_agree_by_default():
    for style, spec in STYLES.items():
        assert spec.bpm[0] <= render(style, seconds=1, seed=5).bpm <= spec.bpm[1]


def test_same_seed_same_bytes_and_another_seed_another_clip():
    one, again, other = (random_clip(seed, 3) for seed in (8, 8, 10))
    assert one.audio.tobytes() == again.audio.tobytes() and one.prompt == again.prompt
    assert one.audio.tobytes() != other.audio.tobytes()
    assert render("trap", 140, "A minor", 3, 1).audio.tobytes() != render("trap", 140, "A minor", 3, 2).audio.tobytes()


def test_audio_is_clean_and_equally_loud_in_every_style(clips):
    levels = []
    for clip in clips.values():
        audio = clip.audio
        assert audio.dtype == np.float32 and audio.shape == (2, 9 * SR)
        assert np.isfinite(audio).all()
        assert 0.3 < np.abs(audio).max() <= 10 ** (-1 / 20)
        assert np.abs(audio.mean(1)).max() < 1e-3
        levels.append(loudness(np.fft.rfft(audio), audio.shape[1], audio.shape[1]))
    assert max(levels) - min(levels) < 6 and abs(np.mean(levels) + 16) < 1


def test_trap_has_half_as_many_hats_again_as_boom_bap():
    def density(style: str) -> float:
        return np.mean([len(render(style, seconds=6, seed=s, intro=0).onsets["hat"]) / 6 for s in range(4)])

    assert density("trap") >= 1.5 * density("boom bap")


def test_bass_is_mono(clips):
    for clip in clips.values():
        left, right = np.fft.rfft(clip.audio)[:, : 100 * 9]  # below 100 Hz
        assert np.sum(np.abs(left - right) ** 2) < 1e-3 * np.sum(np.abs(left + right) ** 2)
        middle = np.sqrt(np.mean(clip.audio.mean(0) ** 2))
        assert 0.02 < np.std(clip.audio[0] - clip.audio[1]) / 2 / middle < 0.5  # wide, but modestly


@pytest.mark.parametrize("key, tonic", [("C# minor", 1), ("F major", 5), ("Bb minor", 10), ("E major", 4)])
def test_key_heard_is_the_key_told(key, tonic):
    steps = np.array([0, 2, 4, 5, 7, 9, 11] if "major" in key else [0, 2, 3, 5, 7, 8, 10])
    shares = []
    for style in ("boom bap", "drill", "hip house"):
        audio = render(style, key=key, seconds=8, seed=2).audio
        power = np.abs(np.fft.rfft(audio.mean(0))) ** 2
        f = np.fft.rfftfreq(audio.shape[1], 1 / SR)
        heard = (f > 250) & (f < 1500)  # above the kick, which falls through all notes
        notes = np.round(69 + 12 * np.log2(f[heard] / 440)).astype(int) % 12
        chroma = np.bincount(notes, power[heard] / f[heard], 12)
        shares.append(chroma[(tonic + steps) % 12].sum() / chroma.sum())
    assert min(shares) > 0.75, shares  # noise would give 7 of 12 = 0.58


def test_captions_vary_and_say_what_is_true():
    clips = [random_clip(seed, 1.5) for seed in range(32)]
    assert len({clip.prompt for clip in clips}) >= 30
    for clip in clips:
        text, told = clip.prompt.lower(), facts(clip.choices)
        assert any(name in text for name in STYLES[clip.style].names), text
        assert any(phrase.lower() in text for phrases in told.values() for phrase in phrases), text
        assert [int(n) for n in re.findall(r"(\d+) bpm", text)] in ([], [clip.bpm])
        assert [k for k in re.findall(r"\b[a-g][#b]? (?:major|minor)\b", text)] in ([], [clip.key.lower()])
        for table, chosen in ((DRUMS, clip.choices.drums), (BASS, clip.choices.bass)):
            for name, phrases in table.items():
                assert name == chosen or not set(phrases) & set(text.split(", ")), text
        for table in (KEYS, LEADS):
            for name, phrases in table.items():
                played = name in (clip.choices.keys, clip.choices.lead)
                assert played or not set(map(str.lower, phrases)) & set(text.split(", ")), text
        assert clip.choices.slides or not any(phrase in text for phrase in SLIDING)
        assert clip.choices.crackle or not re.search("crackle|vinyl", text)
        assert clip.choices.rolls or "roll" not in text
        assert clip.instrumental or "instrumental" not in text


def test_dusty_drums_are_duller_than_crisp_ones():
    def treble(drums: str) -> float:
        clip = render("boom bap", 90, "A minor", 4, 3, drums=drums, intro=0, stems=True)
        power = np.abs(np.fft.rfft(clip.stems["drums"].mean(0))) ** 2
        return power[12_000 * 4 :].sum() / power.sum()

    assert treble("dusty") < 0.3 * treble("crisp")


def test_sliding_808_slides():
    clip = render("drill", 140, "A minor", 8, 5, bass="808", intro=0, stems=True)
    assert clip.choices.slides
    bass, moved = clip.stems["bass"][0], 0
    for start, end in zip(clip.onsets["bass"], clip.onsets["bass"][1:]):
        note = bass[int((start + 0.06) * SR) : int((end - 0.04) * SR)]
        if len(note) > 0.25 * SR:
            crossings = np.flatnonzero(np.diff(np.signbit(note)))
            gaps = np.diff(crossings)
            moved += bool(gaps[:3].mean() > 1.2 * gaps[-3:].mean() or gaps[-3:].mean() > 1.2 * gaps[:3].mean())
    assert moved >= 2


def test_each_syllable_is_one_vocal_note_and_the_beat_stays():
    bare = render("boom bap", 92, "D minor", 11, 4, intro=0, stems=True)
    sung = render("boom bap", 92, "D minor", 11, 4, LYRICS, intro=0, stems=True)
    assert sung.lyrics == LYRICS and bare.lyrics == "" and bare.instrumental and "vocals" not in bare.stems
    assert len(sung.onsets["vocals"]) == len(syllables(LYRICS)) == 27
    assert np.abs(sung.audio - bare.audio).max() > 0.05
    for part in ("kick", "drums", "bass"):
        np.testing.assert_array_equal(sung.stems[part], bare.stems[part])
    voice = sung.stems["vocals"][0]
    level = np.array([np.abs(voice[int(t * SR) : int((t + 0.1) * SR)]).max() for t in sung.onsets["vocals"]])
    assert level.min() > 0.1 * level.max()


def test_lyrics_that_find_no_room_are_not_claimed():
    clip = render("trap", 140, "D minor", 4, 4, LYRICS, intro=0)  # two bars, and one line takes both
    assert clip.lyrics == LYRICS.splitlines()[0]
    assert len(clip.onsets["vocals"]) == len(syllables(clip.lyrics))


@pytest.mark.parametrize(
    "word, count",
    [("time", 1), ("little", 2), ("melody", 3), ("walked", 1), ("wanted", 2), ("you", 1), ("everybody", 5), ("夜", 1)],
)
def test_syllables_are_counted_by_rule_of_thumb(word, count):
    assert len(syllables(word)) == count


def test_waltz_has_three_beats_to_the_bar():
    clip = render("lo-fi", 84, "C major", 9, 1, time_signature="3", intro=0)
    bars = clip.onsets["kick"] * 84 / 60 / 3
    assert clip.time_signature == "3"
    assert set(range(int(bars.max()) + 1)) <= set(np.round(bars[np.abs(bars - np.round(bars)) < 1e-6]))


def test_item_depends_on_seed_and_index_alone():
    short, long = Dataset(3, seed=1, seconds=1.5), Dataset(5, seed=1, seconds=1.5)
    assert [c.prompt for c in short] == [c.prompt for c in list(long)[:3]]
    assert short[2].audio.tobytes() == long[2].audio.tobytes()
    assert short[2].audio.tobytes() != Dataset(3, seed=2, seconds=1.5)[2].audio.tobytes()
    with pytest.raises(IndexError, match=r"0\.\.2"):
        short[3]


def test_training_and_held_out_share_neither_seeds_nor_captions():
    train, held = (Dataset(6, split=split, seconds=1) for split in ("train", "held-out"))
    assert not any(is_held_out(clip.prompt) for clip in train)
    assert all(is_held_out(clip.prompt) for clip in held)
    assert {clip_seed(0, "train", i) % 2 for i in range(50)} == {0}
    assert {clip_seed(0, "held-out", i) % 2 for i in range(50)} == {1}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"style": "polka"}, "style must be one of boom bap"),
        ({"bpm": 20}, "bpm must be 50..200, got 20"),
        ({"key": "H minor"}, "key must be a note and a mode"),
        ({"time_signature": "3"}, "time_signature of trap must be 4"),
        ({"drums": "steel"}, "drums must be one of dusty"),
        ({"seconds": 0}, "seconds must be 1..600"),
    ],
)
def test_wrong_arguments_are_told(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        render(**{"style": "trap", "seconds": 1.0} | wrong)
