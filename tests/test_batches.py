"""Which songs are made together, and that each is the song it would be alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import acefast
from acefast import Request
from acefast.batches import OWN, grouped, likeness
from acefast.request import options
from tests.songs import counted, distance, same, sentence, velocities

pytestmark = pytest.mark.usefixtures("offline")
SHORT = {"steps": 2, "duration": 5.0}
MAY_DIFFER = {
    "prompt": "drill",
    "lyrics": "la",
    "instrumental": True,
    "bpm": 90,
    "key": "C# minor",
    "time_signature": 3,
    "language": "de",
    "instruction": "Sing",
    "lyrics_overflow": "refuse",
    "target_prompt": "jazz",
    "target_lyrics": "do",
    "seed": 5,
    "variation_seed": 5,
    "fade_in": 0.5,
    "fade_out": 0.5,
    "duration": 9.5,  # 238 frames, 119 tokens: as 5.12 s padded to 128
}
MAY_NOT = {
    "duration": 12.0,
    "noise": torch.zeros(128, 8),
    "variation": 0.5,
    "noise_source": "torch",
    "steps": 3,
    "sigma_shift": 2.0,
    "timesteps": (0.9, 0.4),
    "solver": "sde",
    "guidance_scale": 3.0,
    "guidance": "adg",
    "guidance_interval": (0.1, 0.9),
    "guidance_momentum": 0.0,
    "guidance_norm": 1.0,
    "guidance_eta": 0.5,
    "guidance_decay": 0.5,
    "guidance_min": 2.0,
    "guidance_text": 2.0,
    "guidance_lyric": 2.0,
    "erg_tag": False,
    "erg_lyric": False,
    "erg_diffusion": False,
    "oss_steps": (1, 2),
    "omega": 0.0,
    "noise_level": "schedule",
    "edit_from": 0.5,
    "edit_until": 0.5,
    "edit_average": 2,
    "codes": (1, 2, 3),
    "semantics": "diffusers",
    "pad_mode": "upstream",
    "precision": "upstream",
    "deterministic": True,
    "chunk_mask": "twos",
    "posterior": "sample",
    "normalize": None,
    "on_step": print,
    "dcw": "low",
}
SOURCE = {"task", "track", "tracks", "source", "reference", "strength", "cover_noise", "start", "end", "repaint_mode"}


def request(pipe, **changes) -> Request:
    """A request with ``changes`` that may contradict each other, which no caller could make."""
    made = Request("boom bap", seed=1, **SHORT).for_checkpoint(pipe.model.traits)
    for name, value in changes.items():
        object.__setattr__(made, name, value)
    return made


def alike(pipe, a: Request, b: Request) -> bool:
    return likeness(a, pipe.model) == likeness(b, pipe.model)


def test_every_option_either_may_differ_within_a_batch_or_may_not(tiny_base_pipe):
    plain = request(tiny_base_pipe)
    assert {*MAY_DIFFER} | {*MAY_NOT} | SOURCE == {*options()}
    for name, value in MAY_DIFFER.items():
        assert alike(tiny_base_pipe, plain, request(tiny_base_pipe, **{name: value})), name
    for name, value in MAY_NOT.items():
        assert not alike(tiny_base_pipe, plain, request(tiny_base_pipe, **{name: value})), name
    assert not (SOURCE - {"source", "reference"}) & OWN


@pytest.mark.parametrize(
    "name", ["guidance", "pad_mode", "precision", "noise_source", "dcw", "codes", "noise", "on_step"]
)
def test_lengths_must_be_equal_where_something_would_read_beyond_a_songs_end(tiny_base_pipe, name):
    options = {name: MAY_NOT[name]}
    a, b = (request(tiny_base_pipe, duration=seconds, **options) for seconds in (5.0, 6.0))
    assert not alike(tiny_base_pipe, a, b) and alike(tiny_base_pipe, a, request(tiny_base_pipe, **options))


def test_groups_are_full_before_the_next_is_begun_and_keep_the_order():
    assert grouped([1, 2, 1, 1, 2, 3], limit=2) == [[0, 2], [1, 4], [3], [5]]
    assert grouped([object() for _ in range(3)]) == [[0], [1], [2]]
    assert grouped([1] * 5, limit=3) == [[0, 1, 2], [3, 4]] and grouped([]) == []


LENGTHS = [5.0, 9.5, 7.3, 5.0]
KINDS = {
    "turbo": ("tiny_pipe", {}),
    "sde": ("tiny_pipe", {"solver": "sde"}),
    "heun, a second noise": ("tiny_pipe", {"solver": "heun", "variation": 0.3, "variation_seed": 4}),
    "base, apg": ("tiny_base_pipe", {}),
    "base, cfg in an interval": ("tiny_base_pipe", {"guidance": "cfg", "guidance_interval": (0.0, 0.9)}),
    "base, diffusers": ("tiny_base_pipe", {"semantics": "diffusers"}),
}


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("kind", KINDS)
def test_songs_of_several_lengths_are_those_made_alone(request, monkeypatch, kind):
    pipe, options = request.getfixturevalue(KINDS[kind][0]), KINDS[kind][1]
    asked = [
        Request("drill" + ", slow" * i, "la " * 3 * i, seed=i, bpm=80 + i, steps=2, duration=seconds, **options)
        for i, seconds in enumerate(LENGTHS)
    ]
    alone = [pipe.generate(r) for r in asked]
    composed = counted(monkeypatch, pipe, "compose")
    together = pipe.generate(asked)
    assert len(composed) == 1
    for got, want in zip(together, alone):
        assert got.latents.shape == want.latents.shape and got.audio.shape == want.audio.shape
        torch.testing.assert_close(got.latents, want.latents, rtol=0, atol=1e-5)
        assert got.request == want.request


@pytest.mark.usefixtures("undecoded")
def test_one_prompt_in_two_lengths_does_not_share_its_conditions(tiny_pipe, monkeypatch):
    """Words and seconds as the prompt says them are the same; only the frames differ."""
    asked = [Request("boom bap", seed=i, steps=2, duration=seconds) for i, seconds in enumerate((7.0, 7.9))]
    alone = [tiny_pipe.generate(r) for r in asked]
    calls = velocities(tiny_pipe, monkeypatch)
    together = tiny_pipe.generate(asked)
    assert calls[0]["conditions"].batch == 2
    for got, want in zip(together, alone):
        torch.testing.assert_close(got.latents, want.latents, rtol=0, atol=1e-5)


def test_their_audio_is_theirs_and_decoding_tells_how_far_it_is(tiny_pipe):
    asked = [Request("boom bap", seed=i, steps=1, duration=s, fade_in=i) for i, s in enumerate((7.0, 5.2, 7.0))]
    told = []
    together = tiny_pipe.generate(asked, progress=lambda *state: told.append(state))
    for got, r in zip(together, asked):
        want = tiny_pipe.generate(r)
        np.testing.assert_allclose(got.audio, want.audio, rtol=0, atol=2e-5)
    frames = [state[1:] for state in told if state[0] == "decode"]
    assert frames[0] == (0, 175 + 130) and frames[-1] == (305, 305) and frames == sorted(frames)
    assert (175, 305) in frames and {total for _, total in frames} == {305}


@pytest.mark.usefixtures("undecoded")
def test_requests_of_all_kinds_come_back_in_their_order(tiny_pipe, tune, monkeypatch):
    asked = [
        Request("a", seed=1, **SHORT),
        Request("b", seed=2, task="cover-nofsq", source=tune, steps=2),
        Request("c", seed=3, **SHORT, deterministic=True),
        Request("d", seed=4, duration=5.0, steps=1),
        Request("e", seed=5, **SHORT),
        Request("f", seed=6, **SHORT, deterministic=True),
        Request("g", seed=7, task="cover-nofsq", source=tune, steps=2),
    ]
    alone = [tiny_pipe.generate(r) for r in asked]
    composed = counted(monkeypatch, tiny_pipe, "compose")
    songs = tiny_pipe.generate(asked)
    assert [[r.prompt for r in args[0]] for args in composed] == [["a", "e"], ["b", "g"], ["c"], ["d"], ["f"]]
    assert [(s.request.prompt, s.seed) for s in songs] == [(r.prompt, r.seed) for r in asked]
    assert all(distance(got, want) < 1e-5 for got, want in zip(songs, alone))
    assert same(songs[2], alone[2]) and same(songs[5], alone[5])


@pytest.mark.usefixtures("undecoded")
def test_more_songs_than_a_batch_holds_are_several_batches(tiny_pipe, monkeypatch):
    composed = counted(monkeypatch, tiny_pipe, "compose")
    songs = tiny_pipe.generate("boom bap", seed=list(range(19)), **SHORT)
    assert [len(args[0]) for args in composed] == [8, 8, 3] and [s.seed for s in songs] == list(range(19))


@pytest.mark.usefixtures("undecoded")
def test_a_request_alone_makes_a_song_and_a_list_of_one_a_list(tiny_pipe):
    one = Request("boom bap", steps=1, duration=5)
    assert isinstance(tiny_pipe.generate(one), acefast.Song)
    (made,) = tiny_pipe.generate([one])
    assert made.seed == made.request.seed is not None  # drawn


def test_all_are_refused_before_the_first_is_made(tiny_pipe, folder, monkeypatch):
    composed = counted(monkeypatch, tiny_pipe, "compose")
    good, bad = Request("a", **SHORT), Request("b", task="cover", source="missing.wav")
    for what, words, rest in [
        ([good, bad], "there is no file 'missing.wav'", {}),
        ([good, "b"], "give requests alone", {}),
        (good, "give requests alone", {"seed": 1}),
        ([good], "give requests alone", {"steps": 3}),
    ]:
        with pytest.raises(acefast.RequestError) as caught:
            tiny_pipe.generate(what, **rest)
        sentence(str(caught.value), words)
    assert not composed


def test_given_noise_of_a_wrong_length_is_told_in_a_list_as_alone(tiny_pipe):
    wrong = [Request("a", noise=torch.zeros(frames, 8), **SHORT) for frames in (128, 150)]
    for what in (wrong, wrong[1]):
        with pytest.raises(acefast.RequestError) as caught:
            tiny_pipe.generate(what)
        sentence(str(caught.value), "noise must be [T, 8] with T = 128 here, got [150, 8]")
