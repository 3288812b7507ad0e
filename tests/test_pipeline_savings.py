"""What is computed once: per song, per schedule, per checkpoint; counted, not timed."""

from __future__ import annotations

import pytest
import torch

import acefast
from acefast import pipeline
from acefast.models.v15.conditions import ConditionEncoder
from acefast.models.v15.dit_layer import CrossAttention, Layer
from acefast.models.v15.layers import TimeEmbedding
from tests.songs import counted, same, song

pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("kind", ["tiny_pipe", "tiny_base_pipe"])
def test_keys_and_values_of_the_conditions_are_projected_once_a_song(request, kind, monkeypatch):
    pipe = request.getfixturevalue(kind)
    projected = counted(monkeypatch, CrossAttention, "keys_values")
    song(pipe, steps=3, solver="heun")
    assert len(projected) == pipe.model.config.num_hidden_layers


def test_time_is_embedded_once_a_song_and_the_constant_half_once_a_checkpoint(tiny, monkeypatch):
    pipe = acefast.load(tiny, dtype="float32")
    embedded = counted(monkeypatch, TimeEmbedding, "forward")
    song(pipe, steps=4)
    assert len(embedded) == 1 + 1  # the schedule together; t - r = 0
    song(pipe, steps=5, solver="heun")  # which also asks for t = 0
    assert len(embedded) == 2 + 1


def test_time_is_embedded_once_a_schedule_whatever_is_made_with_it(tiny, monkeypatch):
    pipe = acefast.load(tiny, dtype="float32")
    monkeypatch.setattr(pipe.model, "decode", lambda z, *_: torch.zeros(len(z), 2, z.shape[1] * 1920))
    embedded = counted(monkeypatch, TimeEmbedding, "forward")
    first, _, again = (song(pipe, prompt) for prompt in ("boom bap", "drill", "boom bap"))
    assert len(embedded) == 1 + 1 and torch.equal(first.latents, again.latents)
    schedules = [(1.0, 0.7), (1.0, 0.6), (1.0, 0.5), (1.0, 0.7)]  # two are kept
    made = [song(pipe, timesteps=times, steps=None).latents for times in schedules]
    assert len(embedded) == 1 + 1 + 4
    assert torch.equal(made[3], made[0]) and not torch.equal(made[1], made[0])


def test_what_unconditional_rows_get_is_computed_once_a_checkpoint(tiny_base, monkeypatch):
    pipe = acefast.load(tiny_base, dtype="float32")
    monkeypatch.setattr(pipe.model, "decode", lambda z, *_: torch.zeros(len(z), 2, z.shape[1] * 1920))
    computed = counted(monkeypatch, CrossAttention, "constant")
    song(pipe, steps=1), song(pipe, "drill", steps=1)
    assert len(computed) == pipe.model.config.num_hidden_layers


def test_the_timbre_of_silence_is_encoded_once_a_checkpoint(tiny, monkeypatch):
    pipe = acefast.load(tiny, dtype="float32")
    encoded = counted(monkeypatch, ConditionEncoder, "timbre_encode")
    song(pipe, steps=1)
    pipe.model.encodings.clear()
    song(pipe, ["drill", "trap"], seed=[1, 2], steps=1)
    assert len(encoded) == 1


@pytest.mark.usefixtures("undecoded")
def test_a_fading_cover_encodes_its_reference_once(tiny_pipe, tune, monkeypatch):
    encoded = counted(monkeypatch, tiny_pipe.model, "encode")
    song(tiny_pipe, task="cover-nofsq", source=tune, reference=tune, strength=0.5)
    assert sorted(call[0].shape[1] for call in encoded) == [tune.shape[1], 30 * 48_000]


def test_parts_that_a_task_does_not_need_are_not_loaded(tiny):
    pipe = acefast.load(tiny, dtype="float32")
    song(pipe, steps=1)
    assert not {"encoder", "audio_tokenizer", "audio_detokenizer"} & vars(pipe.model).keys()


@pytest.mark.usefixtures("undecoded")
def test_a_prompt_shared_by_seeds_is_read_once(tiny_pipe, monkeypatch):
    prompts, lyrics = (counted(monkeypatch, ConditionEncoder, f"{kind}_encode") for kind in ("text", "lyric"))
    song(tiny_pipe, ["drill", "trap", "drill"], seed=[1, 2, 3], steps=1)
    assert len(prompts) == 2 and len(lyrics) == 1


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("pad_mode", ["exact", "upstream"])
def test_what_was_read_before_gives_the_same_bytes_as_what_is_read_anew(tiny_pipe, monkeypatch, pad_mode):
    embedded = counted(monkeypatch, tiny_pipe.model.text_encoder, "forward")
    options = dict(lyrics=["[verse]\nla", "lo"], seed=[1, 2], steps=1, pad_mode=pad_mode)
    first = song(tiny_pipe, ["drill", "trap"], **options)
    read = len(embedded)
    again = song(tiny_pipe, ["drill", "trap"], **options)
    assert read == len(embedded) > 0
    tiny_pipe.model.encodings.clear()
    anew = song(tiny_pipe, ["drill", "trap"], **options)
    assert len(embedded) == 2 * read
    assert all(same(a, b) and same(a, c) for a, b, c in zip(first, again, anew, strict=True))


@pytest.mark.usefixtures("undecoded")
def test_a_reference_is_encoded_once_whatever_the_seed_and_a_sampled_one_once_a_seed(tiny_pipe, tune, monkeypatch):
    latents = torch.ones(1, 750, tiny_pipe.model.config.audio_acoustic_hidden_dim)
    monkeypatch.setattr(tiny_pipe.model, "encode", lambda audio: (latents * float(audio[0, 100]), latents))
    encoded = counted(monkeypatch, tiny_pipe.model, "encode")
    timbres = counted(monkeypatch, ConditionEncoder, "timbre_encode")

    def made(reference=tune, seed=1, **options):
        encoded.clear(), timbres.clear()
        song(tiny_pipe, reference=reference, seed=seed, steps=1, **options)
        return len(encoded), len(timbres)

    mean, sample = dict(posterior="mean"), dict(posterior="sample")
    assert made(**mean) == (1, 1)
    assert made(reference=tune.copy(), seed=2, **mean) == (0, 0)
    assert made(reference=tune[::-1].copy(), **mean) == made(semantics="diffusers", **mean) == (1, 1)
    assert made(seed=[1, 2], **sample) == (1, 2)
    assert made(seed=[2, 3], **sample) == (1, 1)


@pytest.mark.usefixtures("undecoded")
def test_unconditional_rows_run_only_inside_of_the_guidance_interval(tiny_base_pipe, monkeypatch):
    rows = []
    real = Layer.forward
    last = tiny_base_pipe.model.transformer.layers[-1]

    def watched(self, x, *args):
        if self is last:
            rows.append(len(x))
        return real(self, x, *args)

    monkeypatch.setattr(Layer, "forward", watched)
    song(tiny_base_pipe, timesteps=(1.0, 0.7, 0.5, 0.2), steps=None, guidance_interval=(0.4, 0.8))
    assert rows == [1, 2, 2, 1]
    rows.clear()
    song(tiny_base_pipe, guidance_scale=1.0, steps=3)
    assert rows == [1, 1, 1]


@pytest.mark.usefixtures("undecoded")
def test_unconditional_rows_share_the_first_self_attention(tiny_base_pipe, monkeypatch):
    attended = []
    first = tiny_base_pipe.model.transformer.layers[0].self_attention
    real = type(first).forward

    def watched(self, h, *args, **options):
        if self is first:
            attended.append(len(h))
        return real(self, h, *args, **options)

    monkeypatch.setattr(type(first), "forward", watched)
    song(tiny_base_pipe, steps=2)
    assert attended == [1, 1]


def test_a_request_that_this_model_refuses_is_refused_before_weights_are_read(tiny, monkeypatch):
    monkeypatch.setattr(pipeline, "_kept", {})
    loaded = counted(monkeypatch, pipeline, "load")
    with pytest.raises(acefast.RequestError):
        acefast.generate("boom bap", model=tiny, guidance_scale=7.0)
    with pytest.raises(acefast.RequestError):
        acefast.generate("boom bap", model=tiny, task="cover", source="missing.wav")
    assert not loaded
