"""A stream of one song: the samples of the song itself, early; what is refused before work starts."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import acefast
from acefast.models.v15 import vae, vae_tiling
from acefast.models.v15.vae_tile import DecoderTile
from tests.songs import counted, sentence

pytestmark = pytest.mark.usefixtures("offline")
SHORT = {"duration": 7.0, "steps": 1, "seed": 1}
RATE = 48_000


def joined(stream) -> np.ndarray:
    """All samples of a stream whose chunks follow one another and of which the last one says so."""
    chunks = list(stream)
    at = 0
    for chunk in chunks:
        assert chunk.start == at / RATE and chunk.sample_rate == RATE and chunk.samples.dtype == np.float32
        assert chunk.duration == chunk.samples.shape[1] / RATE
        at += chunk.samples.shape[1]
    assert [chunk.final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    return np.concatenate([chunk.samples for chunk in chunks], 1)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "acefast-stream"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fade_in": 2.5, "fade_out": 4.0, "duration": 7.3, "semantics": "diffusers"},
        {"task": "repaint", "start": 1.5, "end": 3.0},
        {"task": "repaint", "start": 1.5, "end": 3.0, "repaint_mode": "aggressive"},
        {"task": "extend", "start": -1.0, "end": 6.5, "fade_in": 0.5},
        {"task": "cover-nofsq"},
    ],
    ids=["song", "fades", "repaint", "aggressive", "extend on both sides", "cover"],
)
def test_a_streamed_song_is_the_song_bit_for_bit(tiny_pipe, tune, options):
    length = {} if "task" in options else SHORT
    options = {**SHORT, "normalize": None, **({"source": tune} if "task" in options else {}), **options}
    if not length:
        options.pop("duration")
    whole = tiny_pipe.generate("boom bap", **options).audio
    streamed = joined(tiny_pipe.stream("boom bap", **options))
    assert np.array_equal(streamed, whole) and np.abs(whole).max() > 1  # also what is louder than full scale


@pytest.mark.parametrize("song_of", ["song", "repaint"])
def test_so_it_is_on_the_static_memory_of_a_gpus_kernels(tiny_pipe, tune, monkeypatch, song_of):
    """In tiles that the references compute here; while one stream waits others use the same memory."""
    for module in (vae, vae_tiling):
        monkeypatch.setattr(module, "on_kernels", lambda coder: True)
    launched = counted(monkeypatch, DecoderTile, "load")
    options = {**SHORT, "normalize": None}
    if song_of == "repaint":
        del options["duration"]
        options |= {"task": "repaint", "source": tune, "start": 1.5, "end": 3.0}
    whole = tiny_pipe.generate("boom bap", **options).audio
    stream, other = (tiny_pipe.stream(prompt, **options, ahead=0) for prompt in ("boom bap", "drill"))
    pieces = []
    for chunk in stream:
        pieces.append(chunk.samples)
        next(other, None)
    assert np.array_equal(np.concatenate(pieces, 1), whole) and len(launched) >= 3
    other.close()


def test_the_first_second_comes_first_and_windows_grow(tiny_pipe):
    chunks = list(tiny_pipe.stream("boom bap", **{**SHORT, "duration": 18}, normalize=None))
    assert [chunk.duration for chunk in chunks[:4]] == [1.0, 2.0, 4.0, 4.4]  # 128 frames with 9 a side that are heard
    made = chunks[0]
    assert (made.seed, made.segment, made.request.prompt, made.request.seed) == (1, 0, "boom bap", 1)


def test_a_drawn_seed_is_told_and_makes_the_song_again(tiny_pipe):
    stream = tiny_pipe.stream("boom bap", **{**SHORT, "seed": None}, normalize=None)
    audio = joined(stream)
    again = tiny_pipe.generate("boom bap", **{**SHORT, "seed": stream.seed}, normalize=None)
    assert np.array_equal(again.audio, audio) and stream.sample_rate == RATE


# -- before work starts ------------------------------------------------------------------------------------------------

REFUSED = {
    "a list": ({"prompt": ["a", "b"]}, "one song at a time"),
    "seeds": ({"seed": [1, 2]}, "one song at a time"),
    "a short song": ({"duration": 4}, "duration must be 5 to 600 seconds, above that in segments"),
    "not a number": ({"duration": float("nan")}, "duration must be"),
    "words": ({"duration": "long"}, "duration must be"),
    "a short segment": ({"segment": 9}, "segment must be 10 to 300 seconds"),
    "no memory": ({"segment": 20, "context": 1}, "context must be 2 to 60 seconds"),
    "context alone": ({"context": 10}, "context has no use in a stream of one song"),
    "ahead": ({"ahead": -1}, "ahead must be 0 to 600 seconds"),
    "gain": ({"gain": 61}, "gain must be -60 to 60 dB"),
    "a task": ({"task": "cover", "source": "x.wav", "duration": 900}, "makes text2music, got task='cover'"),
    "codes": ({"codes": [1, 2], "segment": 20}, "codes has no use in a stream in segments"),
    "noise": ({"noise": torch.zeros(200, 8), "duration": 700}, "noise has no use in a stream in segments"),
    "no end to fade": ({"duration": float("inf"), "fade_out": 2}, "fade_out has no use in a stream without an end"),
    "fades": ({"duration": 10, "fade_in": 6, "fade_out": 6}, "fade_in and fade_out take 12"),
    "an option": ({"lenght": 3}, "unknown option 'lenght'"),
    "a turbo": ({"guidance_scale": 3.0}, "guidance_scale has no use"),
    "a source": ({"task": "cover", "source": "missing.wav"}, "there is no file 'missing.wav'"),
    "lyrics": ({"lyrics": "la " * 3000, "lyrics_overflow": "refuse", "segment": 20}, "lyrics must fit"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_work_starts(tiny_pipe, folder, monkeypatch, case):
    options, words = REFUSED[case]
    composed = counted(monkeypatch, tiny_pipe, "compose")
    with pytest.raises(acefast.RequestError) as caught:
        tiny_pipe.stream(**{"prompt": "boom bap", **options})
    sentence(str(caught.value), words)
    assert not composed and not workers()


def test_no_work_is_done_before_the_first_chunk_is_asked_for(tiny_pipe, monkeypatch):
    composed = counted(monkeypatch, tiny_pipe, "compose")
    stream = tiny_pipe.stream("boom bap", **SHORT)
    assert not composed and not workers()
    stream.close()
    assert list(stream) == [] and not composed
