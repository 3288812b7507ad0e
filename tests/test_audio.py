"""Audio in and out: what is read, what it becomes, and that a file is whole or absent."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from acefast import files
from acefast.audio import (
    FORMATS,
    check_output,
    load_audio,
    write_audio,
)
from acefast.request import RequestError

RATE = 48_000


def tone(frequency: float = 440.0, seconds: float = 1.0, rate: int = RATE, level: float = 0.5) -> np.ndarray:
    """[2, N]: a sine on the left, the same a quarter period later and at half the level on the right."""
    t = np.arange(round(seconds * rate)) / rate
    left, right = np.sin(2 * np.pi * frequency * t), 0.5 * np.cos(2 * np.pi * frequency * t)
    return (level * np.stack([left, right])).astype(np.float32)


def noise(samples: int, level: float = 0.25) -> np.ndarray:
    return (level * np.random.default_rng(0).standard_normal((2, samples))).clip(-1, 1).astype(np.float32)


@pytest.mark.parametrize("rate", (8_000, 22_050, 44_100, 48_000, 96_000))
def test_any_rate_keeps_pitch_and_level(rate, tmp_path):
    soundfile.write(tmp_path / "tone.wav", tone(1000, 1.0, rate).T, rate, subtype="FLOAT")
    loaded = load_audio(tmp_path / "tone.wav")
    assert loaded.shape == (2, RATE) and loaded.dtype == np.float32 and loaded.flags.c_contiguous
    middle = slice(RATE // 10, -RATE // 10)  # the resampler rings where the tone starts and stops
    np.testing.assert_allclose(loaded[:, middle], tone(1000)[:, middle], atol=2e-5)  # -94 dBFS: pitch, phase and level


def test_an_odd_length_is_resampled_to_the_nearest_sample():
    assert load_audio((noise(10_007), 44_100)).shape == (2, round(10_007 * 48_000 / 44_100))


def test_mono_is_doubled_and_of_many_channels_two_are_kept(tmp_path):
    x = noise(4000)
    for given in (x[0], x[:1], x[:1].T):
        np.testing.assert_array_equal(load_audio(given), np.stack([x[0], x[0]]))
    six = np.concatenate([x, np.zeros((4, 4000), np.float32)])
    soundfile.write(tmp_path / "six.wav", six.T, RATE, subtype="FLOAT")
    for given in (six, six.T, tmp_path / "six.wav", str(tmp_path / "six.wav")):
        np.testing.assert_array_equal(load_audio(given), x)


def test_arrays_tensors_pairs_and_songs_are_all_read():
    x = noise(4000)
    song = SimpleNamespace(audio=x, sample_rate=RATE)
    givens = (x, x.T, x.astype(np.float64), torch.from_numpy(x), torch.from_numpy(x).T, (x, RATE), [x, 48_000.0], song)
    for given in givens:
        np.testing.assert_array_equal(load_audio(given), x)
    half = load_audio(torch.from_numpy(x).bfloat16())
    np.testing.assert_allclose(half, x, rtol=2**-8)  # half an ulp of bfloat16
    assert load_audio(SimpleNamespace(audio=x, sample_rate=24_000)).shape == (2, 8000)


def test_what_is_loaded_shares_no_memory_with_what_was_given():
    x = noise(4000)
    load_audio(x)[:] = 0
    assert np.abs(x).max() > 0


@pytest.mark.parametrize(
    "dtype", (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32), ids=lambda d: d.__name__
)
def test_integers_are_scaled_from_their_full_range(dtype):
    info = np.iinfo(dtype)
    middle = 0 if info.min else (info.max + 1) // 2
    x = np.full((2, 2000), middle, dtype)
    x[:, 0], x[:, 1], x[:, 2] = info.min, info.max, middle + (info.max - middle + 1) // 2
    loaded = load_audio(x)
    assert loaded[0, 0] == -1 and loaded[0, 2] == 0.5 and loaded[0, 3] == 0
    assert loaded[0, 1] == pytest.approx(1 - 1 / (info.max - middle + 1), abs=1e-7)


def test_levels_above_full_scale_are_clamped_as_upstream_does():
    x = noise(4000)
    x[0, 7], x[1, 9] = 1.5, -3
    loaded = load_audio(x)
    assert loaded[0, 7] == 1 and loaded[1, 9] == -1


def test_silence_is_returned_as_it_is():
    np.testing.assert_array_equal(load_audio(np.zeros(1920, np.float32)), np.zeros((2, 1920)))


def test_the_shortest_length_is_the_callers():
    with pytest.raises(RequestError, match=r"at least 0.04 s long, got 1919 samples at 48 kHz"):
        load_audio(noise(1919))
    assert load_audio(noise(1920)).shape[1] == 1920
    assert load_audio(noise(1)[0], minimum_samples=1).shape == (2, 1)


def _file(folder, name, content: bytes):
    path = folder / name
    path.write_bytes(content)
    return path


BAD_SOURCES = {
    "missing": (lambda d: d / "no.wav", r"there is no file '.*no.wav'; check the path"),
    "folder": (lambda d: d, r"is a folder; name an audio file in it"),
    "empty": (lambda d: _file(d, "e.wav", b""), r"is empty \(0 bytes\); give an audio file"),
    "text": (lambda d: _file(d, "t.wav", b"no audio at all " * 99), r"is not audio that libsndfile reads; give wav"),
    "raw": (lambda d: _file(d, "t.raw", b"1234" * 99), r"is not audio that libsndfile reads"),
    "no samples": (lambda d: _header_only(d), r"holds no samples; give a longer recording"),
    "NUL in path": (lambda d: "a\0.wav", r"cannot open .*; check the path and its permissions"),
    "long path": (lambda d: d / ("a" * 300 + ".wav"), r"cannot open .*File name too long"),
    "one sample": (lambda d: noise(1)[0], r"at least 0.04 s long, got 1 sample at 48 kHz"),
    "one sample, 8 kHz": (lambda d: (noise(1)[0], 8000), r"at least 0.04 s long, got \d+ samples"),
    "NaN": (lambda d: np.where(np.arange(4000) == 3, np.nan, noise(4000)), r"2 of 8000 samples are NaN or infinite"),
    "infinite": (lambda d: np.where(np.arange(4000) == 3, -np.inf, noise(4000)), r"NaN or infinite"),
    "no array": (lambda d: {"a": 1}, r"needs a path, a Song, an array of samples or the pair .* got dict"),
    "bytes": (lambda d: b"RIFF", r"got bytes"),
    "rate first": (lambda d: (RATE, noise(4000)), r"needs a path, .* got int"),
    "rate": (lambda d: (noise(4000), 0), r"the sample rate must be 1000 to 1000000 Hz, got 0"),
    "rate's type": (lambda d: (noise(4000), "48k"), r"sample rate must be .* got '48k'"),
    "no size": (lambda d: np.zeros((2, 0)), r"samples must be \[N\], .* got \[2, 0\]"),
    "batch": (lambda d: np.zeros((1, 2, 4000)), r"got \[1, 2, 4000\]"),
    "latents": (lambda d: torch.zeros(15000, 64), r"is no audio of up to 32 channels"),
    "int64": (lambda d: np.zeros((2, 4000), np.int64), r"int64 have no agreed full scale"),
    "complex": (lambda d: np.zeros((2, 4000), np.complex64), r"dense array of real numbers, got one of complex64"),
    "sparse": (lambda d: torch.zeros(2, 4000).to_sparse(), r"dense array of real numbers, got one of sparse"),
    "meta": (lambda d: torch.zeros(2, 4000, device="meta"), r"dense array of real numbers, got one of meta"),
    "int16 as float": (lambda d: noise(4000) * 32768, r"within \+-1, got a peak of 3\d+"),
}


def _header_only(folder):
    soundfile.write(folder / "h.wav", np.zeros((0, 2)), RATE)
    return folder / "h.wav"


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_an_unusable_source_is_refused_in_one_sentence(case, tmp_path):
    make, sentence = BAD_SOURCES[case]
    with pytest.raises(RequestError, match=sentence) as caught:
        load_audio(make(tmp_path), "reference")
    message = str(caught.value)
    assert message.startswith("reference: ") and "\n" not in message and "Traceback" not in message


def test_a_file_cut_short_gives_what_is_left_of_it(tmp_path):
    write_audio(tmp_path / "whole.wav", noise(RATE))
    cut = _file(tmp_path, "cut.wav", (tmp_path / "whole.wav").read_bytes()[: 44 + 4 * 10_000])
    assert load_audio(cut).shape == (2, 10_000)


@pytest.mark.parametrize(
    "extension, subtype, step",
    [(".wav", "int16", 2**-15), (".wav", "int24", 2**-23), (".flac", "int16", 2**-15), (".flac", "int24", 2**-23)],
)
def test_integers_are_off_by_at_most_half_a_step_and_a_second_trip_changes_nothing(extension, subtype, step, tmp_path):
    x = noise(150_001)  # more than two chunks, odd
    x[:, :3] = [1, -1, 0]
    path = write_audio(tmp_path / f"a{extension}", x, RATE, subtype=subtype)
    back = load_audio(path)
    assert back.shape == x.shape
    inside = x < 1  # +1 is one step beyond the largest integer
    assert np.abs(back - x)[inside].max() <= step / 2 + 1e-9 and (1 - back[~inside] <= step).all()
    assert soundfile.info(path).subtype == {"int16": "PCM_16", "int24": "PCM_24"}[subtype]
    again = write_audio(tmp_path / f"b{extension}", back, RATE, subtype=subtype)
    np.testing.assert_array_equal(load_audio(again), back)


def test_float32_wav_is_exact_peaks_above_one_included(tmp_path, recwarn):
    x = noise(70_000) * 9
    path = write_audio(tmp_path / "a.wav", x, 44_100, subtype="float32")
    back, rate = soundfile.read(path, dtype="float32")
    assert rate == 44_100 and not recwarn.list
    np.testing.assert_array_equal(back.T, x)


@pytest.mark.parametrize("extension", (".mp3", ".ogg", ".opus"))
@pytest.mark.parametrize("samples", (RATE, RATE + 100, 4 * RATE // 3))
def test_lossy_files_keep_a_tone_in_place_to_its_very_end(extension, samples, tmp_path):
    x = tone(seconds=samples / RATE)
    back = load_audio(write_audio(tmp_path / f"a{extension}", x))
    assert back.shape[1] - samples in (range(960) if extension == ".opus" else (0,))
    error = back[:, :samples] - x
    assert np.sqrt(np.mean(error**2)) < 0.004  # -48 dBFS, 38 dB below the tone
    assert np.abs(error).max() < 0.1  # libsndfile's own Opus ending clicks at full scale


@pytest.mark.parametrize("extension", [e for e in FORMATS if e != ".wav"])
def test_clipping_is_never_silent(extension, tmp_path):
    x = tone(level=1.25)
    with pytest.warns(UserWarning, match=r"a.* samples above full scale \(peak 1.25\) were clipped; normalise"):
        write_audio(tmp_path / f"a{extension}", x)
    back = load_audio(tmp_path / f"a{extension}")[:, :RATE]
    assert np.abs(back - x.clip(-1, 1)).max() < 0.2  # no wrap-around


BAD_OUTPUTS = {
    "extension": (lambda d: d / "a.m4a", None, r"'.*a.m4a' has an extension that is not known.* .wav, .flac, .mp3"),
    "no extension": (lambda d: d / "a", None, r"extension that is not known"),
    "only extension": (lambda d: d / ".wav", None, r"extension that is not known"),
    "folder missing": (lambda d: d / "x/a.wav", None, r"the folder '.*x' does not exist; make it or name another"),
    "folder is a file": (lambda d: _file(d, "f", b"") / "a.wav", None, r"output: .*'.*f/?a?.*"),
    "is a folder": (lambda d: (d / "a.wav").mkdir() or d / "a.wav", None, r"is not a regular file"),
    "long name": (lambda d: d / ("a" * 300 + ".wav"), None, r"cannot write .*File name too long; name another"),
    "NUL in name": (lambda d: d / "a\0.wav", None, r"output: cannot write "),
    "float flac": (lambda d: d / "a.flac", "float32", r".flac needs int16 or int24, got subtype='float32'; .wav takes"),
    "lossy int16": (lambda d: d / "a.mp3", "int16", r".mp3 is lossy and has no sample format; leave subtype out"),
    "subtype": (lambda d: d / "a.wav", "int32", r".wav needs int16 or int24 or float32, got subtype='int32'"),
}


@pytest.mark.parametrize("case", BAD_OUTPUTS)
def test_an_impossible_output_is_refused_before_and_by_the_writing(case, tmp_path):
    make, subtype, sentence = BAD_OUTPUTS[case]
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for call in (lambda: check_output(path, subtype), lambda: write_audio(path, noise(100), subtype=subtype)):
        with pytest.raises(RequestError, match=sentence) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.Path, "touch", refuse)  # the tests may run as root, whom no mode stops
    with pytest.raises(RequestError, match=r"cannot write '.*a.wav': Permission denied; name another folder or file"):
        check_output(tmp_path / "a.wav")


def test_a_codec_that_is_not_there_is_told_with_what_is(tmp_path, monkeypatch):
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "", "FLAC": ""})
    with pytest.raises(RequestError, match=r"libsndfile .* here cannot write .mp3; end it in .flac or .wav"):
        check_output(tmp_path / "a.mp3")


def test_checking_an_output_leaves_nothing_and_touches_nothing(tmp_path):
    old = _file(tmp_path, "old.wav", b"old")
    assert check_output(old) == old and check_output(str(tmp_path / "NEW.FLAC")).name == "NEW.FLAC"
    assert [p.name for p in tmp_path.iterdir()] == ["old.wav"] and old.read_bytes() == b"old"


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("failure", (KeyboardInterrupt, OSError(28, "No space left on device"), MemoryError))
def test_a_failure_in_the_middle_leaves_the_old_file_and_no_other(extension, failure, tmp_path, monkeypatch):
    old = _file(tmp_path, f"a{extension}", b"old")
    write, calls = soundfile.SoundFile.write, []

    def fail_on_the_third(self, data):
        calls.append(len(data))
        if len(calls) == 3:
            assert len(list(tmp_path.iterdir())) == 2  # there was something to clean up
            raise failure
        return write(self, data)

    monkeypatch.setattr(soundfile.SoundFile, "write", fail_on_the_third)
    expected = RequestError if isinstance(failure, OSError) else failure
    with pytest.raises(expected) as caught:
        write_audio(old, noise(200_000), tags={"comment": "é"})
    if expected is RequestError:
        assert "failed (No space left on device) and left nothing behind; its disk has" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [old.name] and old.read_bytes() == b"old"


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
@pytest.mark.parametrize("extension", FORMATS)
def test_a_disk_that_fills_up_is_one_sentence_and_no_file(extension, tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RequestError, match=r"output: writing '.*' failed \(.*\) and left nothing behind"):
            write_audio(tmp_path / f"a{extension}", noise(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_finished_file_is_moved_into_place(tmp_path):
    """A reader that has the old file open keeps the whole of it: its bytes are never written over."""
    old = _file(tmp_path, "a.wav", b"an older song")
    (tmp_path / "kept").hardlink_to(old)
    write_audio(old, noise(10_000))
    assert (tmp_path / "kept").read_bytes() == b"an older song" and soundfile.info(old).frames == 10_000


def test_the_free_space_is_told_as_it_is_once_the_rest_is_gone(tmp_path, monkeypatch):
    def free(folder):
        return SimpleNamespace(free=0 if list(folder.iterdir()) else 5_000_000)

    def fail(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.shutil, "disk_usage", free)
    monkeypatch.setattr(soundfile.SoundFile, "write", fail)
    with pytest.raises(RequestError, match=r"5\.0 MB free"):
        write_audio(tmp_path / "a.wav", noise(1000))


@pytest.mark.parametrize(("name", "rate"), [("a.opus", 44_100), ("a.mp3", 96_000)])
def test_a_rate_the_codec_has_not_is_told_by_the_files_own_name(name, rate, tmp_path):
    with pytest.raises(RequestError, match="only supports sample rates of 8000") as caught:
        write_audio(tmp_path / name, noise(1000), rate)
    assert name in str(caught.value) and ".part" not in str(caught.value) and not list(tmp_path.iterdir())


def test_an_mp3_that_is_none_is_refused_without_a_word_of_its_decoder(tmp_path, capfd):
    junk = _file(tmp_path, "junk.mp3", b"\1" + np.random.default_rng(0).bytes(100_000))
    with pytest.raises(RequestError, match="not audio that libsndfile reads"):
        load_audio(junk)
    assert capfd.readouterr().err == ""
    song = write_audio(tmp_path / "song.mp3", noise(48_000), tags={"title": "t"})
    plain = write_audio(tmp_path / "plain.mp3", noise(48_000))
    padded = _file(tmp_path, "padded.mp3", bytes(1000) + plain.read_bytes())
    renamed = _file(tmp_path, "wav.mp3", write_audio(tmp_path / "a.wav", noise(48_000)).read_bytes())
    assert all(load_audio(file).shape == (2, 48_000) for file in (song, plain, padded, renamed))


def test_a_link_is_written_through_not_replaced(tmp_path):
    (tmp_path / "link.wav").symlink_to(tmp_path / "real.wav")
    write_audio(tmp_path / "link.wav", noise(100))
    assert (tmp_path / "link.wav").is_symlink() and soundfile.info(tmp_path / "real.wav").frames == 100


@pytest.mark.parametrize("bad", ("NaN", "shape", "empty", "tag"))
def test_what_is_no_audio_is_not_written(bad, tmp_path):
    x, tags = noise(100), {}
    if bad == "NaN":
        x[0, 0] = np.nan
    x = {"shape": x.T, "empty": x[:, :0]}.get(bad, x)
    tags = {"mood": "dusty"} if bad == "tag" else {}
    with pytest.raises(
        RequestError, match=r"NaN or infinite|must be \[2, N\] samples|unknown tags mood; known are title"
    ):
        write_audio(tmp_path / "a.wav", x, tags=tags)
    assert not list(tmp_path.iterdir())
