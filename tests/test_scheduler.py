"""Songs submitted one by one: which are made together, what goes on beside what, a queue that is full."""

from __future__ import annotations

import concurrent.futures
import threading
import time

import numpy as np
import pytest
import torch

import acefast
from acefast.backends import named_backend
from acefast.pipeline import Pipeline
from acefast.scheduler import Scheduler
from tests.songs import counted, distance, same, sentence

pytestmark = pytest.mark.usefixtures("offline")
SHORT = {"duration": 5.0, "steps": 2}
WAIT = 60  # seconds, for what takes a fraction of one


@pytest.fixture
def pipe(own_pipe, undecoded):
    """Without its decoder."""
    return own_pipe


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in ("acefast-compose", "acefast-decode")]


def until(truth) -> None:
    end = time.monotonic() + WAIT
    while not truth():
        assert time.monotonic() < end
        time.sleep(0.002)


def stopped_at(pipe, monkeypatch, step: int = 0):
    """Sampling stops after ``step`` of every batch: (event that it has, event that lets it go on)."""
    here, go_on, real = threading.Event(), threading.Event(), pipe.model.velocity
    calls = []

    def velocity(x, *args, **options):
        calls.append(len(x))
        if len(calls) == step + 1:
            here.set()
            assert go_on.wait(WAIT)
        return real(x, *args, **options)

    monkeypatch.setattr(pipe.model, "velocity", velocity)
    return here, go_on, calls


# -- batches -----------------------------------------------------------------------------------------------------------


def test_songs_that_wait_while_others_are_made_are_made_together(pipe, monkeypatch):
    composed = counted(monkeypatch, pipe, "compose")
    asked = [dict(prompt="a" * i, seed=i, bpm=80 + i, **{**SHORT, "duration": 5 + i % 3}) for i in range(1, 7)]
    with pipe.at_work():
        futures = [pipe.submit(**options) for options in asked]
        other = pipe.submit("other", steps=1, duration=5, seed=9)
        last = pipe.submit("last", seed=10, **SHORT)
    songs = [future.result(WAIT) for future in [*futures, last]]
    assert other.result(WAIT).seed == 9
    assert [[r.seed for r in args[0]] for args in composed] == [[1, 2, 3, 4, 5, 6, 10], [9]]
    for song, options in zip(songs, asked):
        assert distance(song, pipe.generate(**options)) < 1e-5
        assert list(song.timings) == ["text", "diffusion", "decode", "finish"]


def test_a_batch_is_no_larger_than_asked_for_and_the_oldest_song_is_in_the_first(pipe, monkeypatch):
    pipe.scheduler = Scheduler(batch=2)
    composed = counted(monkeypatch, pipe, "compose")
    with pipe.at_work():
        futures = [pipe.submit("x", seed=i, duration=5, steps=1 + (i == 1)) for i in range(5)]
    assert [future.result(WAIT).seed for future in futures] == [*range(5)]
    assert [[r.seed for r in args[0]] for args in composed] == [[0, 2], [1], [3, 4]]


def test_deterministic_songs_and_those_with_a_hook_go_alone_and_give_the_bits_of_generate(own_pipe, monkeypatch):
    composed, seen = counted(monkeypatch, own_pipe, "compose"), []

    def watch(info) -> None:
        seen.append(info.latents.shape)

    asked = [{"seed": i, **({"deterministic": True} if i < 2 else {"on_step": watch})} for i in range(4)]
    with own_pipe.at_work():
        futures = [own_pipe.submit("drill", **SHORT, **options) for options in asked]
    for future, options in zip(futures, asked):
        assert same(future.result(WAIT), own_pipe.generate("drill", **SHORT, **options))
    assert [len(args[0]) for args in composed] == [1] * 8 and seen == [(1, 128, 8)] * 8


def test_sources_and_references_are_told_apart_by_their_samples(pipe, monkeypatch, tune):
    """As they are when the song is asked for; the same under two names is one."""
    composed = counted(monkeypatch, pipe, "compose")
    mine = tune.copy()
    options = dict(task="cover-nofsq", steps=1)
    with pipe.at_work():
        futures = [pipe.submit("a", seed=1, source=mine, **options), pipe.submit("b", seed=2, source=tune, **options)]
        mine[:, 1000:] *= 0.5
        futures += [pipe.submit("c", seed=3, source=mine, **options)]
        futures += [pipe.submit("d", seed=4, reference=tune, **SHORT), pipe.submit("e", seed=5, **SHORT)]
        futures += [pipe.submit("f", seed=6, reference=tune.copy(), **SHORT)]
    songs = [future.result(WAIT) for future in futures]
    assert [[r.seed for r in args[0]] for args in composed] == [[1, 2], [3], [4, 6], [5]]
    assert distance(songs[0], pipe.generate("a", seed=1, source=tune, **options)) < 1e-5


def test_a_request_object_is_as_good_as_its_options(pipe):
    request = acefast.Request("drill", seed=3, **SHORT)
    assert same(pipe.submit(request).result(WAIT), pipe.generate("drill", seed=3, **SHORT))


def test_two_pipelines_may_share_a_scheduler(pipe, tiny_base_pipe, monkeypatch):
    base = Pipeline(tiny_base_pipe.model)
    base.scheduler = pipe.scheduler
    with pipe.at_work():
        futures = [p.submit("drill", seed=i, **SHORT) for i, p in enumerate((pipe, base, pipe, base))]
    names = [future.result(WAIT).model for future in futures]
    assert names == ["ace-step-1.5-turbo", "ace-step-1.5-base"] * 2


def test_songs_are_made_as_in_the_thread_that_asked(pipe):
    seen, before = [], torch.get_num_threads()

    def watch(stage, done, total) -> None:
        if stage == "diffusion" and not done:
            seen.append((named_backend(), torch.get_num_threads(), torch.is_inference_mode_enabled()))

    with pipe.at_work():
        futures = [pipe.submit("drill", seed=1, **SHORT, progress=watch)]
        with acefast.use_backend("reference"):
            futures.append(pipe.submit("drill", seed=1, **SHORT, progress=watch))
        torch.set_num_threads(2)
        try:
            futures.append(pipe.submit("drill", seed=1, **SHORT, progress=watch))
        finally:
            torch.set_num_threads(before)
    concurrent.futures.wait(futures, WAIT)
    assert seen == [("auto", before, True), ("reference", before, True), ("auto", 2, True)]
    assert torch.get_num_threads() == before


# -- one beside the other ----------------------------------------------------------------------------------------------


def test_the_next_batch_is_composed_while_one_is_decoded_and_no_more_than_one_waits(pipe, monkeypatch):
    decoding, go_on, real = threading.Event(), threading.Event(), pipe.model.decode
    composed = counted(monkeypatch, pipe, "compose")

    def decode(*args):
        decoding.set()
        assert go_on.wait(WAIT)
        return real(*args)

    monkeypatch.setattr(pipe.model, "decode", decode)
    futures = [pipe.submit("drill", seed=i, deterministic=True, **SHORT) for i in range(4)]
    assert decoding.wait(WAIT)
    until(lambda: len(composed) >= 2 and pipe.scheduler._composed)
    time.sleep(0.1)
    assert len(composed) == 2 and not any(future.done() for future in futures)
    go_on.set()
    assert [future.result(WAIT).seed for future in futures] == [0, 1, 2, 3]


def test_a_stream_is_decoded_while_a_batch_is_composed(tiny_pipe, monkeypatch):
    """Its windows wait for no step of others: all of them come while one step of a batch is still going on."""
    stream = tiny_pipe.stream("boom bap", duration=7.0, steps=1, seed=1, ahead=0, normalize=None)
    pieces = [next(stream).samples]
    here, go_on, _ = stopped_at(tiny_pipe, monkeypatch)
    pipe = Pipeline(tiny_pipe.model)
    pipe.composing = tiny_pipe.composing
    future = pipe.submit("drill", seed=2, **SHORT)
    assert here.wait(WAIT)
    pieces += [chunk.samples for chunk in stream]
    assert not future.done()
    go_on.set()
    future.result(WAIT)
    whole = tiny_pipe.generate("boom bap", duration=7.0, steps=1, seed=1, normalize=None)
    assert np.array_equal(np.concatenate(pieces, 1), whole.audio)


def test_a_stream_is_decoded_between_the_tiles_of_a_song(own_pipe, monkeypatch):
    """The autoencoder goes to who waits for it, and comes back: both are what they are alone."""
    options = dict(duration=7.0, steps=1, normalize=None)
    want = own_pipe.generate("drill", seed=2, **options)
    alone = own_pipe.generate("boom bap", seed=1, **options)
    stream = own_pipe.stream("boom bap", seed=1, ahead=0, **options)
    pieces = [next(stream).samples]
    taken, tiles = [], []

    def progress(stage, done, total) -> None:
        if stage == "decode" and 0 < done < total:
            tiles.append(done)
            if len(tiles) == 1:  # a window of the stream is asked for in the middle of the song
                thread = threading.Thread(target=lambda: taken.append(next(stream)))
                thread.start()
                until(lambda: own_pipe.model.coding._line or taken)

    song = own_pipe.submit("drill", seed=2, **options, progress=progress).result(WAIT)
    assert len(tiles) >= 2 and same(song, want)
    until(lambda: taken)
    pieces += [chunk.samples for chunk in [*taken, *stream]]
    assert np.array_equal(np.concatenate(pieces, 1), alone.audio)


def test_encoding_a_source_waits_for_a_decoder_at_work(pipe, tune, monkeypatch):
    """Both run on the autoencoder's memory."""
    steps = counted(monkeypatch, pipe.model, "velocity")
    source = dict(task="cover-nofsq", source=tune, steps=1)
    with pipe.at_work(pipe.model.coding):
        future = pipe.submit("drill", seed=1, **source)
        until(lambda: pipe.model.coding._line)
        time.sleep(0.05)
        assert not steps
    future.result(WAIT)


def test_a_song_made_amid_a_decode_and_one_that_encodes_its_source_do_not_wait_for_each_other(pipe, tune, monkeypatch):
    """One thread decodes and would compose, the other composes and would encode."""
    composing, decoding, inner, real = threading.Event(), threading.Event(), [], pipe.model.encode

    def encode(audio):
        composing.set()
        assert decoding.wait(WAIT)
        return real(audio)

    def decode(latents, *_):
        if not inner:
            inner.append(pipe.submit("cover", task="cover-nofsq", source=tune, seed=2, steps=1))
            assert composing.wait(WAIT)
            threading.Timer(0.05, decoding.set).start()
            inner.append(pipe.generate("inner", seed=3, **SHORT))
        return torch.zeros(len(latents), 2, latents.shape[1] * 1920)

    monkeypatch.setattr(pipe.model, "encode", encode)
    monkeypatch.setattr(pipe.model, "decode", decode)
    songs = []
    thread = threading.Thread(target=lambda: songs.append(pipe.generate("outer", seed=1, **SHORT)), daemon=True)
    thread.start()
    thread.join(WAIT / 6)
    assert songs and songs[0].seed == 1 and inner[0].result(WAIT).seed == 2 and inner[1].seed == 3


def test_warming_up_forgets_no_text_that_another_thread_is_encoding(pipe):
    with pipe.at_work():
        pipe.model.encodings.get("mine", lambda: torch.zeros(1))
        thread = threading.Thread(target=lambda: pipe.warmup((5.0,), steps=1))
        thread.start()
        until(lambda: pipe.composing._line)
        assert pipe.model.encodings._kept
    thread.join(WAIT)
    assert not thread.is_alive()


# -- the queue ---------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_or_waits(pipe, monkeypatch):
    pipe.scheduler = Scheduler(waiting=2)
    with pipe.at_work():
        futures = [pipe.submit("drill", seed=i, **SHORT) for i in range(2)]
        with pytest.raises(acefast.RequestError) as caught:
            pipe.submit("drill", seed=3, **SHORT, wait=False)
        sentence(str(caught.value), "the queue is full", "2 songs wait", "wait=True")
        waiting = threading.Thread(target=lambda: futures.append(pipe.submit("drill", seed=3, **SHORT)))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        futures[0].cancel()  # makes room
        waiting.join(WAIT)
        assert len(futures) == 3
    assert [future.result(WAIT).seed for future in futures[1:]] == [1, 3]


def test_a_callback_never_waits_for_room_that_only_its_own_thread_could_make(pipe):
    pipe.scheduler = Scheduler(waiting=1)
    wrong, done = [], threading.Event()

    def again(future) -> None:
        for _ in range(50):
            try:
                pipe.submit("drill", seed=2, **SHORT)
            except acefast.RequestError as error:
                wrong.append(str(error))
                break
        done.set()

    with pipe.at_work():
        pipe.submit("drill", seed=1, **SHORT).add_done_callback(again)
    assert done.wait(WAIT) and "the queue is full" in wrong[0]


REFUSED = {
    "an option": ({"lenght": 3}, "unknown option 'lenght'"),
    "a value": ({"duration": 3}, "duration must be"),
    "a turbo": ({"guidance_scale": 3.0}, "guidance_scale has no use"),
    "a source": ({"task": "cover", "source": "missing.wav"}, "there is no file 'missing.wav'"),
    "lyrics": ({"lyrics": "la " * 3000, "lyrics_overflow": "refuse"}, "lyrics must fit"),
    "a list": ({"prompt": ["a", "b"]}, "submit takes one song"),
    "seeds": ({"seed": [1, 2]}, "submit takes one song"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_when_it_is_submitted(pipe, folder, case):
    options, words = REFUSED[case]
    with pytest.raises(acefast.RequestError) as caught:
        pipe.submit(**{"prompt": "boom bap", **options})
    sentence(str(caught.value), words)
    assert not workers() and not pipe.scheduler._jobs


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"waiting": 0}, {"batch": 1.5}, {"waiting": "many"}], ids=str)
def test_sizes_are_whole_numbers(sizes):
    with pytest.raises(acefast.RequestError, match=f"{next(iter(sizes))} must be a whole number of songs, 1 or more"):
        Scheduler(**sizes)
