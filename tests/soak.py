"""A long mixed run: songs of all kinds, cancelled ones and injected faults through one scheduler, beside a stream.

Nothing is lost, memory does not grow, and every good song is the one that it is alone. A script, which
tests/test_soak.py runs: python -m tests.soak CHECKPOINT RECORDING.npy EMPTY_FOLDER
"""

from __future__ import annotations

import concurrent.futures
import errno
import gc
import random
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pytest import MonkeyPatch

import acefast
from acefast.models.v15 import loop
from acefast.request import RequestError
from acefast.scheduler import Scheduler
from tests.test_scheduler import until, workers
from tests.test_stream import joined

WAIT, ROUNDS = 300, 4
NAN, HUNGRY = 900, 901  # seeds of songs whose latents become NaN, which no batch has memory for
CAPACITY = 700  # frames, of all songs of a batch: five of 5.12 s and no six


def good_songs(tune: np.ndarray) -> list[dict]:
    """Forty requests that work, of nine kinds."""
    kinds = [
        {"duration": 5.0},
        {"duration": 6.3, "lyrics": "[verse]\nword after word", "bpm": 90, "fade_out": 1.0},
        {"duration": 5.0, "deterministic": True},
        {"duration": 5.0, "solver": "sde", "steps": 3},
        {"task": "cover-nofsq", "source": tune, "strength": 0.5, "steps": 2},
        {"task": "cover", "source": tune, "deterministic": True},
        {"task": "repaint", "source": tune, "start": 1.0, "end": 3.0},
        {"task": "extend", "source": tune, "end": 6.0, "normalize": None},
        {"duration": 5.0, "reference": tune, "semantics": "diffusers"},
        {"codes": [7, 8, 9] * 9},
    ]
    return [{"prompt": f"song {i}", "seed": i, "steps": 1, **kinds[i % len(kinds)]} for i in range(40)]


class FakeAllocator:
    """Memory for so many frames; who asks for more gets what CUDA's allocator says."""

    def __init__(self, monkeypatch, model) -> None:
        self.refused = Counter()
        for name in ("velocity", "decode"):
            monkeypatch.setattr(model, name, self._limited(name, getattr(model, name)))

    def _limited(self, name, real):
        def limited(latents, *args, **options):
            wanted = latents.shape[0] * latents.shape[1]
            if wanted > CAPACITY:
                self.refused[name, latents.shape[0] > 1] += 1
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {wanted} MiB.")
            return real(latents, *args, **options)

        return limited


def rss() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1])


def check(song: acefast.Song, want: acefast.Song) -> None:
    """Bytes where the song was made alone, else to rounding."""
    if want.request.deterministic:
        assert torch.equal(song.latents, want.latents) and np.array_equal(song.audio, want.audio)
    else:
        torch.testing.assert_close(song.latents, want.latents, rtol=0, atol=1e-5)
        assert np.linalg.norm(song.audio - want.audio) <= 1e-5 * np.linalg.norm(want.audio)
    assert song.codes == want.codes and song.seed == want.seed


def main(checkpoint: str, recording: str, folder: str) -> None:
    """Run it, and print RSS in pages after each round."""
    torch.set_num_threads(1)
    pipe, tune, monkeypatch = acefast.load(checkpoint, device="cpu", dtype="float32"), np.load(recording), MonkeyPatch()
    pipe.scheduler = Scheduler(batch=8, waiting=12)
    asked = good_songs(tune)
    alone = [pipe.generate(**options) for options in asked]
    streamed = joined(pipe.stream("radio", duration=6, steps=1, seed=1))
    real_noise, real_write = loop.start_noise, soundfile.SoundFile.write
    full = threading.local()

    def noise(requests, *args):
        made = real_noise(requests, *args)
        made[[r.seed == NAN for r in requests]] *= torch.inf
        return made

    def write(self, *args):
        if getattr(full, "disk", False):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(self, *args)

    allocator = FakeAllocator(monkeypatch, pipe.model)
    monkeypatch.setattr(loop, "start_noise", noise)
    monkeypatch.setattr(soundfile.SoundFile, "write", write)
    ended, told, sizes = Counter(), [], []

    def fault(kind: str) -> concurrent.futures.Future | None:
        """Submit what goes wrong in one way."""
        own: list[concurrent.futures.Future] = []
        submitted = threading.Event()

        def cancel_at(stage: str):
            def progress(name, done, total) -> None:
                if name == stage and done:
                    submitted.wait(WAIT)
                    own[0].cancel()

            return progress

        def broken(*_) -> None:
            raise KeyError("mine")

        short = {"prompt": kind, "duration": 5.0, "steps": 2, "seed": 800}
        if kind == "refused":
            with pytest.raises(RequestError):
                pipe.submit("x", duration=1)
            return None
        options = {
            "cancelled at once": {},
            "cancelled in a step": {"progress": cancel_at("diffusion")},
            "cancelled in a tile": {"progress": cancel_at("decode")},
            "nan": {"seed": NAN, "steps": 1},
            "raising progress": {"progress": broken, "steps": 1},
            "raising hook": {"on_step": broken},
            "no memory": {"seed": HUNGRY, "duration": 30.0},
        }[kind]
        own.append(pipe.submit(**{**short, **options}))
        submitted.set()
        if kind == "cancelled at once":
            own[0].cancel()
        return own[0]

    expected = {
        "cancelled at once": concurrent.futures.CancelledError,
        "cancelled in a step": concurrent.futures.CancelledError,
        "cancelled in a tile": concurrent.futures.CancelledError,
        "nan": RequestError,
        "raising progress": KeyError,
        "raising hook": KeyError,
        "no memory": RequestError,
    }
    faults = [*expected, "cancelled at once", "refused", "full disk"]

    def submit(work: list) -> list:
        """What came of each: (what, its future)."""
        futures = []
        for what in work:
            if isinstance(what, str) and what != "full disk":
                future = fault(what)
            else:
                future = pipe.submit(**asked[0 if what == "full disk" else what])
            if future is not None:
                future.add_done_callback(lambda future: told.append(future))
            futures.append((what, future))
        return futures

    def collect(what, future) -> None:
        if what in expected:
            with pytest.raises(expected[what]):
                future.result(WAIT)
        elif future is not None:
            song = future.result(WAIT)
            check(song, alone[0 if what == "full disk" else what])
            full.disk, path = what == "full disk", Path(folder, "song.wav")
            if full.disk:
                with pytest.raises(RequestError, match="No space left"):
                    song.save(path)
            elif what % 10 == 0:
                song.save(path).unlink()
            assert not list(Path(folder).iterdir())
        ended[what] += 1

    shuffle = random.Random(0).shuffle
    for _ in range(ROUNDS):
        work = [*range(len(asked)), *faults]
        shuffle(work)
        with concurrent.futures.ThreadPoolExecutor(3) as callers:
            halves = [callers.submit(submit, half) for half in (work[::2], work[1::2])]
            stream = callers.submit(lambda: joined(pipe.stream("radio", duration=6, steps=1, seed=1)))
            for half in halves:
                for what, future in half.result(WAIT):
                    collect(what, future)
            del half, halves, what, future
            assert np.array_equal(stream.result(WAIT), streamed)
        until(lambda: not workers())
        told.clear() if len(told) == len(work) - 1 else pytest.fail(
            f"{len(told)} of {len(work)} futures told their end"
        )
        sizes.append(rss())
    assert sum(ended.values()) == 200 and not pipe.scheduler._jobs and not pipe.scheduler._queue
    assert all(ended[what] == ROUNDS for what in [*range(len(asked)), *expected] if what != "cancelled at once")
    assert allocator.refused["velocity", True] and allocator.refused["velocity", False] == ROUNDS
    print(*sizes)


if __name__ == "__main__":
    main(*sys.argv[1:])
