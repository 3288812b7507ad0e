"""The model in the package makes the music it promises, on prompts and seeds that nothing was tuned on."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import acefast
from acefast import locate, metrics
from acefast.cli import main
from acefast.locate import DEMO

sys.path.insert(0, str(Path(__file__).parents[1] / "examples/demo_model"))  # plain modules

from dataset import Dataset, is_held_out
from render import render
from styles import STYLES

RATE, SECONDS, SEED = 48_000, 12, 2026
PER_STYLE = 3  # songs: 24 of the eight styles


@pytest.fixture(scope="module")
def pipe():
    return acefast.load("demo", device="cpu", dtype="float32")


def prompts() -> list:
    """The first clips of each style whose captions no training has read."""
    chosen: dict[str, list] = {style: [] for style in STYLES}
    for clip in Dataset(400, seed=SEED, split="held-out", seconds=1, vocals=0):
        if len(chosen[clip.style]) < PER_STYLE:
            chosen[clip.style].append(clip)
        if all(len(clips) == PER_STYLE for clips in chosen.values()):
            break
    return [clip for clips in chosen.values() for clip in clips]


def make(pipe, clip, seed, **options):
    known = dict(bpm=clip.bpm, key=clip.key, time_signature=clip.time_signature)
    return pipe.generate(clip.prompt, duration=SECONDS, seed=seed, instrumental=True, **{**known, **options})


@pytest.fixture(scope="module")
def songs(pipe):
    """(clip, song) of every prompt."""
    clips = prompts()
    assert len(clips) == PER_STYLE * len(STYLES) == 24 and all(is_held_out(clip.prompt) for clip in clips)
    return [(clip, make(pipe, clip, SEED + i)) for i, clip in enumerate(clips)]


def near(measured: float, asked: float) -> bool:
    return abs(measured / asked - 1) <= 0.03


def test_songs_have_the_tempo_asked_for(songs, record_property):
    told, exact, octave = [], 0, 0
    for clip, song in songs:
        found = metrics.tempo(song.audio, RATE).bpm
        exact += near(found, clip.bpm)
        octave += near(found, clip.bpm / 2) or near(found, clip.bpm * 2)
        told.append(f"{clip.style} {clip.bpm}: {found:.1f}")
    record_property("tempo", f"{exact} as asked, {octave} at half or double, of {len(songs)}")
    assert (exact + octave) / len(songs) >= 0.85, (exact, octave, told)


def test_songs_have_a_beat_and_noise_has_none(songs):
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal((2, RATE * SECONDS)).astype(np.float32)
    strengths = [metrics.beat_strength(song.audio, RATE) for _, song in songs]
    assert np.median(strengths) >= 4 * metrics.beat_strength(noise, RATE), strengths


def test_songs_are_finite_unclipped_and_alike_in_loudness(songs):
    for _, song in songs:
        assert song.audio.shape == (2, RATE * SECONDS) and np.isfinite(song.audio).all()
        assert metrics.clipping(song.audio).share == 0
    loudness = {style: [] for style in STYLES}
    for clip, song in songs:
        loudness[clip.style].append(metrics.loudness(song.audio, RATE))
    means = {style: float(np.mean(values)) for style, values in loudness.items()}
    assert max(means.values()) - min(means.values()) <= 6, means


def test_trap_has_more_hats_than_boom_bap(pipe):
    def hats(prompt: str, bpm: int) -> float:
        made = [pipe.generate(prompt, bpm=bpm, duration=SECONDS, seed=seed) for seed in range(4)]
        return float(np.mean([metrics.onset_rate(song.audio, RATE) for song in made]))

    trap, boom_bap = hats("trap beat, fast hi-hat rolls, 808", 140), hats("boom bap, dusty drums, warm bass", 90)
    assert trap >= 1.5 * boom_bap, (trap, boom_bap)


def test_no_song_is_a_copy_of_a_training_clip(songs):
    """Of the first clips that training read, in the song's own style; the same clips among themselves are the scale."""
    style = "boom bap"
    clips = [clip.audio for clip in Dataset(160, seed=1, seconds=SECONDS) if clip.style == style][:12]
    other = metrics.originality(clips[0], RATE, clips[1:]).distance
    for clip, song in songs:
        if clip.style == style:
            assert metrics.originality(song.audio, RATE, clips).distance >= min(0.1, other)


def test_decoder_gives_back_sounds_it_never_heard(pipe, record_property):
    found = []
    for i, style in enumerate(("boom bap", "trap", "hip house")):
        clip = render(style, STYLES[style].bpm[0] + 5, seconds=8, seed=2 * (SEED + i) + 1)  # odd seeds are held out
        latents, _ = pipe.model.encode(clip.audio)
        audio = pipe.model.decode(latents)[0].numpy()
        reference = clip.audio[:, : audio.shape[1]]
        found.append(metrics.multi_resolution_stft_distance(reference, audio))
        assert near(metrics.tempo(audio, RATE).bpm, metrics.tempo(reference, RATE).bpm)
    convergence, log_magnitude = (float(v) for v in np.mean(found, 0))
    record_property(
        "reconstruction", f"spectral convergence {convergence:.2f}, log magnitude {log_magnitude:.2f} neper"
    )
    assert convergence <= 0.85 and log_magnitude <= 0.9


def test_seeds_differ_and_a_seed_is_a_song(pipe):
    def song(seed):
        return pipe.generate("boom bap, dusty drums", bpm=90, duration=6, seed=seed).audio

    first = song(1)
    assert first.tobytes() == song(1).tobytes()
    assert np.abs(first - song(2)).max() > 0.05


def test_a_stream_is_the_song_bit_for_bit(pipe):
    options = dict(bpm=90, duration=8, seed=1, normalize=None)
    chunks = [chunk.samples for chunk in pipe.stream("boom bap, dusty drums", **options)]
    assert np.concatenate(chunks, 1).tobytes() == pipe.generate("boom bap, dusty drums", **options).audio.tobytes()


def test_segments_of_a_stream_join_without_a_step_and_keep_the_tempo(pipe):
    stream = pipe.stream("boom bap, dusty drums", bpm=90, duration=25, segment=10, context=6, seed=SEED)
    audio = np.concatenate([chunk.samples for chunk in stream], 1)
    assert audio.shape == (2, 25 * RATE) and near(metrics.tempo(audio, RATE).bpm, 90)
    steps = np.abs(np.diff(audio)).max(0)
    joins = np.zeros(len(steps), bool)
    for second in (10, 20):  # what is blended lies before
        joins[round((second - 0.9) * RATE) : round((second + 0.1) * RATE)] = True
    assert steps[joins].max() <= steps[~joins].max()
    ordinary = [steps[at : at + RATE].max() for at in range(0, 24 * RATE, RATE // 4)]
    assert steps[joins].max() <= np.quantile(ordinary, 0.95)


@pytest.mark.parametrize("task", ["repaint", "extend"])
def test_what_is_not_asked_for_stays_and_the_rest_keeps_the_tempo(pipe, songs, task):
    clip, source = songs[0]
    where = dict(start=4, end=8) if task == "repaint" else dict(duration=18)
    made = pipe.generate(clip.prompt, task=task, source=source, bpm=clip.bpm, key=clip.key, seed=5, **where)
    kept = slice(0, 3 * RATE) if task == "repaint" else slice(0, 11 * RATE)
    assert np.abs(made.audio[:, kept] - source.audio[:, kept]).max() <= 0.02 * np.abs(source.audio).max()
    if task == "repaint":
        inside = slice(5 * RATE, 7 * RATE)
        assert np.abs(made.audio[:, inside] - source.audio[:, inside]).max() > 0.05
    found = metrics.tempo(made.audio, RATE).bpm
    assert any(near(found, clip.bpm * factor) for factor in (0.5, 1, 2)), found


def test_cover_keeps_the_tempo(pipe, songs):
    clip, source = songs[0]
    made = pipe.generate(clip.prompt, task="cover", source=source, bpm=clip.bpm, key=clip.key, seed=7)
    found = metrics.tempo(made.audio, RATE).bpm
    assert any(near(found, clip.bpm * factor) for factor in (0.5, 1, 2)), found


def test_first_command_of_the_readme_makes_its_beat_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    words = shlex.split(re.search(r"acefast generate .*", text)[0])
    assert words[-4:] == ["--duration", "12", "-o", "beat.wav"] and "--model demo" in " ".join(words)
    for seed in range(3):  # the tempo is in the prompt alone
        assert main([*words[1:], "--seed", str(seed)]) == 0
        audio, rate = soundfile.read("beat.wav", always_2d=True)
        assert near(metrics.tempo(audio.T, rate).bpm, 90) and metrics.beat_strength(audio.T, rate) > 0.3


def test_demo_is_small_whole_and_described():
    assert locate.find("demo") == DEMO
    files = [f for f in DEMO.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 25e6
    card = (DEMO / "README.md").read_text("utf-8")
    for heading in ("Data", "Licence", "What it can do", "What it cannot do", "Retrain"):
        assert f"## {heading}" in card, heading


def test_a_streamed_song_is_the_song_bit_for_bit(pipe):
    options = {"duration": 6.0, "steps": 2, "seed": 1, "normalize": None}
    whole = pipe.generate("boom bap, 90 bpm", **options).audio
    chunks = [chunk.samples for chunk in pipe.stream("boom bap, 90 bpm", **options)]
    assert len(chunks) > 1 and np.array_equal(np.concatenate(chunks, 1), whole) and whole.any()
