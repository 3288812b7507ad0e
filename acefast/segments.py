"""What a stream is made of: one song's windows, or segments of music that each go on from the one before.

Segment k hears the latents of the last ``context`` frames, makes ``segment`` new ones behind them and ``TAIL`` more
that nobody hears, since a song's last moments are its end. Where it begins it makes the last frames before it anew,
blended into what was there, as any extension is. Frames are decoded once they and the neighbours that their audio
depends on no longer change, so that to the decoder all segments are one song.

    segment k     |------------- new -------------|- tail -|
                               decoded up to |....|  the decoder's context and the frames that will be blended
    segment k+1         |------- heard -----------|------------- new -------------|- tail -|
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from acefast.finish import Finish
from acefast.lead import Lead
from acefast.options import listed
from acefast.prompts import instruction
from acefast.repaint import repaint_plan
from acefast.request import Request, RequestError
from acefast.stages import Progress, memory_told
from acefast.values import nearest, real, shown
from acefast.waveform import SAMPLE_RATE, SAMPLES_PER_FRAME

LONGEST = 600.0  # seconds of a song
RATE = SAMPLE_RATE // SAMPLES_PER_FRAME  # frames a second
TAIL = RATE
SEED_STEP = 0x9E3779B97F4A7C15  # from a segment's seed to the next one's: odd and far, so that streams do not meet
CHANGES = ("prompt", "lyrics", "instrumental", "bpm", "key", "time_signature", "language", "reference", "instruction")


class Piece(NamedTuple):
    """Finished audio and what it was made for."""

    samples: np.ndarray  # [2, n]
    final: bool
    segment: int
    request: Request
    cuts: list[str]  # what of its prompt and lyrics was cut


@dataclass(frozen=True)
class Plan:
    """How a stream is cut into segments, in latent frames."""

    total: float  # infinity: no end
    segment: int
    context: int


def check_plan(duration: Any, segment: Any, context: Any, options: Mapping[str, Any]) -> Plan | None:
    """The segments of a stream, None for one song; RequestError for what cannot be streamed so. Times in seconds."""
    if duration is not None:
        needs = f"5 to {LONGEST:g} seconds, above that in segments, or infinity for no end"
        duration = real("duration", duration, 5, math.inf, needs)
    if segment is None and (duration is None or duration <= LONGEST):
        if context is not None:
            raise RequestError("context has no use in a stream of one song; give segment too or leave it out")
        return None
    segment = real("segment", 20.0 if segment is None else segment, 10, 300, "10 to 300 seconds")
    context = real("context", 10.0 if context is None else context, 2, 60, "2 to 60 seconds")
    task = options.get("task", "text2music")
    if task != "text2music":
        way_out = f"leave segment out and take a duration up to {LONGEST:g} seconds"
        raise RequestError(f"a stream in segments makes text2music, got task={shown(task)}; {way_out}")
    for name in ("codes", "noise"):
        if options.get(name) is not None:
            raise RequestError(f"{name} has no use in a stream in segments, each of which has its own; leave it out")
    total = 60.0 if duration is None else duration
    if math.isinf(total) and options.get("fade_out"):
        raise RequestError("fade_out has no use in a stream without an end; leave it out or give a duration")
    return Plan(total if math.isinf(total) else round(total * RATE), round(segment * RATE), round(context * RATE))


@dataclass(eq=False)
class Change:
    """What one ``update`` asked for."""

    at: float  # second of the stream
    what: dict[str, Any]
    audio: Any = None  # source and reference, where it changes them


class Script:
    """What each segment is asked for; changed from the thread that listens while another one composes."""

    def __init__(self, request: Request, model: Any) -> None:
        """``request`` with its checkpoint's defaults; its reference audio is read here and kept."""
        self._model, self._request = model, request
        self.audio = model.check([request])
        self._coming: list[Change] = []
        self._lock = threading.Lock()

    def update(self, at: float, changes: dict[str, Any]) -> None:
        """Have ``changes`` hold from the first segment on that begins at second ``at`` or later.

        Raises:
            RequestError: an option that cannot change, or a value that it cannot have.
        """
        for name in changes:
            if name not in CHANGES:
                near = nearest(str(name), CHANGES)
                known = f"the nearest that can is {near!r}" if near else f"what can is {listed(CHANGES)}"
                raise RequestError(f"{shown(name)} cannot change between segments; {known}")
        with self._lock:
            added, request = Change(at, changes), self._request
            coming = sorted([*self._coming, added], key=lambda change: change.at)  # of one second, as they came
            for i, change in enumerate(coming):
                request = replace(request, **change.what)
                if i >= coming.index(added):  # what was announced for later has to go with it too
                    audio = self._model.check([request])
                    added.audio = audio if change is added and "reference" in changes else added.audio
            self._coming = coming

    def segment(self, k: int, begin: float, seconds: float) -> tuple[Request, Any]:
        """Request and audio of segment ``k``, ``seconds`` long, which begins at second ``begin``."""
        with self._lock:
            while self._coming and self._coming[0].at <= begin:
                change = self._coming.pop(0)
                self._request = replace(self._request, **change.what)
                self.audio = self.audio if change.audio is None else change.audio
            request, audio = self._request, self.audio
        own: dict[str, Any] = {"seed": _stepped(request.seed, k), "duration": seconds, "fade_in": 0.0, "fade_out": 0.0}
        if request.variation_seed is not None:
            own["variation_seed"] = _stepped(request.variation_seed, k)
        if k and request.instruction is None:
            own["instruction"] = instruction("extend")
        return replace(request, **own), audio


def song_of(pipe: Any, request: Request, audio: Any, gain: float, told: Progress, lead: Lead) -> Iterator[Piece]:
    """The pieces of one song. ``audio`` is its source and reference; ``told`` may raise to stop the work."""
    with pipe.at_work(waiting=lead.check):
        made = pipe.compose([request], audio, told, {})
    frames = made.task.frames
    finish = Finish(request, pipe.model.samples(frames), made.task, gain)
    for samples, final in _decoded(pipe, request, made.latents, (0, frames), finish, True, told, lead):
        yield Piece(samples, final, 0, request, made.cuts[0])


def segments_of(
    pipe: Any, script: Script, request: Request, plan: Plan, gain: float, told: Progress, lead: Lead
) -> Iterator[Piece]:
    """The pieces of a stream in segments; level and fades are those of ``request``, all else is the script's."""
    model, halo = pipe.model, pipe.model.context_frames
    # Every segment is blended in over so many frames: the strength of an extension that is asked for none.
    blend = 0 if request.semantics == "diffusers" else repaint_plan(request.repaint_mode).boundary_frames
    finish = Finish(request, plan.total * SAMPLES_PER_FRAME, gain=gain)
    kept: Tensor | None = None  # [1, n, D], the last frames before ``end``
    end = done = 0  # frames composed, frames decoded
    for k in itertools.count():
        left = plan.total - end
        last = left < 1.5 * plan.segment  # what is over is too short for a segment of its own
        new = int(left) if last else plan.segment
        hear = min(plan.context, end)
        frames = hear + new + (0 if last else TAIL)
        own, audio = script.segment(k, end / RATE, frames / RATE)
        with pipe.at_work(waiting=lead.check):
            task = model.continuation(frames, kept[:, -hear:] if hear else None)
            made = pipe.compose([own], audio, told, {}, task=task)
            if kept is None:
                kept = made.latents[:, :new]
            else:
                kept = torch.cat([kept[:, : kept.shape[1] - blend], made.latents[:, hear - blend : hear + new]], 1)
        end += new
        base, until = end - kept.shape[1], end if last else end - blend - halo
        for samples, final in _decoded(pipe, own, kept, (done - base, until - base), finish, last, told, lead):
            yield Piece(samples, final, k, own, made.cuts[0])
        if last:
            return
        done = until
        with pipe.at_work(waiting=lead.check):
            kept = kept[:, min(done - halo, end - plan.context) - base :].clone()  # its memory is all that stays


def _decoded(
    pipe: Any,
    request: Request,
    latents: Tensor,
    keep: tuple[int, int],
    finish: Finish,
    ends: bool,
    told: Progress,
    lead: Lead,
) -> Iterator[tuple[np.ndarray, bool]]:
    """Finished samples, and whether they are the last, of each window of the frames ``keep`` of ``latents``."""
    model, (begin, until) = pipe.model, keep
    tiles, total = model.decode_tiles(latents, keep), model.samples(until) - model.samples(begin)
    lower = partial(pipe.lower, [request], model.samples(latents.shape[1]) / model.sample_rate)
    told("decode", 0, until - begin)
    done = 0
    while done < total:
        with pipe.at_work(model.coding, lead.check), memory_told("decode", lower):
            wave = next(tiles)[1][0].numpy()
        done += wave.shape[1]
        told("decode", (until - begin) * done // total, until - begin)
        final = ends and done == total
        samples = finish(wave, final)
        if final or samples.size:
            yield samples, final


def _stepped(seed: int, k: int) -> int:
    return (seed + k * SEED_STEP) % (1 << 64)
