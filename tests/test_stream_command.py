"""``acefast stream``: a player hears a wav as it is made, a file is whole or absent, and both end when told to."""

from __future__ import annotations

import io
import signal
import subprocess

import numpy as np
import pytest
import soundfile
import torch

from acefast import pipeline
from acefast.audio import read_tags
from acefast.cli import main
from tests.songs import inventory, sentence
from tests.test_cli_process import shell
from tests.test_stream import joined

pytestmark = pytest.mark.usefixtures("offline")
SHORT = ["--duration", "5", "--steps", "1", "--seed", "3"]


@pytest.fixture
def stream(folder, tiny, tiny_pipe, monkeypatch):
    """``acefast stream`` in this process, on a model that is loaded already: its exit code."""
    monkeypatch.setattr(pipeline, "load", lambda model, **_: tiny_pipe)
    return lambda *words: main(["stream", "boom bap", *words, "--model", str(tiny)])


def test_a_file_holds_the_stream(stream, folder, tiny_pipe, capsys):
    expected = joined(tiny_pipe.stream("boom bap", duration=12, segment=10, steps=1, seed=3, gain=-6.0))
    arguments = ["--duration", "12", "--segment", "10", "--gain", "-6", "--steps", "1", "--seed", "3"]
    assert stream(*arguments, "-o", "x.wav", "--subtype", "float32") == 0
    audio, rate = soundfile.read("x.wav", dtype="float32")
    assert np.array_equal(audio.T, expected) and rate == 48_000
    assert capsys.readouterr() == ("x.wav: 12.00 s, seed 3\n", "")
    assert stream(*SHORT, "-o", "y.flac", "--quiet") == 0 and capsys.readouterr() == ("", "")
    assert soundfile.info("y.flac").frames == 128 * 1920
    tags = read_tags("y.flac")
    assert (tags["title"], tags["comment"], tags["software"]) == ("boom bap", "seed 3", "acefast")
    assert sorted(path.name for path in folder.iterdir()) == ["x.wav", "y.flac"]


def test_what_a_file_has_to_clip_is_told(stream, capsys):
    assert stream(*SHORT, "--normalize", "none", "-o", "x.wav") == 0
    assert "samples above full scale were clipped" in capsys.readouterr().err
    assert stream(*SHORT, "--normalize", "none", "-o", "x.wav", "--subtype", "float32") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("subtype", "step"), [("int16", 2**-16), ("float32", 0)])
def test_standard_output_is_a_wav_of_unknown_length(stream, tiny_pipe, capfdbinary, subtype, step):
    assert stream(*SHORT, "--subtype", subtype) == 0
    out, err = capfdbinary.readouterr()
    audio, rate = soundfile.read(io.BytesIO(out), dtype="float32")
    expected = joined(tiny_pipe.stream("boom bap", duration=5, steps=1, seed=3))
    assert audio.shape == (128 * 1920, 2) and rate == 48_000 and err == b""
    assert np.abs(audio.T - expected).max() <= step
    assert out[4:8] == out[40:44] == b"\xff\xff\xff\xff" and len(out) == 44 + audio.size * (2 if step else 4)


REFUSED = {
    "no end": (["--duration", "inf", "-o", "x.wav"], "a stream without an end fills no file"),
    "4 GB": (
        ["--duration", "30000", "-o", "x.wav"],
        "a wav file ends at 4.29 GB and this would be of 5.76; take .flac",
    ),
    "extension": ([*SHORT, "-o", "x.wma"], "extension that is not known"),
    "int24": ([*SHORT, "--subtype", "int24"], "int24 is for files"),
    "length": (["--duration", "long", "-o", "x.wav"], "duration must be seconds, or inf for no end, got 'long'"),
    "segment": (["--segment", "five", "-o", "x.wav"], "segment must be a number of seconds"),
    "short": (["--segment", "5", "-o", "x.wav"], "segment must be 10 to 300 seconds"),
    "seeds": (["--seed", "1,2", "-o", "x.wav"], "one song at a time"),
    "unknown": ([*SHORT, "--segmnt", "20"], "the nearest known one is --segment"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_one_line(stream, folder, capsys, case):
    arguments, words = REFUSED[case]
    assert stream(*arguments) == 2 and inventory(folder) == {}
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("acefast: ")
    sentence(err.removeprefix("acefast: ")[:-1], words)


def test_a_terminal_is_no_player(stream, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert stream(*SHORT) == 2
    assert "standard output would get the sound and is no player" in capsys.readouterr().err


def test_a_stream_that_fails_midway_leaves_no_file(stream, folder, tiny_pipe, monkeypatch, capsys):
    real = tiny_pipe.model.decode_tiles

    def overflowing(latents, keep=None):
        for i, (frame, audio) in enumerate(real(latents, keep)):
            yield frame, audio * (torch.nan if i == 2 else 1)

    monkeypatch.setattr(tiny_pipe.model, "decode_tiles", overflowing)
    assert stream(*SHORT, "-o", "x.wav") == 2 and inventory(folder) == {}
    assert "the decoder overflowed" in capsys.readouterr().err


def test_a_player_that_leaves_ends_the_stream_and_so_does_ctrl_c(tiny, folder):
    arguments = ["stream", "boom bap", "--duration", "inf", "--segment", "10", "--steps", "1", "--model", tiny]
    ends = {}
    for how in ("leaves", "interrupts"):
        process = subprocess.Popen(
            **shell(*arguments, folder=folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        assert process.stdout.read(4) == b"RIFF"
        if how == "leaves":
            process.stdout.close()
        else:
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120) if how == "interrupts" else (None, process.stderr.read())
        ends[how] = (process.wait(120), err.decode())
    assert ends == {"leaves": (0, ""), "interrupts": (130, "acefast: interrupted; no unfinished file is left\n")}
