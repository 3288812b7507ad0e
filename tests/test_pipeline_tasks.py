"""What each task keeps of its source and hears of its options, and that every solver and guidance is its own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import acefast
from acefast import sampling
from acefast.ops.philox import philox_normal
from tests.songs import counted, distance, latents_of, quiet_decode, same, song, velocities

pytestmark = pytest.mark.usefixtures("offline")


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
@pytest.mark.parametrize("task", ("cover", "cover-nofsq"))
def test_cover_noise_starts_from_the_encoded_source_on_the_shorter_schedule(tiny_pipe, tune, monkeypatch, task):
    calls = velocities(tiny_pipe, monkeypatch)
    times = sampling.schedule(4, 3.0)  # 1, 0.9, 0.75, 0.5
    song(tiny_pipe, task=task, source=tune, steps=4, cover_noise=0.25, strength=0.5)
    assert [call["t"] for call in calls] == times[2:]
    start = 0.75 * philox_normal([1], (130, 8)) + 0.25 * latents_of(tiny_pipe, tune)
    torch.testing.assert_close(calls[0]["latents"], start)
    assert calls[0]["conditions"] is not calls[1]["conditions"]  # strength counts the steps that are left


def test_a_repaint_keeps_every_sample_outside_of_its_window_and_fade(tiny_pipe, tune):
    made = song(tiny_pipe, task="repaint", source=tune, start=1.5, end=3.0)
    kept = np.ones(made.audio.shape[1], bool)
    kept[72_000 - 1200 : 144_000 + 1200] = False  # balanced, strength 0.5: 25 ms of fade outside of the window
    assert np.array_equal(made.audio[:, kept], tune[:, kept])
    assert np.abs(made.audio - tune)[:, 72_000:144_000].mean() > 1e-3
    assert distance(song(tiny_pipe, task="repaint", source=tune, start=1.5, end=3.0, seed=2), made) > 1e-3


@pytest.mark.usefixtures("undecoded")
def test_a_repaint_holds_the_outside_to_the_noised_source_in_its_first_steps(tiny_pipe, tune):
    seen, outside = [], slice(80, 130)
    options = {"task": "repaint", "source": tune, "start": 0.5, "end": 1.5, "steps": 4, "strength": 0.5}
    song(tiny_pipe, on_step=lambda info: seen.append((info.t_next, info.latents)), **options)
    source, noise = latents_of(tiny_pipe, tune), philox_normal([1], (130, 8))
    held = [torch.allclose(x[:, outside], (t * noise + (1 - t) * source)[:, outside], atol=1e-6) for t, x in seen]
    assert held == [True, True, False, False]  # round(4 * (1 - strength))


def test_takes_of_one_repaint_equal_the_takes_alone(tiny_pipe, tune):
    options = {"task": "repaint", "source": tune, "start": 1.0, "end": 2.0}
    for take in song(tiny_pipe, seed=[1, 2], **options):
        alone = song(tiny_pipe, seed=take.seed, **options)
        torch.testing.assert_close(take.latents, alone.latents, rtol=0, atol=1e-5)
        np.testing.assert_allclose(take.audio, alone.audio, rtol=0, atol=1e-4)


def test_a_loud_decode_is_brought_down_before_the_source_is_put_back(tiny_pipe, tune, monkeypatch):
    waves, real = [], tiny_pipe.model.decode
    monkeypatch.setattr(tiny_pipe.model, "decode", lambda *args: waves.append(real(*args)) or waves[-1])
    made = song(tiny_pipe, task="repaint", source=tune, start=1.5, end=3.0).audio
    (wave,) = waves[0].numpy()
    loudest = np.abs(wave).max()
    assert loudest > 1  # random weights shout
    np.testing.assert_allclose(made[:, 72_000:144_000], wave[:, 72_000:144_000] / loudest, rtol=1e-6)
    assert np.array_equal(made[:, : 72_000 - 1200], tune[:, : 72_000 - 1200])
    assert np.array_equal(made[:, 144_000 + 1200 :], tune[:, 144_000 + 1200 :])


def test_no_level_leaves_a_loud_repaint_as_it_is(tiny_pipe, tune, monkeypatch):
    waves, real = [], tiny_pipe.model.decode
    monkeypatch.setattr(tiny_pipe.model, "decode", lambda *args: waves.append(real(*args)) or waves[-1])
    made = song(tiny_pipe, task="repaint", source=tune, start=1.5, end=3.0, normalize=None).audio
    assert np.array_equal(made[:, 72_000:144_000], waves[0][0, :, 72_000:144_000]) and np.abs(made).max() > 1
    assert np.array_equal(made[:, : 72_000 - 1200], tune[:, : 72_000 - 1200])


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


@pytest.mark.usefixtures("undecoded")
def test_a_checkpoint_of_stems_rewrites_the_caption_in_the_official_semantics(tiny_base_pipe, tune, monkeypatch):
    options = {"task": "lego", "source": tune, "track": "drums"}
    plain = song(tiny_base_pipe, "dry snare", semantics="diffusers", **options)
    written = song(tiny_base_pipe, "Global: \nLocal: dry snare\nMask Control: true", **options)
    model = tiny_base_pipe.model
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, is_lego_sft=True))
    assert same(song(tiny_base_pipe, "dry snare", **options), written)
    assert same(song(tiny_base_pipe, "dry snare", semantics="diffusers", **options), plain)


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


@pytest.mark.usefixtures("undecoded")
def test_posterior_samples_of_a_reference_are_the_seeds_own(tiny_pipe, tune):
    options = {"reference": tune, "noise": philox_normal([1], (128, 8))[0]}
    mean, sampled = song(tiny_pipe, **options), song(tiny_pipe, posterior="sample", **options)
    assert distance(sampled, mean) > 1e-6
    assert same(sampled, song(tiny_pipe, posterior="sample", **options))
    together = song(tiny_pipe, posterior="sample", seed=[1, 2], **options)  # one prompt, two timbres
    other = song(tiny_pipe, posterior="sample", seed=2, **options)
    assert distance(other, sampled) > 1e-4
    for got, alone in zip(together, (sampled, other)):
        torch.testing.assert_close(got.latents, alone.latents, rtol=0, atol=1e-5)
    padded = song(tiny_pipe, posterior="sample", seed=[1, 2], pad_mode="upstream", **options)
    assert distance(padded[1], padded[0]) > 1e-4


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize(
    "options", [{"task": "cover"}, {"task": "cover-nofsq"}, {"task": "repaint", "start": 1.0}], ids=str
)
def test_a_short_source_is_filled_up_with_silence_to_the_official_minimum(tiny_pipe, tune, monkeypatch, options):
    source = tune[:, :240_000]  # 125 frames
    model = tiny_pipe.model
    calls = velocities(tiny_pipe, monkeypatch)
    made = song(tiny_pipe, source=source, **options)
    context = calls[0]["conditions"].context[0]
    clean = torch.cat([latents_of(tiny_pipe, source), model.silence(3)], 1)  # from the silence's own beginning
    expected = {"cover": lambda: model.hints(model.codes(clean))[:, :128], "cover-nofsq": lambda: clean}
    tail = expected.get(options["task"], lambda: clean)()[0, 125:]
    assert len(made.latents) == 128 and made.audio.shape[1] == 128 * 1920
    torch.testing.assert_close(context[125:, :8], tail)
    assert context[125:, 8:].unique().tolist() == [0.0 if options["task"] == "repaint" else 1.0]
    assert len(song(tiny_pipe, source=source, semantics="diffusers", **options).latents) == 125


@pytest.mark.usefixtures("undecoded")
def test_a_longer_duration_of_codes_is_what_the_prompt_says(tiny_pipe):
    requests = [tiny_pipe.generate("a", codes=[1] * 25, seed=1, steps=1, **o).request for o in ({"duration": 9.97}, {})]
    assert [tiny_pipe.model.task([r], None).seconds for r in requests] == [9.97, 5.0]


# -- solvers, guidance, precision --------------------------------------------------------------------------------------


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
