"""Lanes on a GPU: decoding on a stream of its own, beside the steps; songs made so are what they are alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton", "3.2", reason="triton is not installed")

import acefast
from tests.songs import distance, same

WAIT = 300
SHORT = {"duration": 5.0, "steps": 2}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
    pytest.mark.usefixtures("offline"),
]


@pytest.fixture(scope="module")
def pipe(tiny):
    return acefast.load(tiny, device="cuda", dtype="bfloat16")


def mixed(tune) -> list[dict]:
    """Requests that use every static memory: the transformer's of two lengths, the decoder's and the encoder's."""
    kinds = [
        SHORT,
        {"duration": 21.0, "steps": 3},
        {"task": "cover", "source": tune, "steps": 2},
        {"task": "repaint", "source": tune, "start": 1.0, "end": 3.0, "steps": 2},
    ]
    return [{"prompt": f"song {i}", "seed": i, "deterministic": True, **kinds[i % len(kinds)]} for i in range(16)]


def test_what_is_captured_and_made_side_by_side_is_what_is_made_alone(tiny, tune):
    """On a model that has captured nothing yet: both threads warm up, capture and replay beside each other."""
    pipe, asked = acefast.load(tiny, device="cuda", dtype="bfloat16"), mixed(tune)
    with pipe.at_work():
        futures = [pipe.submit(**options) for options in asked]
        stream = pipe.stream("radio", duration=12.0, steps=2, seed=3, normalize=None)
    streamed = np.concatenate([chunk.samples for chunk in stream], 1)
    songs = [future.result(WAIT) for future in futures]
    for song, options in zip(songs, asked):
        assert same(song, pipe.generate(**options)), options
    assert np.array_equal(streamed, pipe.generate("radio", duration=12.0, steps=2, seed=3, normalize=None).audio)


def test_songs_of_several_lengths_are_as_near_to_fp32_together_as_alone(pipe, tiny_pipe):
    asked = [acefast.Request("drill" * (1 + i), seed=i, steps=2, duration=5 + 1.3 * i) for i in range(4)]
    for got, alone, exact in zip(pipe.generate(asked), map(pipe.generate, asked), map(tiny_pipe.generate, asked)):
        assert got.latents.shape == exact.latents.shape
        assert distance(got, exact) <= 1.5 * distance(alone, exact)


def test_a_song_is_decoded_while_the_default_stream_is_busy(pipe):
    """A kernel that does nothing for seconds stands for the steps of others: decoding waits neither on nor for it."""
    with pipe.at_work():
        latents = torch.randn(1, 128, 8, device="cuda")
    default, busy = torch.cuda.current_stream(), torch.cuda.Event()
    with pipe.at_work(pipe.model.coding):
        assert torch.cuda.current_stream() == pipe.model.coding.stream != default
        want = pipe.model.decode(latents)  # compiled, its memory allocated
    torch.cuda.synchronize()
    torch.cuda._sleep(8_000_000_000)  # clocks: 4 s at 2 GHz
    busy.record()
    with pipe.at_work(pipe.model.coding):
        got = pipe.model.decode(latents)
    still_busy = not busy.query()
    torch.cuda.synchronize()
    assert still_busy and torch.equal(got, want)


def test_who_leaves_a_lane_has_waited_for_what_it_launched(pipe):
    event = torch.cuda.Event()
    for lane in (pipe.composing, pipe.model.coding):
        with pipe.at_work(lane):
            torch.cuda._sleep(200_000_000)
            event.record()
            assert not event.query()
        assert event.query()


def test_a_batch_without_memory_is_made_song_by_song(pipe, monkeypatch):
    """What the failed batch held is free again before its songs are made one by one."""
    real, held = pipe.model.velocity, []

    def hungry(x, *args, **options):
        if len(x) > 1:
            mine = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(mine)} bytes.")
        held.append(torch.cuda.memory_allocated())
        return real(x, *args, **options)

    pipe.generate("drill", **SHORT)
    before = torch.cuda.memory_allocated()
    monkeypatch.setattr(pipe.model, "velocity", hungry)
    monkeypatch.setattr(pipe.model, "advance", lambda *args, **options: None)  # steps by ``velocity``
    with pipe.at_work():
        futures = [pipe.submit("drill", seed=i, **SHORT) for i in range(3)]
    assert [future.result(WAIT).seed for future in futures] == [0, 1, 2]
    assert max(held) < before + (1 << 29)
