"""A stream of segments: one piece of music to the ear and to the decoder, of any length, in bounded memory."""

from __future__ import annotations

import gc
import math
from itertools import islice

import numpy as np
import pytest
import torch

import acefast
from acefast.lead import Lead
from acefast.models.v15 import vae, vae_tiling
from acefast.models.v15.vae_tile import DecoderTile
from acefast.prompts import instruction
from acefast.segments import SEED_STEP, TAIL, Script, check_plan, segments_of
from tests.songs import HOP, counted, sentence, velocities
from tests.test_stream import RATE, joined

pytestmark = pytest.mark.usefixtures("offline")
SHORT = {"segment": 10, "context": 4, "steps": 1, "seed": 1, "normalize": None}
NEW, HEARD, BLEND = 250, 100, 12  # frames; those of an extension of strength 0.5 are blended


@pytest.fixture
def silent(monkeypatch, tiny_pipe):
    """Streams of silence, for tests that do not listen."""

    def decode_tiles(latents, keep=None):
        first, last = keep or (0, latents.shape[1])
        yield first, torch.zeros(1, 2, (last - first) * HOP)

    monkeypatch.setattr(tiny_pipe.model, "decode_tiles", decode_tiles)


def composed(pipe, monkeypatch) -> list[tuple]:
    """(request, task, latents) of every segment, filled as each is composed."""
    made, real = [], pipe.compose

    def compose(requests, *args, **options):
        result = real(requests, *args, **options)
        made.append((requests[0], result.task, result.latents))
        return result

    monkeypatch.setattr(pipe, "compose", compose)
    return made


@pytest.mark.parametrize(("context", "halo"), [(4, 9), (2, 40)], ids=["usual", "halo longer than the context"])
def test_segments_are_decoded_as_one_song(tiny_pipe, monkeypatch, context, halo):
    monkeypatch.setattr(type(tiny_pipe.model), "context_frames", halo)
    HEARD, made = 25 * context, composed(tiny_pipe, monkeypatch)
    audio = joined(tiny_pipe.stream("boom bap", duration=34, **{**SHORT, "context": context}))
    first, second, third = (latents for _, _, latents in made)
    heard = [second[:, : HEARD - BLEND], third[:, : HEARD - BLEND]]
    assert torch.equal(heard[0], first[:, NEW - HEARD : NEW - BLEND])  # the source is held, up to the blend
    song = torch.cat([first[:, : NEW - BLEND], second[:, HEARD - BLEND : HEARD + NEW]], 1)
    assert torch.equal(heard[1], song[:, -HEARD:-BLEND])
    song = torch.cat([song[:, :-BLEND], third[:, HEARD - BLEND :]], 1)
    assert song.shape[1] == 34 * 25 and audio.shape == (2, 34 * RATE)
    with torch.inference_mode():
        whole = vae.decode(tiny_pipe.model.decoder, song).audio[0].numpy()
    assert np.linalg.norm(audio - whole) <= 1e-6 * np.linalg.norm(whole)  # the windows lie elsewhere


def test_so_they_are_on_the_static_memory_of_a_gpus_kernels(tiny_pipe, monkeypatch):
    options = {**SHORT, "duration": 24}
    want = joined(tiny_pipe.stream("boom bap", **options))
    for module in (vae, vae_tiling):
        monkeypatch.setattr(module, "on_kernels", lambda coder: True)  # the references compute its tiles here
    launched = counted(monkeypatch, DecoderTile, "load")
    got = joined(tiny_pipe.stream("boom bap", **options))
    assert len(launched) >= 6 and np.linalg.norm(got - want) <= 3e-6 * np.linalg.norm(want)


def test_a_segment_hears_the_last_seconds_and_makes_the_rest(tiny_pipe, monkeypatch, silent):
    made, calls = composed(tiny_pipe, monkeypatch), velocities(tiny_pipe, monkeypatch)
    joined(tiny_pipe.stream("boom bap", duration=34, **{**SHORT, "steps": 4}, variation=0.1, variation_seed=2**64 - 1))
    assert [task.frames for _, task, _ in made] == [NEW + TAIL, HEARD + NEW + TAIL, HEARD + 350]
    second = calls[4]["conditions"].context[0]
    assert torch.equal(second[:HEARD, :8], made[0][2][0, NEW - HEARD : NEW])
    silence = tiny_pipe.model.silence(HEARD + NEW + TAIL)[0]
    assert torch.equal(second[HEARD:, :8], silence[HEARD:])
    assert second[:, 8:].unique().tolist() == [0, 1] and not second[:HEARD, 8:].any()
    plain, extending = made[0][0], made[1][0]
    assert plain.instruction is None and extending.instruction == instruction("extend")
    assert [request.seed for request, _, _ in made] == [1, 1 + SEED_STEP, (1 + 2 * SEED_STEP) % 2**64]
    assert [request.variation_seed for request, _, _ in made] == [2**64 - 1, SEED_STEP - 1, (2 * SEED_STEP - 1) % 2**64]
    assert [request.duration for request, _, _ in made] == [task.seconds for _, task, _ in made]


@pytest.mark.parametrize(("seconds", "segments"), [(10.04, 1), (14.9, 1), (15.0, 2), (24.96, 2), (25.0, 3)])
def test_a_stream_is_as_long_as_asked_for(tiny_pipe, silent, seconds, segments):
    """What is left behind the last whole segment becomes one of its own from half of one on."""
    chunks = list(tiny_pipe.stream("boom bap", duration=seconds, **SHORT))
    assert sum(chunk.samples.shape[1] for chunk in chunks) == round(25 * seconds) * HOP
    assert [chunk.segment for chunk in chunks] == [*range(segments)] and chunks[-1].final


def test_beyond_a_songs_length_a_stream_goes_on_in_segments(tiny_pipe, silent):
    chunks = list(tiny_pipe.stream("boom bap", duration=601, segment=200, steps=1, fade_out=600, normalize=None))
    assert chunks[-1].final and chunks[-1].start + chunks[-1].duration == 601 and chunks[-1].segment == 2
    assert next(tiny_pipe.stream("boom bap", duration=601, steps=1)).request.duration == 21  # 20 s and the tail


def test_the_same_seed_gives_the_same_chunks(tiny_pipe):
    options = {**SHORT, "normalize": -1.0, "duration": 24, "fade_in": 1, "fade_out": 3}
    one = list(tiny_pipe.stream("boom bap", ahead=0, **options))
    other = list(tiny_pipe.stream("boom bap", ahead=600, **options))
    assert [chunk.start for chunk in one] == [chunk.start for chunk in other]
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(one, other))
    audio = np.concatenate([chunk.samples for chunk in one], 1)
    assert np.abs(audio).max() <= np.float32(10 ** (-1 / 20)) and audio[0, 0] == audio[1, -1] == 0
    different = next(tiny_pipe.stream("boom bap", **{**options, "seed": 2}))
    assert not np.array_equal(different.samples, one[0].samples)


def test_words_change_from_the_segment_on_that_they_are_announced_for(tiny_pipe):
    options = {**SHORT, "duration": 32, "steps": 2}
    plain = joined(tiny_pipe.stream("boom bap", **options))
    stream = tiny_pipe.stream("boom bap", **options)
    stream.update(at=12, prompt="drill", lyrics="[verse]\nla", bpm=140)
    stream.update(at=3, key="am")
    chunks = list(stream)
    audio = np.concatenate([chunk.samples for chunk in chunks], 1)
    told = {chunk.segment: (chunk.request.prompt, chunk.request.key, chunk.request.bpm) for chunk in chunks}
    assert told == {0: ("boom bap", None, None), 1: ("boom bap", "A minor", None), 2: ("drill", "A minor", 140)}
    changed = np.flatnonzero((audio != plain).any(0))[0]
    assert (NEW - BLEND - 9) * HOP <= changed < NEW * HOP  # where the second segment is blended in
    again = tiny_pipe.stream("boom bap", **options)
    again.update(at=3, key="am")
    third = np.flatnonzero((joined(again) != audio).any(0))[0]
    assert (2 * NEW - BLEND - 9) * HOP <= third < 2 * NEW * HOP


def test_an_update_without_a_time_comes_with_the_next_segment(tiny_pipe, silent):
    stream = tiny_pipe.stream("boom bap", duration=math.inf, ahead=0, **SHORT)
    assert next(stream).request.prompt == "boom bap"
    stream.update(prompt="drill")
    told = [chunk.request.prompt for chunk in islice(stream, 4)]
    assert told[-2:] == ["drill"] * 2  # one segment may have been begun, one be ready
    stream.close()


def test_updates_have_to_go_together_in_the_order_of_their_seconds(tiny_pipe, silent):
    stream = tiny_pipe.stream("boom bap", duration=40, **SHORT)
    stream.update(at=20, lyrics="la")
    with pytest.raises(acefast.RequestError, match="instrumental=True leaves no room for lyrics"):
        stream.update(at=10, instrumental=True, lyrics="")  # what comes later has words
    stream.update(at=30, instrumental=True, lyrics="")
    stream.update(at=10, lyrics="oh")  # and this comes before it
    told = {chunk.segment: (chunk.request.lyrics, chunk.request.instrumental) for chunk in stream}
    assert told == {0: ("", False), 1: ("oh", False), 2: ("la", False), 3: ("", True)}


def test_updates_that_cannot_work_are_refused_where_they_are_made(tiny_pipe, silent):
    stream = tiny_pipe.stream("boom bap", duration=math.inf, **SHORT)
    for options, words in (
        ({"seed": 3}, "'seed' cannot change between segments"),
        ({"promt": "x"}, "the nearest that can is 'prompt'"),
        ({"bpm": 1000}, "bpm must be a whole number 30 to 300"),
        ({"at": -1, "prompt": "x"}, "at must be a second of the stream"),
        ({"reference": "missing.wav"}, "there is no file 'missing.wav'"),
        ({"instrumental": True, "lyrics": "la"}, "instrumental=True leaves no room for lyrics"),
    ):
        with pytest.raises(acefast.RequestError) as caught:
            stream.update(**options)
        sentence(str(caught.value), words)
    assert next(stream).request.prompt == "boom bap"
    stream.close()
    with pytest.raises(acefast.RequestError, match="update has no use in a stream of one song"):
        tiny_pipe.stream("boom bap", duration=5, seed=1).update(prompt="drill")


def test_a_reference_is_read_once_and_may_change(tiny_pipe, tune, silent, monkeypatch):
    made = composed(tiny_pipe, monkeypatch)
    heard, latents = [], tiny_pipe.model.silence(750)
    monkeypatch.setattr(tiny_pipe.model, "encode", lambda audio: heard.append(audio) or (latents, latents))
    stream = tiny_pipe.stream("boom bap", duration=30, reference=tune, **SHORT)
    reads = counted(monkeypatch, tiny_pipe.model, "check")
    stream.update(at=20, reference=tune[:, ::-1].copy())
    joined(stream)
    assert len(made) == 3 and len(reads) == 1
    assert len(heard) == 2 and not np.array_equal(*heard)  # segments of one reference have its timbre encoded once


def test_memory_does_not_grow_over_segments(tiny_pipe, silent):
    """Of the work itself, without the thread that would go on while it is measured."""
    request = acefast.Request("boom bap", duration=600, seed=1, steps=1).for_checkpoint(tiny_pipe.model.traits)
    script, plan = Script(request, tiny_pipe.model), check_plan(math.inf, 10, 4, {})

    def bytes_held() -> int:
        gc.collect()
        strided = (torch.strided, "cpu")
        tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor and (x.layout, x.device.type) == strided]
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())

    held = {}
    for piece in segments_of(tiny_pipe, script, request, plan, 0.0, lambda *_: None, Lead(0)):
        held[piece.segment] = bytes_held()
        if piece.segment == 6:
            break
    assert held[2] == held[3] == held[6], held


def test_warnings_come_once_for_the_same_words(tiny_pipe, silent):
    stream = tiny_pipe.stream("boom bap", "la la " * 2000, duration=30, **SHORT)
    with pytest.warns(UserWarning, match="lyrics is too long") as caught:
        joined(stream)
    assert len(caught) == 1
