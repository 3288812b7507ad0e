"""The pipeline from request to song: what makes two songs the same, how long they are, what hooks and progress see,
what each task keeps of its source, and what is computed only once.

That the numbers are the right ones is tests/test_parity.py's matter.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import acefast
from acefast import pipeline, sampling
from acefast.models.v15.conditions import ConditionEncoder
from acefast.models.v15.dit import CrossAttention, Layer
from acefast.models.v15.layers import TimeEmbedding
from acefast.ops.philox import philox_normal
from acefast.sampling import mix_noise
from acefast.testing import write_checkpoint
from acefast.waveform import normalise

HOP = 1920


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def undecoded(monkeypatch, tiny_pipe, tiny_base_pipe):
    """Songs of silence, for tests that look at latents only: decoding is most of a tiny song's time."""
    for pipe in (tiny_pipe, tiny_base_pipe):
        monkeypatch.setattr(
            pipe.model, "decode", lambda latents, _: torch.zeros(len(latents), 2, latents.shape[1] * HOP)
        )


def song(pipe, prompt="boom bap", **options):
    """A short song; source tasks and codes have a length of their own."""
    own = {"seed": 1, "steps": 2}
    if not {"source", "codes"} & options.keys():
        own["duration"] = 5.0
    return pipe.generate(prompt, **{**own, **options})


def same(a, b) -> bool:
    return torch.equal(a.latents, b.latents) and np.array_equal(a.audio, b.audio)


def distance(a, b) -> float:
    """Relative, of two songs' latents."""
    return float((a.latents - b.latents).norm() / b.latents.norm())


def velocities(pipe, monkeypatch) -> list[dict]:
    """What every later call of the velocity model is given, filled as it is called."""
    calls, real = [], pipe.model.velocity

    def watched(latents, t, conditions, **options):
        calls.append({"latents": latents, "t": t, "conditions": conditions, **options})
        return real(latents, t, conditions, **options)

    monkeypatch.setattr(pipe.model, "velocity", watched)
    return calls


def counted(monkeypatch, owner, name) -> list:
    """The arguments of every later call of ``owner.name``."""
    calls, real = [], getattr(owner, name)

    def watched(*args, **kwargs):
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, watched)
    return calls


def latents_of(pipe, audio) -> torch.Tensor:
    """[1, T, D]: the posterior's mean, as tasks take it."""
    return pipe.model.encode(audio.copy())[0]


def quiet_decode(pipe, monkeypatch, gain=0.02):
    """Random weights shout: scale the decoded audio to below full scale, so that levels are left alone."""
    real = pipe.model.decode
    monkeypatch.setattr(pipe.model, "decode", lambda *args: real(*args) * gain)


# -- what decides a song ----------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_bytes_and_another_seed_another_song(tiny_pipe):
    first = song(tiny_pipe, seed=1)
    assert same(first, song(tiny_pipe, seed=1))
    assert distance(song(tiny_pipe, seed=2), first) > 0.1


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


# -- hooks and progress -----------------------------------------------------------------------------------------------


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


# -- tasks on codes and sources ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undecoded")
def test_codes_set_length_and_music(tiny_pipe):
    codes = list(range(0, 64_000, 2000))[:30]
    made = song(tiny_pipe, codes=codes)
    assert made.codes == codes and len(made.latents) == 150
    assert same(made, song(tiny_pipe, codes="".join(f"<|audio_code_{c}|>" for c in codes)))
    assert distance(made, song(tiny_pipe, codes=codes[::-1])) > 1e-3
    assert len(song(tiny_pipe, codes=codes[:3]).latents) == 128  # silence behind the last code


@pytest.mark.usefixtures("undecoded")
def test_a_cover_hears_its_source_through_codes_or_directly(tiny_pipe, tune):
    cover = song(tiny_pipe, task="cover", source=tune)
    assert len(cover.latents) == 130 and len(cover.codes) == 26
    assert same(cover, song(tiny_pipe, task="cover", codes=cover.codes, instruction=None))
    direct = song(tiny_pipe, task="cover-nofsq", source=tune)
    assert direct.codes is None and distance(direct, cover) > 1e-3


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize(("strength", "own"), [(1.0, 5), (0.5, 2), (0.39, 1), (0.0, 0)])
def test_official_strength_is_the_share_of_steps_that_see_the_source(tiny_pipe, tune, monkeypatch, strength, own):
    calls = velocities(tiny_pipe, monkeypatch)
    song(tiny_pipe, task="cover-nofsq", source=tune, strength=strength, steps=5)
    source = latents_of(tiny_pipe, tune)
    sees = [torch.equal(call["conditions"].context[..., :8], source) for call in calls]
    assert sees == [step < own for step in range(5)]  # floor(5 * strength)


@pytest.mark.usefixtures("undecoded")
def test_official_strength_of_zero_is_a_song_from_text(tiny_pipe, tune):
    cover = song(tiny_pipe, task="cover-nofsq", source=tune, strength=0)
    assert torch.equal(cover.latents, song(tiny_pipe, duration=5.2).latents)


@pytest.mark.usefixtures("undecoded")
def test_strength_of_diffusers_asks_both_every_step(tiny_pipe, tune, monkeypatch):
    calls = velocities(tiny_pipe, monkeypatch)
    song(tiny_pipe, task="cover", source=tune, strength=0.5, semantics="diffusers", steps=3)
    assert len(calls) == 6 and len({id(call["conditions"]) for call in calls}) == 2


@pytest.mark.usefixtures("undecoded")
def test_cover_noise_starts_from_the_source_on_the_shorter_schedule(tiny_pipe, tune, monkeypatch):
    calls = velocities(tiny_pipe, monkeypatch)
    times = sampling.schedule(4, 3.0)  # 1, 0.9, 0.75, 0.5
    song(tiny_pipe, task="cover-nofsq", source=tune, steps=4, cover_noise=0.25, strength=0.5)
    assert [call["t"] for call in calls] == times[2:]
    start = 0.75 * philox_normal([1], (130, 8)) + 0.25 * latents_of(tiny_pipe, tune)
    torch.testing.assert_close(calls[0]["latents"], start)
    assert calls[0]["conditions"] is not calls[1]["conditions"]  # strength counts the steps that are left


def test_a_repaint_keeps_every_sample_outside_of_its_window_and_fade(tiny_pipe, tune, monkeypatch):
    quiet_decode(tiny_pipe, monkeypatch)
    made = song(tiny_pipe, task="repaint", source=tune, start=1.5, end=3.0)
    kept = np.ones(made.audio.shape[1], bool)
    kept[72_000 - 1200 : 144_000 + 1200] = False  # balanced, strength 0.5: 25 ms of fade outside of the window
    assert np.array_equal(made.audio[:, kept], tune[:, kept])
    assert np.abs(made.audio - tune)[:, 72_000:144_000].mean() > 1e-3
    assert distance(song(tiny_pipe, task="repaint", source=tune, start=1.5, end=3.0, seed=2), made) > 1e-3


def test_a_repaint_too_loud_is_scaled_as_a_whole(tiny_pipe, tune, monkeypatch):
    quiet_decode(tiny_pipe, monkeypatch, gain=3)
    audio = song(tiny_pipe, task="repaint", source=tune, start=1.5, end=3.0).audio
    assert np.abs(audio).max() == 1
    ratio = audio[0, :48_000] / np.where(tune[0, :48_000] == 0, 1, tune[0, :48_000])
    assert ratio.max() < 1 and np.ptp(ratio[np.abs(tune[0, :48_000]) > 0.01]) < 1e-5


def test_a_level_asked_for_counts_in_a_repaint_too(tiny_pipe, tune):
    made = song(tiny_pipe, task="repaint", source=tune, start=1.5, end=3.0, normalize=-3.0)
    assert np.abs(made.audio).max() == pytest.approx(10 ** (-3 / 20), abs=1e-6)


def test_repaint_modes_hold_the_source_more_or_less(tiny_pipe, tune, monkeypatch):
    """Mean distance of the latents outside of the window and its blend from the source's."""
    quiet_decode(tiny_pipe, monkeypatch)
    source = latents_of(tiny_pipe, tune)[0]
    away = {}
    for mode in ("conservative", "balanced", "aggressive"):
        made = song(tiny_pipe, task="repaint", source=tune, start=0.5, end=1.5, repaint_mode=mode, steps=4)
        away[mode] = float((made.latents - source)[70:].norm())
        assert np.array_equal(made.audio[:, 120_000:], tune[:, 120_000:]) == (mode != "aggressive")
    assert away["conservative"] == away["balanced"] == 0 < away["aggressive"]


def test_repaint_of_diffusers_neither_holds_nor_splices(tiny_pipe, tune):
    made = song(tiny_pipe, task="repaint", source=tune, start=1.5, end=3.0, semantics="diffusers")
    assert not np.isclose(made.audio[:, :48_000], tune[:, :48_000], atol=1e-3).all()


@pytest.mark.parametrize(
    ("options", "before", "seconds"),
    [
        ({"start": -1.0}, 48_000, 6.2),
        ({"end": 6.2}, 0, 6.2),
        ({"duration": 7.2}, 0, 7.2),
        ({"start": -1.0, "end": 6.2}, 48_000, 7.2),
    ],
    ids=["left", "right", "to a length", "both"],
)
def test_an_extension_adds_up_and_keeps_the_sources_samples(tiny_pipe, tune, monkeypatch, options, before, seconds):
    quiet_decode(tiny_pipe, monkeypatch)
    audio = song(tiny_pipe, task="extend", source=tune, **options).audio
    assert audio.shape == (2, round(seconds * 48_000))
    behind = audio.shape[1] - before - tune.shape[1]
    # 25 ms of the source fade into what is added
    inner = slice(1200 if before else 0, tune.shape[1] - (1200 if behind else 0))
    assert np.array_equal(audio[:, before : before + tune.shape[1]][:, inner], tune[:, inner])
    for added in (audio[:, :before], audio[:, before + tune.shape[1] :]):
        assert added.size == 0 or added.std() > 0


def test_a_song_is_the_source_of_the_next(tiny_pipe):
    first = song(tiny_pipe)
    assert same(song(tiny_pipe, task="cover", source=first), song(tiny_pipe, task="cover", source=first.audio))


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"task": "lego", "track": "drums"}, {"task": "lego", "track": "drums", "start": 1.0, "end": 3.0}),
        ({"task": "extract", "track": "vocals"}, {"task": "extract", "track": "bass"}),
        ({"task": "complete", "tracks": ["bass"]}, {"task": "complete", "tracks": ["bass", "drums"]}),
    ],
    ids=["lego", "extract", "complete"],
)
def test_stem_tasks_keep_the_length_and_hear_their_options(tiny_base_pipe, tune, one, other):
    made, others = (song(tiny_base_pipe, source=tune, guidance_scale=3.0, **options) for options in (one, other))
    assert len(made.latents) == 130 and distance(made, others) > 1e-5


def test_a_reference_changes_the_song_and_a_silent_one_does_not(tiny_pipe, tune, monkeypatch):
    plain = song(tiny_pipe)
    encoded = counted(monkeypatch, tiny_pipe.model, "encode")
    assert distance(song(tiny_pipe, reference=tune), plain) > 1e-4
    assert len(encoded) == 1 and encoded[0][0].shape == (2, 30 * 48_000)
    assert same(song(tiny_pipe, reference=np.zeros((2, 480_000), np.float32)), plain)
    assert len(encoded) == 1


@pytest.mark.usefixtures("undecoded")
def test_posterior_samples_are_the_seeds_own(tiny_pipe, tune):
    options = {"task": "cover-nofsq", "source": tune, "posterior": "sample", "noise": philox_normal([1], (130, 8))[0]}
    made = song(tiny_pipe, seed=1, **options)
    assert same(made, song(tiny_pipe, seed=1, **options))
    assert distance(song(tiny_pipe, seed=2, **options), made) > 1e-5


# -- solvers, guidance, precision -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undecoded")
def test_solvers_and_corrections_each_make_another_song(tiny_pipe, monkeypatch):
    calls = velocities(tiny_pipe, monkeypatch)
    made, asked = {}, {}
    for name, options in {
        "euler": {}, "heun": {"solver": "heun"}, "sde": {"solver": "sde"},
        **{mode: {"dcw": mode} for mode in ("low", "high", "double", "pix")},
    }.items():  # fmt: skip
        calls.clear()
        made[name], asked[name] = song(tiny_pipe, steps=3, **options), len(calls)
    assert asked.pop("heun") == 6 and set(asked.values()) == {3}
    names = list(made)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert distance(made[one], made[other]) > 1e-5, (one, other)


@pytest.mark.usefixtures("undecoded")
def test_guidance_variants_each_make_another_song(tiny_base_pipe):
    variants = [{"guidance": name} for name in ("apg", "cfg", "adg", "adg_w_norm", "adg_wo_clip")]
    variants += [{"guidance_scale": 1.0}, {"guidance_momentum": 0.5}, {"guidance_eta": 1.0}, {"guidance_norm": 0.01}]
    made = [song(tiny_base_pipe, steps=3, **options) for options in variants]
    for i in range(len(made)):
        for j in range(i):
            assert distance(made[i], made[j]) > 1e-6, (variants[i], variants[j])


@pytest.mark.usefixtures("undecoded")
def test_base_takes_its_own_defaults(tiny_base_pipe):
    made = tiny_base_pipe.generate("boom bap", duration=5, seed=1)
    assert (made.request.steps, made.request.sigma_shift, made.request.guidance_scale) == (50, 1.0, 7.0)


def test_upstreams_roundings_are_near_but_not_the_same(tiny):
    pipe = acefast.load(tiny, dtype="bfloat16")
    exact, upstream = song(pipe, steps=8), song(pipe, steps=8, precision="upstream")
    assert exact.latents.dtype == upstream.latents.dtype == torch.float32
    assert 0 < distance(upstream, exact) < 0.1
    assert torch.equal(upstream.latents, upstream.latents.bfloat16().float())  # the state between steps is bf16


# -- loading and keeping models ---------------------------------------------------------------------------------------


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


# -- what is computed once --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("kind", ["tiny_pipe", "tiny_base_pipe"])
def test_keys_and_values_of_the_conditions_are_projected_once_a_song(request, kind, monkeypatch):
    pipe = request.getfixturevalue(kind)
    projected = counted(monkeypatch, CrossAttention, "keys_values")
    song(pipe, steps=3, solver="heun")
    assert len(projected) == pipe.model.config.num_hidden_layers


def test_time_embeddings_of_a_schedule_are_computed_once_and_kept(tiny, monkeypatch):
    pipe = acefast.load(tiny, dtype="float32")
    embedded = counted(monkeypatch, TimeEmbedding, "forward")
    song(pipe, steps=5)
    song(pipe, steps=5, seed=2)
    assert len(embedded) == 2  # of t, of t - r = 0


def test_the_timbre_of_silence_is_encoded_once_a_checkpoint(tiny, monkeypatch):
    pipe = acefast.load(tiny, dtype="float32")
    encoded = counted(monkeypatch, ConditionEncoder, "timbre_encode")
    song(pipe, steps=1)
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
    read = counted(monkeypatch, ConditionEncoder, "forward")
    song(tiny_pipe, ["drill", "trap", "drill"], seed=[1, 2, 3], steps=1)
    assert len(read) == 2


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

    def watched(self, h, *args):
        if self is first:
            attended.append(len(h))
        return real(self, h, *args)

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
