"""A stream of one song: the samples of the song itself, early; the thread behind it and how that ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import acefast
from acefast.backends import named_backend
from acefast.models.v15 import vae, vae_tiling
from acefast.models.v15.vae_tile import DecoderTile
from tests.songs import counted, same, sentence, song

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


def gone(seconds: float = 20.0) -> bool:
    """Whether no stream's thread is left, at the latest then."""
    end = time.monotonic() + seconds
    while workers() and time.monotonic() < end:
        time.sleep(0.01)
    return not workers()


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


# -- the thread --------------------------------------------------------------------------------------------------------


def test_a_loop_that_is_left_leaves_no_thread(tiny_pipe):
    for _ in tiny_pipe.stream("boom bap", **{**SHORT, "duration": 60}, ahead=0):
        assert len(workers()) == 1
        break
    gc.collect()
    assert not workers()
    with tiny_pipe.stream("boom bap", **SHORT) as stream:
        next(stream)
    assert not workers() and next(stream, None) is None
    stream.close()
    joined(tiny_pipe.stream("boom bap", **SHORT))
    assert gone()


def test_an_exception_in_the_loop_leaves_no_thread(tiny_pipe):
    def play() -> None:
        for _ in tiny_pipe.stream("boom bap", **{**SHORT, "duration": 60}, ahead=0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play()
    gc.collect()
    assert gone()


def test_ctrl_c_while_a_chunk_is_waited_for_leaves_no_thread(tiny_pipe, monkeypatch):
    stream = tiny_pipe.stream("boom bap", **{**SHORT, "duration": 60}, ahead=0)
    next(stream)

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stream._lead, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert not workers()  # though the stream is still held


def test_ctrl_c_while_the_thread_starts_leaves_no_thread(tiny_pipe, monkeypatch):
    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    class Thread(threading.Thread):
        def start(self) -> None:
            if self.name == "acefast-stream":
                self._started.wait = interrupted  # what ``start`` waits for
            super().start()

    stream = tiny_pipe.stream("boom bap", **{**SHORT, "duration": 60}, ahead=0)
    monkeypatch.setattr(threading, "Thread", Thread)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert not workers()  # though the stream is still held


def test_closing_stops_the_steps(tiny_pipe, monkeypatch):
    steps, first, stopped = [], threading.Event(), threading.Event()

    def watch(info) -> None:
        steps.append(info.step)
        first.set()
        assert stopped.wait(60)

    stream = tiny_pipe.stream("boom bap", **{**SHORT, "steps": 100}, on_step=watch)
    stop = stream._lead.stop
    monkeypatch.setattr(stream._lead, "stop", lambda: (stop(), stopped.set()))
    taker = threading.Thread(target=lambda: list(stream))
    taker.start()
    assert first.wait(60)
    stream.close()
    taker.join(60)
    assert steps == [0] and not workers() and not taker.is_alive()


def test_closing_and_taking_at_once_start_one_thread_at_most_and_leave_none(tiny_pipe, monkeypatch):
    """In the order that is the worst: the thread is made, and before it starts others close and take as well."""
    begun, others, wrong = [], [], []

    def meanwhile(act) -> None:
        def run() -> None:
            try:
                act()
            except BaseException as error:
                wrong.append(error)

        others.append(threading.Thread(target=run))
        others[-1].start()
        others[-1].join(0.2)  # it may have to wait, or be done

    class Thread(threading.Thread):
        def start(self) -> None:
            if self.name == "acefast-stream":
                begun.append(self)
                meanwhile(lambda: next(stream, None))
                meanwhile(lambda: stream.close())
            super().start()

    stream = tiny_pipe.stream("boom bap", **SHORT)
    monkeypatch.setattr(threading, "Thread", Thread)
    next(stream, None)
    for other in others:
        other.join(60)
    assert len(begun) == 1 and not wrong and not workers()


def test_what_goes_wrong_in_the_thread_comes_out_of_the_loop(tiny_pipe, monkeypatch):
    def broken(info):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(tiny_pipe.stream("boom bap", **SHORT, on_step=broken))
    with pytest.raises(acefast.Cancelled):
        list(tiny_pipe.stream("boom bap", **SHORT, on_step=lambda info: False))
    real = tiny_pipe.model.decode_tiles

    def overflowing(latents, keep=None):
        for i, (frame, audio) in enumerate(real(latents, keep)):
            yield frame, audio * (torch.nan if i == 2 else 1)

    monkeypatch.setattr(tiny_pipe.model, "decode_tiles", overflowing)
    stream, got = tiny_pipe.stream("boom bap", **SHORT), []
    with pytest.raises(acefast.RequestError, match="samples are NaN or infinite; the decoder overflowed"):
        got += [chunk.duration for chunk in stream] or [next(stream)]
    assert gone() and next(stream, None) is None
    assert same(song(tiny_pipe), song(tiny_pipe))  # and the pipeline goes on


def test_the_chunks_before_a_failure_arrive(tiny_pipe, monkeypatch):
    real = tiny_pipe.model.decode_tiles

    def failing(latents, keep=None):
        yield from list(real(latents, keep))[:2]
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(tiny_pipe.model, "decode_tiles", failing)
    stream = tiny_pipe.stream("boom bap", **SHORT, normalize=None)
    assert [next(stream).duration, next(stream).duration] == [1.0, 2.0]
    with pytest.raises(acefast.RequestError, match=r"decode ran out of memory.*; lower duration.*the plan of 1 song"):
        next(stream)


def test_other_songs_can_be_made_meanwhile(tiny_pipe):
    alone, plain = joined(tiny_pipe.stream("boom bap", **SHORT)), song(tiny_pipe, "drill")
    chunks = []
    for chunk in tiny_pipe.stream("boom bap", **SHORT, ahead=0):
        chunks.append(chunk.samples)
        assert same(song(tiny_pipe, "drill"), plain)
    assert np.array_equal(np.concatenate(chunks, 1), alone)
    both = zip(tiny_pipe.stream("boom bap", **SHORT), tiny_pipe.stream("boom bap", **SHORT))
    assert all(np.array_equal(a.samples, b.samples) for a, b in both)


def test_a_song_made_by_another_thread_does_not_keep_a_stream_from_closing(tiny_pipe):
    with tiny_pipe.at_work():
        stream = tiny_pipe.stream("boom bap", **SHORT)
        taker = threading.Thread(target=lambda: next(stream, None))
        taker.start()
        while not workers():
            time.sleep(0.001)
        stream.close()
        taker.join(20)
        assert not workers() and not taker.is_alive()


def test_a_thread_waits_until_another_one_has_made_its_song(tiny_pipe, monkeypatch):
    composed, made = counted(monkeypatch, tiny_pipe, "compose"), []
    with tiny_pipe.at_work():
        maker = threading.Thread(target=lambda: made.append(song(tiny_pipe)))
        maker.start()
        maker.join(0.5)
        assert maker.is_alive() and not composed
    maker.join(60)
    assert len(made) == len(composed) == 1


def test_the_thread_works_as_the_caller_would(tiny_pipe):
    seen, told = [], []

    def watch(info) -> None:
        seen.append((named_backend(), torch.get_num_threads(), torch.is_inference_mode_enabled()))

    before = torch.get_num_threads()
    torch.set_num_threads(2)  # not what the environment says
    with acefast.use_backend("reference"):
        stream = tiny_pipe.stream("boom bap", **SHORT, on_step=watch, progress=lambda *state: told.append(state))
    try:
        joined(stream)
    finally:
        torch.set_num_threads(before)
    assert seen == [("reference", 2, False)]
    assert list(dict.fromkeys(name for name, _, _ in told)) == ["text", "diffusion", "decode"]
    assert told[-1] == ("decode", 175, 175)


def test_what_is_cut_is_warned_of_where_the_chunks_are_taken(tiny_pipe):
    with pytest.warns(UserWarning, match="lyrics is too long") as caught:
        joined(tiny_pipe.stream("boom bap", "la la " * 2000, **SHORT))
    assert len(caught) == 1


def test_python_ends_while_a_stream_is_open(tiny, tmp_path):
    code = (
        "import acefast, sys; pipe = acefast.load(sys.argv[1], dtype='float32'); "
        "stream = pipe.stream('boom bap', duration=float('inf'), segment=10, ahead=0, steps=1); "
        "print(next(stream).duration)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tiny)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stderr) == (0, "") and float(ran.stdout) > 0.9
