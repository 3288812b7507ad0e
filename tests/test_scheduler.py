"""Songs submitted one by one: made together, beside one another, and ended, cancelled or failed each for itself."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import acefast
from acefast import batches
from acefast.backends import named_backend
from acefast.lanes import Lane
from acefast.pipeline import Pipeline
from acefast.scheduler import Scheduler
from tests.songs import counted, distance, same, sentence

pytestmark = pytest.mark.usefixtures("offline")
SHORT = {"duration": 5.0, "steps": 2}
WAIT = 60  # seconds, for what takes a fraction of one


@pytest.fixture
def pipe(tiny_pipe, undecoded):
    """The tiny model with a scheduler of its own and without its decoder."""
    pipe = Pipeline(tiny_pipe.model)
    yield pipe
    pipe.scheduler.close()


@pytest.fixture
def audible(tiny_pipe):
    """The same with its decoder."""
    pipe = Pipeline(tiny_pipe.model)
    yield pipe
    pipe.scheduler.close()


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


def test_deterministic_songs_and_those_with_a_hook_go_alone_and_give_the_bits_of_generate(audible, monkeypatch):
    composed, seen = counted(monkeypatch, audible, "compose"), []

    def watch(info) -> None:
        seen.append(info.latents.shape)

    asked = [{"seed": i, **({"deterministic": True} if i < 2 else {"on_step": watch})} for i in range(4)]
    with audible.at_work():
        futures = [audible.submit("drill", **SHORT, **options) for options in asked]
    for future, options in zip(futures, asked):
        assert same(future.result(WAIT), audible.generate("drill", **SHORT, **options))
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


def test_a_stream_is_decoded_between_the_tiles_of_a_song(audible, monkeypatch):
    """The autoencoder goes to who waits for it, and comes back: both are what they are alone."""
    options = dict(duration=7.0, steps=1, normalize=None)
    want = audible.generate("drill", seed=2, **options)
    alone = audible.generate("boom bap", seed=1, **options)
    stream = audible.stream("boom bap", seed=1, ahead=0, **options)
    pieces = [next(stream).samples]
    taken, tiles = [], []

    def progress(stage, done, total) -> None:
        if stage == "decode" and 0 < done < total:
            tiles.append(done)
            if len(tiles) == 1:  # a window of the stream is asked for in the middle of the song
                thread = threading.Thread(target=lambda: taken.append(next(stream)))
                thread.start()
                until(lambda: audible.model.coding._line or taken)

    song = audible.submit("drill", seed=2, **options, progress=progress).result(WAIT)
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


# -- cancelling --------------------------------------------------------------------------------------------------------


def test_a_song_cancelled_before_its_turn_is_never_made(pipe, monkeypatch):
    composed = counted(monkeypatch, pipe, "compose")
    with pipe.at_work():
        kept, dropped = (pipe.submit("drill", seed=i, **SHORT) for i in range(2))
        assert dropped.cancel() and dropped.cancelled() and len(pipe.scheduler._jobs) == 1
        assert concurrent.futures.wait([dropped], WAIT).done == {dropped}
    with pytest.raises(concurrent.futures.CancelledError):
        dropped.result(WAIT)
    kept.result(WAIT)
    assert [[r.seed for r in args[0]] for args in composed] == [[0]] and not kept.cancel()


@pytest.mark.parametrize("solver", ["euler", "sde"])
def test_a_song_cancelled_at_work_is_stopped_one_step_later(pipe, monkeypatch, solver):
    here, go_on, calls = stopped_at(pipe, monkeypatch, 1)
    future = pipe.submit("drill", seed=1, duration=5, steps=50, solver=solver)
    assert here.wait(WAIT) and future.cancel()
    assert concurrent.futures.wait([future], WAIT).done == {future}  # though the step still goes on
    go_on.set()
    until(lambda: not workers())
    assert len(calls) == 2 and not pipe.scheduler._jobs


def test_a_song_cancelled_while_it_is_decoded_is_stopped_one_tile_later(audible):
    tiles, futures = [], []

    def progress(stage, done, total) -> None:
        if stage == "decode":
            tiles.append(done)
            if done:
                futures[0].cancel()

    with audible.at_work():
        futures.append(audible.submit("drill", seed=1, duration=20, steps=1, progress=progress))
    assert concurrent.futures.wait(futures, WAIT).done
    until(lambda: not workers())
    assert tiles == [0, 25]  # of 500 frames


def test_a_song_cancelled_in_a_batch_leaves_the_others(pipe, monkeypatch):
    here, go_on, calls = stopped_at(pipe, monkeypatch)
    with pipe.at_work():
        futures = [pipe.submit("drill", seed=i, **SHORT) for i in range(3)]
    assert here.wait(WAIT) and futures[1].cancel()
    go_on.set()
    songs = [futures[i].result(WAIT) for i in (0, 2)]
    assert calls == [3, 3] and futures[1].cancelled()
    monkeypatch.undo()
    for song in songs:
        assert distance(song, pipe.generate("drill", seed=song.seed, **SHORT)) < 1e-5


def test_a_hook_that_cancels_ends_its_song_as_in_generate(pipe):
    future = pipe.submit("drill", seed=1, **SHORT, on_step=lambda info: False)
    assert isinstance(future.exception(WAIT), acefast.Cancelled)


def test_asyncio_waits_for_songs_and_cancels_them(pipe, monkeypatch):
    async def serve():
        song = await asyncio.wrap_future(pipe.submit("drill", seed=1, **SHORT))
        with pipe.at_work():
            waiting = asyncio.wrap_future(pipe.submit("drill", seed=2, **SHORT))
            waiting.cancel()
            await asyncio.sleep(0)
            assert not pipe.scheduler._jobs
        return song

    assert asyncio.run(serve()).seed == 1


# -- errors ------------------------------------------------------------------------------------------------------------


def together(pipe, count: int = 4, **options) -> list:
    with pipe.at_work():
        return [pipe.submit("drill", seed=i, **SHORT, **options) for i in range(count)]


def only(futures, bad: int, kind: type[BaseException], words: str, pipe) -> None:
    """Song ``bad`` failed so, all others are what they are alone."""
    for i, future in enumerate(futures):
        error = future.exception(WAIT)
        if i == bad:
            assert isinstance(error, kind) and words in str(error)
        else:
            assert error is None and distance(future.result(), pipe.generate("drill", seed=i, **SHORT)) < 1e-5


def test_a_song_whose_latents_become_nan_takes_no_other_down(pipe, monkeypatch):
    real = acefast.pipeline.start_noise

    def noise(requests, *args):
        made = real(requests, *args)
        made[[r.seed == 2 for r in requests]] *= torch.inf
        return made

    monkeypatch.setattr(acefast.pipeline, "start_noise", noise)
    only(together(pipe), 2, acefast.RequestError, "latents became NaN or infinite", pipe)


def test_nor_does_one_whose_audio_does(audible, monkeypatch):
    real = batches.finish

    def finish(wave, request, task):
        return real(wave * np.float32(np.nan if request.seed == 1 else 1), request, task)

    composed = counted(monkeypatch, audible, "compose")
    monkeypatch.setattr(batches, "finish", finish)
    futures = together(audible, 3)
    assert isinstance(futures[1].exception(WAIT), acefast.RequestError) and futures[2].result(WAIT).seed == 2
    assert futures[0].result(WAIT).seed == 0 and len(composed) == 1  # decoded again, not composed again


@pytest.mark.parametrize("stage", ["conditions", "velocity", "decode"])
def test_a_batch_that_needs_too_much_memory_is_made_song_by_song(pipe, monkeypatch, stage):
    real, sizes = getattr(pipe.model, stage), []

    def narrow(first, *args, **options):
        sizes.append(len(first))
        if len(first) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")
        return real(first, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pipe.model, stage, narrow)
        futures = together(pipe, 3)
        concurrent.futures.wait(futures, WAIT)
    assert sizes[0] == 3 and set(sizes[1:]) == {1}
    only(futures, -1, BaseException, "", pipe)


def test_a_song_that_needs_too_much_memory_alone_says_so(pipe, monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    monkeypatch.setattr(pipe.model, "velocity", full)
    for future in together(pipe, 2):
        sentence(str(future.exception(WAIT)), "diffusion ran out of memory", "2.50 GiB")


@pytest.mark.parametrize("stage", ["text", "diffusion", "decode", "finish"])
def test_a_progress_that_raises_ends_its_own_song(pipe, monkeypatch, stage):
    composed, told = counted(monkeypatch, pipe, "compose"), []

    def broken(name, done, total) -> None:
        if name == stage:
            raise KeyError(name)

    with pipe.at_work():
        calls = [None, broken, lambda *state: told.append(state), broken]
        futures = [pipe.submit("drill", seed=i, **SHORT, progress=call) for i, call in enumerate(calls)]
    for i, future in enumerate(futures):
        assert isinstance(future.exception(WAIT), KeyError) if i % 2 else future.result(WAIT).seed == i
    assert len(composed) == 1  # the batch was not made again
    assert list(dict.fromkeys(state[0] for state in told)) == ["text", "diffusion", "decode", "finish"]


def test_a_hook_that_raises_ends_its_own_song(pipe):
    def broken(info) -> None:
        raise SystemExit("mine")

    with pipe.at_work():
        futures = [pipe.submit("drill", seed=i, **SHORT, on_step=broken if i == 1 else None) for i in range(3)]
    only(futures, 1, SystemExit, "mine", pipe)


def test_a_gpu_that_fails_a_song_at_its_end_fails_that_song(pipe):
    class Failing(Lane):
        def _rest(self) -> None:
            if threading.current_thread().name == "acefast-compose" and not lost:
                lost.append(True)
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

    lost, pipe.composing = [], Failing(torch.device("cpu"))
    assert "illegal memory access" in str(pipe.submit("drill", seed=1, **SHORT).exception(WAIT))
    assert pipe.submit("drill", seed=2, **SHORT).result(WAIT).seed == 2


# -- threads and memory ------------------------------------------------------------------------------------------------


def test_threads_live_while_there_is_work(pipe):
    assert not workers()
    pipe.submit("drill", **SHORT).result(WAIT)
    until(lambda: not workers())
    pipe.submit("drill", **SHORT).result(WAIT)
    until(lambda: not workers())


def test_a_pipeline_that_is_dropped_makes_what_was_asked_for_and_is_gone(tiny, undecoded):
    pipe = acefast.load(tiny, device="cpu", dtype="float32")
    model = weakref.ref(pipe.model)
    gc.disable()  # by counting alone: a model is too large to wait for the collector
    try:
        with pipe.at_work():
            future = pipe.submit("drill", **SHORT, progress=lambda *state: None)
        del pipe
        song = future.result(WAIT)
        until(lambda: not workers())
        assert model() is None and song.latents.shape == (128, 8)
    finally:
        gc.enable()


def test_an_error_that_is_kept_keeps_no_memory_of_the_work(pipe, monkeypatch):
    seen = []

    def broken(latents, *args, **options):
        mine = latents + 1
        seen.append(weakref.ref(mine))
        raise ZeroDivisionError

    monkeypatch.setattr(pipe.model, "velocity", broken)
    error = pipe.submit("drill", seed=1, **SHORT).exception(WAIT)
    until(lambda: not workers())
    assert isinstance(error, ZeroDivisionError) and error.__traceback__ is not None
    assert len(seen) == 1 and seen[0]() is None


def test_closing_cancels_what_is_not_done_and_ends_the_threads(pipe, monkeypatch):
    here, go_on, calls = stopped_at(pipe, monkeypatch)
    at_work = pipe.submit("drill", seed=1, duration=5, steps=50)
    assert here.wait(WAIT)
    waiting = pipe.submit("drill", seed=2, **SHORT)
    closing = threading.Thread(target=pipe.scheduler.close)
    closing.start()
    until(waiting.cancelled)
    go_on.set()
    closing.join(WAIT)
    assert not closing.is_alive() and at_work.cancelled() and not workers() and len(calls) == 1
    with pytest.raises(acefast.RequestError, match="the scheduler is closed"):
        pipe.submit("drill", **SHORT)
    pipe.scheduler.close()


def test_closing_wakes_who_waits_for_room(pipe):
    pipe.scheduler = Scheduler(waiting=1)
    wrong = []

    def submit() -> None:
        try:
            pipe.submit("drill", seed=2, **SHORT)
        except acefast.RequestError as error:
            wrong.append(str(error))

    with pipe.at_work():
        pipe.submit("drill", seed=1, **SHORT)
        waiting = threading.Thread(target=submit)
        waiting.start()
        waiting.join(0.05)
        closing = threading.Thread(target=pipe.scheduler.close)
        closing.start()
        waiting.join(WAIT)
    closing.join(WAIT)
    assert "closed" in wrong[0]


def test_a_with_block_ends_when_its_songs_are_made_and_one_left_by_an_error_cancels_them(pipe):
    with Scheduler() as scheduler:
        futures = [scheduler.submit(pipe, "drill", seed=i, **SHORT, progress=None) for i in range(3)]
    assert [future.result(0).seed for future in futures] == [0, 1, 2] and not workers()
    pipe.scheduler = Scheduler()
    with pytest.raises(KeyboardInterrupt), pipe.scheduler, pipe.at_work():
        future = pipe.submit("drill", **SHORT)
        raise KeyboardInterrupt
    assert future.cancelled() and not workers()


def test_closing_in_a_callback_does_not_wait_for_its_own_thread(pipe):
    closed = threading.Event()
    with pipe.at_work():
        first = pipe.submit("drill", seed=1, deterministic=True, **SHORT)
        rest = [pipe.submit("drill", seed=i, deterministic=True, **SHORT) for i in range(4)]
        first.add_done_callback(lambda future: (pipe.scheduler.close(), closed.set()))
    assert closed.wait(WAIT) and all(future.cancelled() for future in rest)
    until(lambda: not workers())


def test_python_ends_while_songs_are_waited_for(tiny):
    code = (
        "import acefast, sys; pipe = acefast.load(sys.argv[1], dtype='float32'); "
        "futures = [pipe.submit('boom bap', duration=20, steps=200, seed=i) for i in range(20)]; "
        "print(pipe.submit('x', duration=5).cancel())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tiny)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stderr, ran.stdout) == (0, "", "True\n")
