"""Audio while it is being made: one song window by window, or segments that go on from one another without an end."""

from __future__ import annotations

import contextvars
import threading
import time
import warnings
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acefast.expand import expand
from acefast.lead import Lead
from acefast.request import Request, RequestError
from acefast.segments import LONGEST, Script, check_plan, segments_of, song_of
from acefast.stages import Progress
from acefast.values import real


@dataclass(frozen=True, eq=False)
class AudioChunk:
    """A piece of a stream; each begins where the one before it ended.

    Attributes:
        samples: float32 numpy [2, n], full scale +-1.
        start: second of the stream at which it begins.
        sample_rate: Hz.
        final: whether it is the last one.
        seed: the stream's.
        segment: number of the segment it was decoded with, from 0; a boundary between two lies up to a second before.
        request: what that segment was asked for, its own prompt, lyrics and seed among it.
    """

    samples: np.ndarray
    start: float
    sample_rate: int
    final: bool
    seed: int
    segment: int
    request: Request

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples.shape[1] / self.sample_rate


class Stream:
    """What ``Pipeline.stream`` gives: an iterator of ``AudioChunk``, worked for by a thread of its own.

    The thread starts with the first chunk that is asked for and keeps at most ``ahead`` seconds of audio ready, so the
    next segment is made while the last one plays. It ends with the stream: after the last chunk, on ``close()``, at the
    end of a ``with`` block, when a loop is left and the stream dropped, on Ctrl-C; at most one step of the sampler or
    one window later. What goes wrong in it is raised from the loop. ``on_step`` and ``progress`` are called in it. The
    pipeline can make other songs meanwhile: segments are composed in turn with them, windows are decoded beside their
    steps and between their tiles.

    **Level.** A peak that is not known yet cannot be normalised. ``normalize``, -1 dBFS if not given, is instead the
    ceiling of a running limiter (``acefast.limiter.Limiter``: down over 5 ms before a peak, up by 20 dB a second after
    it; other samples keep their bits), ``gain`` is applied before it. ``normalize=None`` leaves it out: with no gain
    those are bit for bit the samples of ``Pipeline.generate(..., normalize=None)``. What a repaint or an extension
    keeps of its source is not limited.

    **Segments.** ``duration`` above 600 seconds, ``math.inf``, or ``segment`` make a stream of text2music segments.
    Each is shown the latents of the last ``context`` seconds and goes on from there, as an extension does, with the
    lyrics and prompt then in force; the last second is made anew by the next one, so that the two grow together, and
    every sample is decoded with its real neighbours on both sides. Memory is that of one segment, however long the
    stream. Segment k's seed is ``seed + k * 0x9E3779B97F4A7C15`` (mod 2**64).

    The same seed, options and timed updates give the same bits, however fast chunks are taken.
    """

    def __init__(
        self,
        pipe: Any,
        prompt: str,
        lyrics: str = "",
        *,
        duration: float | None = None,
        segment: float | None = None,
        context: float | None = None,
        ahead: float = 15.0,
        gain: float = 0.0,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        """Check everything; no work is done before the first chunk is asked for.

        Args:
            duration: seconds: as in a song up to 600, above it in segments, ``math.inf`` without an end.
            segment: seconds of new music at a time, 10 to 300; 20 if not given and the stream is longer than a song.
            context: seconds of music that the next segment hears, 2 to 60; 10 if not given.
            ahead: seconds of audio kept ready, 0 to 600: what making a segment takes, or playing pauses.
            gain: dB before the limiter, -60 to 60.
            progress: as of ``Pipeline.generate``; called for every segment.
            options: of ``acefast.Request``; one song, so no lists. Segments take neither ``codes`` nor ``noise``.
        Raises:
            RequestError: an option cannot work.
        """
        ahead = real("ahead", ahead, 0, 600, "0 to 600 seconds")
        gain = real("gain", gain, -60, 60, "-60 to 60 dB")
        plan = check_plan(duration, segment, context, options)
        if plan is not None and not pipe.model.continues:
            raise RequestError(
                f"{pipe.name} makes no stream in segments; take a model of ACE-Step 1.5, or leave segment out and give "
                "a duration that is one song's"
            )
        length = {} if duration is None else {"duration": min(duration, LONGEST)}
        requests, many = expand(prompt, lyrics, **length, **options)
        if many:
            raise RequestError("stream makes one song at a time; give one prompt, lyrics and seed, no lists")
        request = requests[0].for_checkpoint(pipe.model.traits)
        self.seed, self.sample_rate = request.seed, pipe.model.sample_rate
        self._lead = lead = Lead(ahead)
        self._script = script = Script(request, pipe.model)
        self._plan, self._cuts, self._end = plan, [], None
        self._starting = threading.RLock()  # one thread alone starts the work, and none while another one closes

        def told(name: str, done: int, total: int) -> None:
            lead.check()
            if progress is not None:
                progress(name, done, total)

        def work() -> None:
            torch.set_num_threads(threads)  # OpenMP's number is each thread's own, and bits may depend on it
            if plan is None:
                pieces = song_of(pipe, request, script.audio, gain, told, lead)
            else:
                pieces = segments_of(pipe, script, request, plan, gain, told, lead)
            start, rate = 0, pipe.model.sample_rate
            for piece in pieces:
                n = piece.samples.shape[1]
                about = (start / rate, rate, piece.final, request.seed, piece.segment, piece.request)
                lead.put((AudioChunk(piece.samples, *about), piece.cuts), n / rate)
                start += n

        # Neither refers to the stream itself, which so ends when nobody holds it any more.
        threads, within = torch.get_num_threads(), contextvars.copy_context()
        self._run = lambda: within.run(lead.run, work)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> AudioChunk:
        try:
            with self._starting:
                if self._run is not None:
                    thread, self._run = threading.Thread(target=self._run, name="acefast-stream", daemon=True), None
                    # Also before Python ends. First this: Ctrl-C may be heard while the thread starts.
                    self._end = weakref.finalize(self, _end, self._lead, thread)
                    thread.start()
            found = self._lead.get()
        except BaseException:
            self.close()
            raise
        if found is None:
            self.close()
            raise StopIteration
        chunk, cuts = found
        if cuts != self._cuts:
            self._cuts = cuts
            for sentence in cuts:
                warnings.warn(sentence, stacklevel=2)
        return chunk

    def update(self, *, at: float = 0.0, **changes: Any) -> None:
        """Change what is played between two segments; may be called at any time, also before the first chunk.

        Args:
            at: second of the stream. The first segment to begin there or later, and not begun by then, is the first
                that is made so; heard is the change that much later than now that there is music ready. A change
                announced before its segment could be begun is repeatable; one without ``at`` comes as soon as it can.
            changes: prompt, lyrics, instrumental, bpm, key, time_signature, language, reference, instruction. What is
                not named stays.
        Raises:
            RequestError: another option, a value it cannot have, or a stream of one song.
        """
        if self._plan is None:
            raise RequestError("update has no use in a stream of one song; give segment or duration=math.inf")
        self._script.update(real("at", at, 0, float("inf"), "a second of the stream, 0 or more"), changes)

    def close(self) -> None:
        """End the thread and drop what it has made; chunks end here. May be called twice."""
        with self._starting:
            self._lead.stop()
            self._run = None
        if self._end is not None:
            self._end()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end(lead: Lead, thread: threading.Thread) -> None:
    lead.stop()
    if thread is threading.current_thread():  # the garbage collector runs in any thread
        return
    for _ in range(100):
        try:
            thread.join()
            return
        except RuntimeError:  # Ctrl-C came while it was being started: it is about to run, or never will
            time.sleep(0.01)
