"""The pipeline from request to song: what makes two songs the same, how long they are, what hooks and progress
see, which model is kept. Tasks and savings have files of their own.

That the numbers are the right ones is tests/test_parity.py's matter.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import acefast
from acefast import pipeline, sampling
from acefast.ops.philox import philox_normal
from acefast.sampling import mix_noise
from acefast.testing import write_checkpoint
from acefast.waveform import normalise
from tests.songs import HOP, counted, distance, same, song, velocities

pytestmark = pytest.mark.usefixtures("offline")


def test_same_seed_gives_the_same_bytes_and_another_seed_another_song(tiny_pipe):
    first = song(tiny_pipe, seed=1)
    assert same(first, song(tiny_pipe, seed=1))
    assert distance(song(tiny_pipe, seed=2), first) > 0.1


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_song_does_not_depend_on_the_songs_before_it(tiny, tiny_pipe, solver):
    for steps in (1, 3, 4, 5):
        song(tiny_pipe, steps=steps, solver=solver)
    song(tiny_pipe, ["drill", "trap"], seed=[3, 4], solver=solver)
    assert same(song(tiny_pipe, solver=solver), song(acefast.load(tiny, dtype="float32"), solver=solver))


def test_a_drawn_seed_is_told_and_makes_the_song_again(tiny_pipe):
    drawn = song(tiny_pipe, seed=None)
    assert drawn.seed == drawn.request.seed
    assert same(drawn, song(tiny_pipe, seed=drawn.seed))


@pytest.mark.parametrize("options", [{}, {"solver": "sde"}], ids=["euler", "sde"])
@pytest.mark.parametrize("kind", ["tiny_pipe", "tiny_base_pipe"])
def test_a_batch_equals_its_songs_alone(request, kind, options):
    pipe = request.getfixturevalue(kind)
    prompts, lyrics = ["drill", "lo-fi, slow and warm, a longer line"], ["", "[verse]\nword after word " * 5]
    together = song(pipe, prompts, lyrics=lyrics, seed=[7, 8], **options)
    exact = song(pipe, prompts, lyrics=lyrics, seed=[7, 8], deterministic=True, **options)
    for i in range(2):
        alone = song(pipe, prompts[i], lyrics=lyrics[i], seed=7 + i, **options)
        torch.testing.assert_close(together[i].latents, alone.latents, rtol=0, atol=1e-5)
        assert same(exact[i], alone)
        assert (together[i].seed, together[i].request.prompt) == (7 + i, prompts[i])


@pytest.mark.usefixtures("undecoded")
def test_a_batch_of_eight_equals_its_songs_alone(tiny_base_pipe):
    prompts = ["drill" + ", slow and warm" * i for i in range(8)]
    lyrics = ["[verse]\nword after word " * (5 * i % 7) for i in range(8)]
    options = {"duration": 7.0, "lyrics": lyrics, "seed": [*range(8)]}
    together = song(tiny_base_pipe, prompts, **options)
    exact = song(tiny_base_pipe, prompts, **options, deterministic=True)
    for i in range(8):
        alone = song(tiny_base_pipe, prompts[i], duration=7.0, lyrics=lyrics[i], seed=i)
        torch.testing.assert_close(together[i].latents, alone.latents, rtol=0, atol=1e-5)
        assert torch.equal(exact[i].latents, alone.latents)


@pytest.mark.usefixtures("undecoded")
def test_the_longest_song_is_made_whole(tiny_pipe):
    longest = song(tiny_pipe, duration=600.0, steps=1)
    assert longest.latents.shape == (15_000, 8) and longest.audio.shape == (2, 600 * 48_000)
    assert longest.latents.isfinite().all() and longest.latents[-128:].std() > 0.1


@pytest.mark.usefixtures("undecoded")
def test_a_songs_latents_are_an_ordinary_tensor_and_its_own(tiny_pipe):
    first, second = song(tiny_pipe, seed=[1, 2])
    kept = second.latents.clone()
    assert not first.latents.is_inference() and not first.latents.requires_grad
    assert first.latents.untyped_storage().nbytes() == first.latents.nbytes
    first.latents.add_(1).requires_grad_().sum().backward()
    assert torch.equal(second.latents, kept)


@pytest.mark.usefixtures("undecoded")
def test_a_hook_may_write_into_its_latents_and_take_gradients(tiny_pipe):
    def hook(info):
        assert not info.latents.is_inference() and not info.denoised.is_inference()
        info.latents.zero_()  # its own: nothing of the song
        x = info.denoised.requires_grad_()
        (gradient,) = torch.autograd.grad(x.square().sum(), x)
        assert torch.equal(gradient, 2 * x)

    assert same(song(tiny_pipe, on_step=hook), song(tiny_pipe))
    made = song(tiny_pipe, on_step=lambda info: info.latents.requires_grad_())
    assert same(made, song(tiny_pipe)) and not made.latents.requires_grad


@pytest.mark.usefixtures("undecoded")
def test_seeds_of_one_prompt_share_their_conditions(tiny_pipe, monkeypatch):
    alone = [song(tiny_pipe, seed=seed) for seed in (3, 4, 5)]
    calls = velocities(tiny_pipe, monkeypatch)
    for got, want in zip(song(tiny_pipe, seed=[3, 4, 5]), alone):
        torch.testing.assert_close(got.latents, want.latents, rtol=0, atol=1e-5)
    assert calls[0]["latents"].shape[0] == 3 and calls[0]["conditions"].batch == 1


@pytest.mark.usefixtures("undecoded")
def test_a_single_song_comes_alone_and_a_list_of_one_as_a_list(tiny_pipe):
    assert isinstance(song(tiny_pipe, steps=1), acefast.Song)
    assert [type(s) for s in song(tiny_pipe, ["boom bap"], steps=1)] == [acefast.Song]


def test_injected_noise_replaces_the_seeds_own(tiny_pipe):
    drawn = song(tiny_pipe, seed=9)
    noise = philox_normal([9], (128, 8))
    assert same(song(tiny_pipe, seed=1, noise=noise[0]), drawn)
    assert same(song(tiny_pipe, seed=1, noise=noise[0].numpy()), drawn)


@pytest.mark.usefixtures("undecoded")
def test_torchs_noise_is_that_of_one_generator_a_song(tiny_pipe):
    noise = torch.randn(1, 128, 8, generator=torch.Generator().manual_seed(9))
    ours = song(tiny_pipe, seed=[4, 9], noise_source="torch", deterministic=True)[1]
    assert same(ours, song(tiny_pipe, noise=noise))


@pytest.mark.usefixtures("undecoded")
def test_variation_turns_from_one_seeds_noise_to_the_others(tiny_pipe):
    one, other = (philox_normal([seed], (128, 8)) for seed in (1, 2))
    plain = song(tiny_pipe)
    assert same(song(tiny_pipe, variation=0), plain)
    assert same(song(tiny_pipe, variation=1, variation_seed=2), song(tiny_pipe, seed=2))
    half = song(tiny_pipe, variation=0.5, variation_seed=2)
    assert same(half, song(tiny_pipe, noise=mix_noise(one, other, 0.5)))
    assert distance(half, plain) > 0.1 and half.request.variation_seed == 2


@pytest.mark.parametrize(
    ("seconds", "official", "diffusers"),
    [
        (5, 128, 125),  # the official code never makes less than 128 frames
        (5.1, 128, 128),
        (7.3, 182, 183),  # 182.5 frames: cut off, or rounded up
        (11.96, 300, 299),  # rounded to a tenth of a second first, or taken as it is
    ],
)
def test_odd_lengths_follow_the_rule_of_the_semantics(tiny_pipe, seconds, official, diffusers):
    for semantics, frames in (("official", official), ("diffusers", diffusers)):
        made = song(tiny_pipe, duration=seconds, semantics=semantics, steps=1)
        assert made.latents.shape == (frames, 8)
        assert made.audio.shape == (2, frames * HOP)
        assert made.duration == pytest.approx(frames / 25)


@pytest.mark.usefixtures("undecoded")
def test_instrumental_is_a_word_to_the_model(tiny_pipe):
    made = song(tiny_pipe, instrumental=True)
    assert same(made, song(tiny_pipe, lyrics="[Instrumental]"))
    assert distance(made, song(tiny_pipe)) > 1e-4


@pytest.mark.usefixtures("undecoded")
def test_every_hint_reaches_the_model(tiny_pipe):
    plain = song(tiny_pipe, lyrics="la")
    for hint in ({"bpm": 90}, {"key": "C# minor"}, {"time_signature": 3}, {"language": "de"}, {"instruction": "Sing"}):
        assert distance(song(tiny_pipe, lyrics="la", **hint), plain) > 1e-5, hint


def test_a_song_tells_how_it_was_made(tiny_pipe):
    made = song(tiny_pipe, lyrics="la", bpm=90)
    assert made.latents.dtype == torch.float32 and made.latents.device.type == "cpu"
    assert made.audio.dtype == np.float32 and made.sample_rate == 48_000 and made.codes is None
    assert list(made.timings) == ["text", "diffusion", "decode", "finish"]
    assert all(seconds > 0 for seconds in made.timings.values())
    assert (made.seed, made.model, made.request.steps) == (1, "ace-step-1.5-turbo", 2)
    assert np.abs(made.audio).max() == pytest.approx(10 ** (-1 / 20), abs=1e-6)  # -1 dBFS


AGAIN = {
    "hints": {"lyrics": "[verse]\nla", "bpm": 90, "key": "am", "time_signature": "6/8", "language": "Spanish"},
    "sampling": {"solver": "sde", "sigma_shift": 2.0, "variation": 0.3, "dcw": "off", "noise_source": "torch"},
    "timesteps": {"timesteps": (0.9, 0.4), "steps": None, "solver": "heun", "dcw": "double"},
    "codes": {"codes": list(range(0, 600, 20)), "strength": 0.5},
    "short codes": {"codes": [7, 8, 9]},
    "levels": {"normalize": None, "fade_in": 0.5, "fade_out": 1.0, "semantics": "diffusers"},
}


@pytest.mark.parametrize("options", AGAIN.values(), ids=AGAIN)
def test_a_stored_request_makes_the_song_again(tiny_pipe, options):
    made = song(tiny_pipe, **options)
    stored = acefast.Request.from_dict(made.request.to_dict())
    again = tiny_pipe.generate(**{n: v for n, v in stored.to_dict().items() if v is not None or n == "normalize"})
    assert same(again, made)


def test_levels_and_fades_are_as_asked(tiny_pipe):
    raw = song(tiny_pipe, normalize=None)
    assert np.array_equal(song(tiny_pipe, normalize=-6).audio, normalise(raw.audio, -6))
    faded = song(tiny_pipe, normalize=None, fade_in=1, fade_out=0.5).audio
    assert faded[0, 0] == faded[1, -1] == 0 and np.array_equal(faded[:, 48_000:-24_000], raw.audio[:, 48_000:-24_000])


# -- hooks and progress ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undecoded")
def test_on_step_sees_every_step_and_its_estimate_ends_in_the_song(tiny_pipe):
    seen = []
    made = song(tiny_pipe, steps=3, on_step=seen.append)
    assert [info.step for info in seen] == [0, 1, 2] and {info.steps for info in seen} == {3}
    assert [info.t for info in seen] == sampling.schedule(3, 3.0) and seen[-1].t_next == 0
    assert all(info.latents.shape == (1, 128, 8) for info in seen)
    assert torch.equal(seen[-1].latents[0], made.latents)
    torch.testing.assert_close(seen[-1].denoised[0], made.latents)


@pytest.mark.parametrize("stop", [lambda info: info.cancel(), lambda info: False], ids=["cancel", "False"])
def test_on_step_cancels_before_the_next_step(tiny_pipe, monkeypatch, stop):
    calls = velocities(tiny_pipe, monkeypatch)
    with pytest.raises(acefast.Cancelled) as caught:
        song(tiny_pipe, steps=5, on_step=lambda info: stop(info) if info.step == 1 else None)
    assert caught.value.step == 1 and len(calls) == 2


@pytest.mark.usefixtures("undecoded")
def test_on_step_replaces_latents(tiny_pipe):
    other = torch.linspace(-1, 1, 128 * 8).view(1, 128, 8)
    made = song(tiny_pipe, on_step=lambda info: other if info.step == 1 else None)
    assert torch.equal(made.latents, other[0])


def test_progress_goes_through_the_stages_and_ends_each(tiny_pipe):
    told = []
    song(tiny_pipe, steps=3, progress=lambda *state: told.append(state))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["text", "diffusion", "decode", "finish"]
    for name in stages:
        states = [(done, total) for stage, done, total in told if stage == name]
        assert states[0][0] == 0 and states[-1][0] == states[-1][1]
        assert [done for done, _ in states] == sorted(done for done, _ in states)
    assert [state[1:] for state in told if state[0] == "diffusion"] == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.usefixtures("undecoded")
def test_progress_ends_at_the_steps_a_cover_really_takes(tiny_pipe, tune):
    told = []
    options = {"task": "cover-nofsq", "source": tune, "steps": 4, "cover_noise": 0.5}
    song(tiny_pipe, progress=lambda *state: told.append(state), **options)
    states = [state[1:] for state in told if state[0] == "diffusion"]
    assert states[-1][0] == states[-1][1] < 4


def test_nothing_global_is_changed(tiny_pipe):
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    song(tiny_pipe, seed=None, solver="sde", noise_source="torch")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1]) and random.getstate() == before[2]
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


# -- loading and keeping models ----------------------------------------------------------------------------------------


def test_the_reference_backend_makes_the_same_song(tiny, tiny_pipe):
    plain = song(tiny_pipe)
    with acefast.use_backend("reference"):
        assert same(song(tiny_pipe), plain)
    assert same(song(acefast.load(tiny, dtype="float32", backend="reference")), plain)


def test_generate_keeps_the_last_model_and_only_that(tiny, tiny_base, monkeypatch):
    monkeypatch.setattr(pipeline, "_kept", {})
    loaded = counted(monkeypatch, pipeline, "load")
    options = {"duration": 5, "steps": 1, "seed": 1, "dtype": "float32"}
    first = acefast.generate("boom bap", model=tiny, **options)
    assert same(acefast.generate("boom bap", model=tiny, **options), first)
    assert len(loaded) == 1
    acefast.generate("boom bap", model=tiny_base, **options)
    assert len(loaded) == 2 and len(pipeline._kept) == 1


def test_the_model_of_the_environment_is_the_default(tiny, monkeypatch):
    monkeypatch.setenv("ACEFAST_MODEL", str(tiny))
    assert acefast.generate("boom bap", duration=5, steps=1).model == "ace-step-1.5-turbo"


def test_a_single_file_checkpoint_makes_songs_from_the_silence_it_encodes(tmp_path):
    file = write_checkpoint(tmp_path, layout="comfyui")
    pipe = acefast.load(file, dtype="float32")
    assert pipe.model.checkpoint.silence_latent() is None
    made = song(pipe, steps=1)
    assert made.latents.shape == (128, 8) and np.isfinite(made.audio).all()
    silence = pipe.model.encode(np.zeros((2, 100 * HOP), np.float32))[0]
    whole = slice(0, 90)  # the last frames of what is encoded feel its end
    torch.testing.assert_close(pipe.model.silence(100)[:, whole], silence[:, whole], rtol=1e-3, atol=1e-5)
    assert pipe.model.silence(20_000).shape == (1, 20_000, 8)
