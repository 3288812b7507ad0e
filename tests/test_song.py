"""A song's file carries what made it, and its picture shows what it holds."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from acefast.audio import FORMATS, load_audio, read_tags
from acefast.request import RequestError
from acefast.song import Song, shorten

RATE = 48_000
REQUEST = {
    "prompt": "boom bap,\n90 bpm, $dusty$ drums, 日本語 🎵",
    "lyrics": '[Verse]\nЖил "был"\n',
    "bpm": 90,
    "key": "A minor",
    "seed": 7,
    "steps": None,
}


def make(seconds: float = 1.0, request=REQUEST, **fields) -> Song:
    t = np.arange(round(seconds * RATE)) / RATE
    audio = (0.5 * np.stack([np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 3000 * t)])).astype(np.float32)
    given = dict(latents=torch.zeros(25, 64), seed=42, timings={"decode": 1.5}, request=request, model="demo")
    return Song(audio, **(given | fields))


class Asked:
    """Stands for a Request: an object with to_dict()."""

    def to_dict(self):
        return dict(REQUEST)


@pytest.mark.parametrize("request_", (REQUEST, Asked()), ids=("dict", "object"))
@pytest.mark.parametrize("extension", FORMATS)
def test_the_file_tells_what_made_the_song(extension, request_, tmp_path):
    song = make(request=request_)
    path = song.save(tmp_path / f"a{extension}")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    tags = read_tags(path)
    assert tags["title"] == "boom bap, 90 bpm, $dusty$ drums, 日本語 🎵" and tags["artist"] == "demo"
    assert tags["software"].startswith("acefast")
    told = json.loads(tags["comment"])
    assert told == song.metadata()
    assert told["prompt"] == REQUEST["prompt"] and told["seed"] == 42 and told["model"] == "demo"
    assert told["options"] == {"lyrics": REQUEST["lyrics"], "bpm": 90, "key": "A minor"}
    assert REQUEST["seed"] == 7  # the caller's own dict is left alone


def test_json_beside_the_song_has_timings_and_codes_too(tmp_path):
    song = make(codes=[1, 2, 3])
    song.save(tmp_path / "a.flac", subtype="int24", json=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.flac", "a.json"]
    told = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert song.metadata().items() <= told.items()
    assert told["timings"] == {"decode": 1.5} and told["codes"] == [1, 2, 3] and told["sample_rate"] == RATE
    assert told["duration"] == 1.0


def test_a_comment_too_long_is_cut_where_it_still_parses(tmp_path):
    request = REQUEST | {"lyrics": "лирика\n" * 20_000, "codes": list(range(20_000))}
    path = make(request=request).save(tmp_path / "a.wav", json=True)
    told = json.loads(read_tags(path)["comment"])
    assert sorted(told["cut"]) == ["codes", "lyrics"] and told["options"]["codes"] is None
    assert len(told["options"]["lyrics"]) > 8000 and request["lyrics"].startswith(told["options"]["lyrics"])
    assert told["prompt"] == REQUEST["prompt"] and told["seed"] == 42
    beside = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert beside["options"]["lyrics"] == request["lyrics"] and "cut" not in beside


def test_a_song_without_a_request_is_saved_and_drawn(tmp_path):
    song = Song(np.zeros((2, 4800), np.float32))
    told = json.loads(read_tags(song.save(tmp_path / "a.wav"))["comment"])
    assert told == {"prompt": None, "model": None, "seed": None, "duration": 0.1, "options": {}}
    assert song.plot(tmp_path / "a.png").exists()


def test_a_song_is_a_source_for_another():
    song = make()
    np.testing.assert_array_equal(load_audio(song), song.audio)


def test_a_bad_json_name_stops_the_saving_before_the_audio(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(RequestError, match=r"'.*a.json' is not a regular file"):
        make().save(tmp_path / "a.wav", json=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("failing", ["json", "png"])
def test_what_is_saved_together_is_there_together_or_not_at_all(failing, tmp_path, monkeypatch):
    import acefast.picture

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    files = {name: tmp_path / name for name in ("a.flac", "a.json", "a.png")}
    for file in files.values():
        file.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(*((type(tmp_path), "write_text") if failing == "json" else (acefast.picture, "draw")), full)
        with pytest.raises(RequestError, match=rf"writing '.*a\.{failing}' failed .* left nothing behind"):
            make(0.1).save(files["a.flac"], json=True, plot=files["a.png"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(files, b"old")
    make(0.1).save(files["a.flac"], json=True, plot=files["a.png"])
    assert all(file.read_bytes() != b"old" for file in files.values()) and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("could not create a primitive")], ids=repr)
def test_too_little_memory_to_save_or_draw_is_one_sentence_and_no_file(error, tmp_path, monkeypatch):
    import acefast.picture

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(acefast.picture, "mel_spectrogram", fail)
    with pytest.raises(RequestError, match=r"^plot ran out of memory.*; make a shorter song"):
        make(0.1).plot(tmp_path / "a.png")
    with pytest.raises(RequestError, match=r"^saving ran out of memory.*; make a shorter song"):
        make(0.1).save(tmp_path / "a.wav", plot=tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


ODD = {
    "one dimension": dict(audio=np.zeros(9, np.float32)),
    "a list": dict(audio=[[0.0] * 9] * 2),
    "a tensor": dict(audio=torch.zeros(2, 9)),
    "whole numbers": dict(audio=np.zeros((2, 9), np.int16)),
    "no rate": dict(audio=np.zeros((2, 9), np.float32), sample_rate=0),
    "half a rate": dict(audio=np.zeros((2, 9), np.float32), sample_rate=0.5),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_song_is_refused_in_one_sentence(odd):
    with pytest.raises(RequestError, match=r"^(audio|sample_rate) of a Song must be .*, got ") as caught:
        Song(**ODD[odd])
    assert str(caught.value).isprintable()


def test_a_song_of_no_samples_is_neither_saved_nor_drawn(tmp_path):
    song = Song(np.zeros((2, 0), np.float32))
    for call, name in ((song.save, "a.wav"), (song.plot, "a.png")):
        with pytest.raises(RequestError):
            call(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_repr_is_one_short_line():
    text = repr(make(2.5, request=REQUEST | {"prompt": "a " * 500}))
    assert text.startswith("Song(2.50 s, 48000 Hz, seed=42, model='demo', 'a a") and len(text) < 120
    assert "array" not in text and make(2.5).duration == 2.5


def test_shorten_keeps_short_lines_and_ends_long_ones_in_an_ellipsis():
    assert shorten(" a\n b ", 3) == "a b" and shorten("abcd efgh", 6) == "abcd…" and len(shorten("x" * 99, 10)) == 10


def _pixels(path):
    raw = path.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n" and raw[-8:-4] == b"IEND"
    from matplotlib.image import imread

    return struct.unpack(">II", raw[16:24]), imread(path)


def test_plot_is_a_png_of_1400_by_700_that_shows_the_song(tmp_path, recwarn):
    path = make().plot(str(tmp_path / "a.png"))
    size, image = _pixels(path)
    assert size == (1400, 700) and not recwarn.list  # no missing-glyph warnings for the Japanese in the prompt
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    bright = [row for row in range(300, 640) if image[row, 700, :3].sum() > 1.5]  # in the middle of the song
    gaps = np.diff(bright)
    assert 2 <= len(bright) <= 80 and gaps.max() > 40  # two lines, apart


@pytest.mark.parametrize("samples, channels", [(1, 2), (100, 1), (48_000 * 25, 2)])
def test_plot_takes_any_length_and_mono(samples, channels, tmp_path):
    audio = np.random.default_rng(0).uniform(-1, 1, (channels, samples)).astype(np.float32)
    assert _pixels(Song(audio).plot(tmp_path / "a.png"))[0] == (1400, 700)


def test_a_long_or_hostile_prompt_stays_inside_the_picture(tmp_path, recwarn):
    for prompt in ("W" * 5000, "$\\nosuch$ {} % \x07 \ud800 \\", "三" * 500):
        _, image = _pixels(make(0.1, request={"prompt": prompt}).plot(tmp_path / "a.png"))
        assert image[:50, 1345:, :3].min() == 1  # white right of the title
    assert not recwarn.list


def test_plot_failing_midway_leaves_the_old_picture(tmp_path, monkeypatch):
    import acefast.picture

    (tmp_path / "a.png").write_bytes(b"old")

    def fail(file, *_, **__):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(acefast.picture, "draw", fail)
    with pytest.raises(KeyboardInterrupt):
        make().plot(tmp_path / "a.png")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_plot_refuses_other_formats_missing_folders_and_nan(tmp_path):
    with pytest.raises(RequestError, match=r"plot: draws a PNG, got '.*a.pdf'; end the name in .png"):
        make().plot(tmp_path / "a.pdf")
    with pytest.raises(RequestError, match=r"the folder '.*x' does not exist"):
        make().plot(tmp_path / "x/a.png")
    song = make()
    song.audio[0, 3] = np.nan
    with pytest.raises(RequestError, match=r"plot: 1 of 96000 samples are NaN"):
        song.plot(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_plot_says_what_to_install(tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.font_manager", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RequestError, match=re.escape("run pip install acefast[plot]")):
        make().plot(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_plot_never_imports_pyplot_and_song_imports_no_matplotlib(tmp_path):
    code = f"""
import sys, numpy as np
from acefast.song import Song
assert not [m for m in ("matplotlib", "soundfile", "soxr") if m in sys.modules]
Song(np.zeros((2, 4800), np.float32)).plot({str(tmp_path / "a.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
