"""Songs made together: which may be, and how a composed batch becomes songs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from acefast.finish import finish, level_of
from acefast.request import Request, options
from acefast.song import Song
from acefast.stages import Progress, stage
from acefast.tasks import Task

BATCH = 8  # songs made together at most
# What a batch's songs may differ in, or what has a rule of its own.
OWN = frozenset(
    {"prompt", "lyrics", "instrumental", "bpm", "key", "time_signature", "language", "instruction", "lyrics_overflow"}
    | {"target_prompt", "target_lyrics", "seed", "variation_seed", "fade_in", "fade_out", "duration", "noise"}
    | {"source", "reference", "on_step"}
)


def likeness(request: Request, model: Any) -> Hashable:
    """What songs that are made together have in common: requests of equal likeness may be.

    Lengths may differ within the bucket that a GPU rounds them up to, where neither a source, given noise or a hook has
    a length nor anything in the sampler reads beyond a song's end. That they share their audio is the caller's to see.
    """
    length = model.bucket(request) if _any_length(request) else request.duration
    common = [getattr(request, name) for name in options() if name not in OWN]
    return (request.noise is None, length, id(request.on_step), *common)


def grouped(keys: Sequence[Hashable], limit: int = BATCH) -> list[list[int]]:
    """Indices of equal keys, at most ``limit`` together, in the order in which the first of each comes."""
    groups: list[list[int]] = []
    open_groups: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        group = open_groups.get(key, ())
        if not 0 < len(group) < limit:
            group = open_groups[key] = []
            groups.append(group)
        group.append(i)
    return groups


def _any_length(request: Request) -> bool:
    free = request.task == "text2music" and request.codes is None and request.noise is None and request.on_step is None
    plain = request.guidance_scale == 1 or request.guidance in ("apg", "cfg")  # adg measures whole rows
    exact = (request.pad_mode, request.precision, request.noise_source) == ("exact", "exact", "philox")
    return free and plain and exact and request.dcw == "off"


class Composed(NamedTuple):
    """A batch before it is decoded."""

    task: Task
    latents: Tensor  # [B, T, D] float32; a shorter song's are its first
    cuts: list[list[str]]  # what of each song's prompt and lyrics was cut, a sentence each
    lora: dict[str, Any] | None = None  # that it was composed with, as ``Pipeline.lora`` tells it

    def only(self, i: int) -> Composed:
        """Song ``i`` of the batch."""
        return self._replace(task=self.task.only(i), latents=self.latents[i : i + 1], cuts=self.cuts[i : i + 1])


def make(pipe: Any, requests: list[Request], progress: Progress) -> list[Song]:
    """The songs of any requests, one batch after the other; all are checked before the first is made."""
    keys = [(likeness(r, pipe.model), id(r.source), id(r.reference)) for r in requests]
    audio = {key: pipe.model.check([r for r, k in zip(requests, keys) if k == key]) for key in dict.fromkeys(keys)}
    songs: dict[int, Song] = {}
    for batch in grouped([object() if r.deterministic else key for r, key in zip(requests, keys)]):
        own, timings = [requests[i] for i in batch], {}
        with pipe.at_work():
            made = pipe.compose(own, audio[keys[batch[0]]], progress, timings, stacklevel=4)
        songs.update(zip(batch, decode(pipe, own, made, progress, timings)))
    return [songs[i] for i in range(len(songs))]


def decode(
    pipe: Any,
    requests: list[Request],
    made: Composed,
    progress: Progress,
    timings: dict[str, float],
    waiting: Callable[[], None] | None = None,
) -> list[Song]:
    """The songs of what ``pipe.compose`` made of their requests; the stages "decode" and "finish".

    Between two tiles the autoencoder goes to another thread that waits for it.

    Args:
        waiting: see ``acefast.lanes.Lane.work``.
    """
    model, task = pipe.model, made.task
    lower = partial(pipe.lower, requests, task.seconds)
    lengths = task.lengths or [task.frames] * len(requests)
    total, done = sum(set(lengths)), 0  # frames of a song; those of one length are decoded together
    waves: dict[int, np.ndarray] = {}
    with pipe.at_work(model.coding, waiting):
        with stage("decode", timings, progress, total, lower) as report:
            for batch in grouped(lengths):
                frames = lengths[batch[0]]

                def told(tiled: int, _: int, before: int = done) -> None:
                    report(before + tiled, total)
                    model.coding.give_way()

                audio = model.decode(made.latents[batch, :frames], told, level_of(requests[0], task))
                waves.update(zip(batch, (row.clone().numpy() for row in audio) if len(batch) > 1 else audio.numpy()))
                done += frames
        with torch.inference_mode(False):  # a song's tensor is an ordinary one, and its own
            kept = [row[:n].detach().float().cpu().clone() for row, n in zip(made.latents, lengths)]
    songs = []
    # The current stream is another thread's by now.
    with stage("finish", timings, progress, way_out=lower, launches=False):
        for i, request in enumerate(requests):
            own = task.only(i)
            audio, codes = finish(waves[i], request, own), own.codes[0] if own.codes else None
            about = dict(request=request, model=pipe.name, lora=made.lora, warnings=made.cuts[i])
            songs.append(Song(audio, kept[i], model.sample_rate, request.seed, codes, **about))
    for song in songs:
        song.timings = dict(timings)
    return songs
