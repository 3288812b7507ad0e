"""Songs submitted one by one end each for itself: cancelled, failed, or with the threads behind them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import acefast
from acefast import batches
from acefast.lanes import Lane
from acefast.models.v15 import loop
from acefast.scheduler import Scheduler
from tests.songs import counted, distance, sentence
from tests.test_scheduler import SHORT, WAIT, stopped_at, until, workers

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture
def pipe(own_pipe, undecoded):
    """Without its decoder."""
    return own_pipe


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


def test_a_song_cancelled_while_it_is_decoded_is_stopped_one_tile_later(own_pipe):
    tiles, futures = [], []

    def progress(stage, done, total) -> None:
        if stage == "decode":
            tiles.append(done)
            if done:
                futures[0].cancel()

    with own_pipe.at_work():
        futures.append(own_pipe.submit("drill", seed=1, duration=20, steps=1, progress=progress))
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
    real = loop.start_noise

    def noise(requests, *args):
        made = real(requests, *args)
        made[[r.seed == 2 for r in requests]] *= torch.inf
        return made

    monkeypatch.setattr(loop, "start_noise", noise)
    only(together(pipe), 2, acefast.RequestError, "latents became NaN or infinite", pipe)


def test_nor_does_one_whose_audio_does(own_pipe, monkeypatch):
    real = batches.finish

    def finish(wave, request, task):
        return real(wave * np.float32(np.nan if request.seed == 1 else 1), request, task)

    composed = counted(monkeypatch, own_pipe, "compose")
    monkeypatch.setattr(batches, "finish", finish)
    futures = together(own_pipe, 3)
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
