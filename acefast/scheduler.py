"""Songs that are asked for one by one and made together: a queue, a thread that composes, one that decodes."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import functools
import hashlib
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from acefast.backends import named_backend
from acefast.batches import BATCH, Composed, decode, likeness
from acefast.lead import Stopped
from acefast.request import Request, RequestError
from acefast.stages import Progress
from acefast.values import whole

if TYPE_CHECKING:
    from acefast.song import Song


@dataclass(eq=False)
class Job:
    """A song asked for, and whoever waits for it."""

    pipe: Any
    request: Request
    audio: tuple  # source and reference, as ``Model.check`` found them
    key: Hashable  # songs of equal keys may be made together
    progress: Progress | None
    future: Future[Song]
    context: contextvars.Context  # of the thread that asked, such as its backend
    threads: int  # of torch there: bits may depend on it


class Scheduler:
    """Makes songs for ``Pipeline.submit``, oldest first.

    **Batches.** When the model is free, the oldest request and those behind it that may share its batch
    (``acefast.batches.likeness``: options but words, hints, seeds and fades, lengths of one bucket; one source, one
    reference) are composed together, at most ``batch``. Requests with ``deterministic`` or ``on_step`` go alone. While
    a batch is decoded the next one is composed, on a GPU on another stream; at most one more waits in between.

    **Errors.** A request that cannot work is refused by ``submit``. An error in a batch takes no other song down: each
    is made again by itself, and the error is its song's alone; one of ``progress`` ends its own song, no other.

    **Futures.** ``cancel`` works until the song is there: ``result`` raises at once, work that nobody waits for any
    more ends one step of the sampler or one tile later. ``running`` stays False. Callbacks run in the scheduler's
    threads and must not wait for another song. What of prompt or lyrics was cut is in ``Song.warnings``.

    Threads live while there is work. One scheduler may serve several pipelines, taking turns.
    """

    def __init__(self, batch: int = BATCH, waiting: int = 64) -> None:
        """
        Args:
            batch: songs made together, at most.
            waiting: songs that have been asked for and not begun, at most; beyond it ``submit`` waits or refuses.
        Raises:
            RequestError: one of them is no whole number of 1 or more.
        """
        self.batch = whole("batch", batch, 1, 1 << 20, "a whole number of songs, 1 or more")
        self.waiting = whole("waiting", waiting, 1, 1 << 20, "a whole number of songs, 1 or more")
        self._changed = threading.Condition()
        self._jobs: dict[Future, Job] = {}  # all that are not done
        self._queue: deque[Job] = deque()
        self._composed: deque[tuple[list[Job], Composed, dict[str, float]]] = deque()
        self._threads: dict[str, threading.Thread] = {}
        self._closed = False
        _open.add(self)

    def submit(
        self, pipe: Any, prompt: Any, lyrics: str = "", *, wait: bool = True, progress: Progress | None, **options: Any
    ) -> Future[Song]:
        """See ``Pipeline.submit``."""
        requests, many = pipe.requests(prompt, lyrics, **options)
        if many:
            raise RequestError("submit takes one song; give one prompt, lyrics and seed, and call it for each song")
        request, threads = requests[0], torch.get_num_threads()
        audio = pipe.model.check(requests)
        alone = request.deterministic or request.on_step is not None
        key = object() if alone else (likeness(request, pipe.model), _digest(audio), named_backend(), threads)
        context, future = contextvars.copy_context(), Future()
        with self._changed:
            while len(self._queue) >= self.waiting and not self._closed:
                if not wait or threading.current_thread() in self._threads.values():
                    raise RequestError(f"the queue is full, {self.waiting} songs wait; submit later or with wait=True")
                self._changed.wait(1.0)  # not for ever: on some systems Ctrl-C is heard between two waits only
            if self._closed:
                raise RequestError("the scheduler is closed and takes no more songs; make another one")
            job = self._jobs[future] = Job(pipe, request, audio, key, progress, future, context, threads)
            self._queue.append(job)
            self._start("compose")
        future.add_done_callback(self._over)
        return future

    def close(self, *, cancel: bool = True) -> None:
        """Take no more songs, cancel those that are not done, or with ``cancel=False`` make them, and end the threads.

        Returns when they have ended; in a callback, which runs in one of them, at once.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            unfinished = list(self._jobs) if cancel else []
        for future in unfinished:
            future.cancel()
        while threads := list(self._threads.values()):  # one that composes may start one that decodes
            if threading.current_thread() in threads:
                return
            for thread in threads:
                thread.join()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(cancel=kind is not None)

    def _over(self, future: Future) -> None:
        """Called once when a song is there, has failed or is cancelled."""
        if future.cancelled():
            future.set_running_or_notify_cancel()  # for concurrent.futures.wait and the like
        with self._changed:
            job = self._jobs.pop(future)
            if job in self._queue:
                self._queue.remove(job)
            self._changed.notify_all()

    # -- the threads -------------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        """Have the thread; with ``_changed`` held."""
        if name not in self._threads:
            work = {"compose": self._compose, "decode": self._decode}[name]
            self._threads[name] = threading.Thread(target=work, name=f"acefast-{name}", daemon=True)
            self._threads[name].start()

    def _ends(self, name: str) -> None:
        """The thread is one no more; with ``_changed`` held."""
        del self._threads[name]
        self._changed.notify_all()

    def _compose(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._composed)
                if not self._queue:
                    return self._ends("compose")
            jobs: list[Job] = []
            made, error = _attempt(self._compose_next, jobs)
            if error is None and jobs:
                with self._changed:
                    self._composed.append((jobs, *made))
                    self._start("decode")
            elif error is not None:
                self._failed(jobs, error)
            made = error = None  # nothing is held while others are waited for

    def _decode(self) -> None:
        while True:
            with self._changed:
                if not self._composed:
                    return self._ends("decode")
                jobs, made, timings = self._composed.popleft()
                self._changed.notify_all()
            self._decode_batch(jobs, made, timings)
            jobs = made = None

    def _compose_next(self, jobs: list[Job]) -> tuple[Composed, dict[str, float]] | None:
        """Take the next batch as ``jobs`` and compose it; None where all were cancelled before."""

        def unless_empty() -> None:
            if not self._queue:
                raise Stopped

        with self._changed:
            pipe = self._queue[0].pipe if self._queue else None
        if pipe is None:
            return None
        with pipe.composing.work(unless_empty):
            jobs += self._take(pipe)  # only now: those that came while others were at work go along
            timings: dict[str, float] = {}
            return (jobs[0].context.run(self._compose_batch, jobs, timings), timings) if jobs else None

    def _take(self, pipe: Any) -> list[Job]:
        """The oldest of the pipeline's songs, and those that are made with it."""
        with self._changed:
            own = [job for job in self._queue if job.pipe is pipe and not job.future.done()]
            jobs = [job for job in own if job.key == own[0].key][: self.batch]
            for job in jobs:
                self._queue.remove(job)
            self._changed.notify_all()
        return jobs

    def _compose_batch(self, jobs: list[Job], timings: dict[str, float]) -> Composed:
        pipe = jobs[0].pipe
        torch.set_num_threads(jobs[0].threads)
        with pipe.at_work():
            return pipe.compose([job.request for job in jobs], jobs[0].audio, self._told(jobs), timings)

    def _failed(self, jobs: list[Job], error: BaseException) -> None:
        """Songs of a batch that could not be composed: each by itself, next of all."""
        if len(jobs) == 1:
            _end(jobs[0], error=error)
            return
        with self._changed:
            for job in reversed(jobs):
                if not job.future.done():
                    job.key = object()  # equal to no other
                    self._queue.appendleft(job)

    def _decode_batch(self, jobs: list[Job], made: Composed, timings: dict[str, float]) -> None:
        def decoded() -> list[Song]:
            torch.set_num_threads(jobs[0].threads)
            told = self._told(jobs)
            requests = [job.request for job in jobs]
            return decode(jobs[0].pipe, requests, made, told, timings, waiting=functools.partial(_unless_done, jobs))

        songs, error = _attempt(jobs[0].context.run, decoded)
        if error is None:
            for job, song in zip(jobs, songs):
                _end(job, song)
        elif len(jobs) == 1:
            _end(jobs[0], error=error)
        else:
            for i, job in enumerate(jobs):
                if not job.future.done():
                    self._decode_batch([job], made.only(i), dict(timings))

    def _told(self, jobs: list[Job]) -> Progress:
        """Tells everyone who waits; raises ``Stopped`` where nobody does any more."""

        def told(stage: str, done: int, total: int) -> None:
            for job in jobs:
                if job.progress is not None and not job.future.done():
                    _, error = _attempt(job.progress, stage, done, total)
                    if error is not None:
                        _end(job, error=error)
            _unless_done(jobs)

        return told


_open: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for scheduler in list(_open):
        scheduler.close()


def _end(job: Job, song: Song | None = None, error: BaseException | None = None) -> None:
    with contextlib.suppress(InvalidStateError):  # it may be cancelled at any time
        job.future.set_result(song) if error is None else job.future.set_exception(error)


def _unless_done(jobs: list[Job]) -> None:
    if all(job.future.done() for job in jobs):
        raise Stopped


def _attempt(work: Callable[..., Any], *args: Any) -> tuple[Any, BaseException | None]:
    """What ``work`` returns or raises; the exception holds on to none of the memory that it passed through."""
    try:
        return work(*args), None
    except BaseException as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        chain: BaseException | None = error
        while chain is not None:
            traceback.clear_frames(chain.__traceback__)
            chain = chain.__cause__ or chain.__context__
        return None, error


def _digest(audio: tuple) -> bytes:
    """Of source and reference: the same for the same samples."""
    recording, reference = audio
    digest = hashlib.blake2b()
    for array in (None if recording is None else recording.waveform, reference):
        digest.update(repr(None if array is None else array.shape).encode())
        if array is not None:
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.digest()
