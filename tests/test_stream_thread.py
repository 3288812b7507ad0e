"""The thread behind a stream: how it works, waits and ends, and what it leaves."""

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
from tests.songs import counted, same, song
from tests.test_stream import SHORT, joined, workers

pytestmark = pytest.mark.usefixtures("offline")


def gone(seconds: float = 20.0) -> bool:
    """Whether no stream's thread is left, at the latest then."""
    end = time.monotonic() + seconds
    while workers() and time.monotonic() < end:
        time.sleep(0.01)
    return not workers()


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
