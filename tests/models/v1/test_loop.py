"""Sampling of ACE-Step v1 against upstream's own loops on a toy velocity: whole trajectories of every task and solver.

Golden numbers: tests/golden/v1/make_sampling.py. What upstream does otherwise is in test_loop_bugs.py.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from acefast.batches import likeness
from acefast.models.v1.loop import EDIT_STREAM
from acefast.models.v1.tasks import frames_of
from acefast.noise import drawing
from acefast.ops.philox import philox_normal
from acefast.ops.sampler_step import SDE_STREAM
from acefast.request import Request
from tests.golden.v1.make_sampling import CASES, FRAMES, TEXT, ours, source
from tests.models.v1.toy import GATE, V1, Toy, golden, recorded, relative, requested, run

PARITY = [
    *["euler", "euler, cfg falls", "apg everywhere", "no guidance", "cfg_star everywhere", "double"],
    *["heun", "heun, one step", "pingpong", "oss", "oss, pingpong", "retake", "audio2audio 0.0", "audio2audio 0.5"],
    *["audio2audio 0.8", "repaint", "repaint, two songs", "extend in front", "extend behind", "edit", "edit the words"],
    *["edit, remix", "edit from noise", "edit, no guidance"],
]
UPSTREAMS = ["cfg_star", "euler, two songs", "pingpong, two songs", "euler, bf16", "oss, bf16"]


@pytest.mark.parametrize("name", PARITY)
def test_a_trajectory_is_upstreams(name):
    assert relative(run(CASES[name]), golden(name)) <= GATE


@pytest.mark.parametrize("name", UPSTREAMS)
def test_a_trajectory_with_upstreams_roundings_and_couplings_is_upstreams(name):
    assert relative(run(CASES[name], precision="upstream"), golden(name)) <= GATE


# -- noise and schedule of the house -----------------------------------------------------------------------------------


def test_audio2audio_can_start_where_its_first_step_is():
    about = CASES["audio2audio 0.5"]
    request = requested(about, noise_level="schedule")[0]
    model, recording = Toy(), recorded(about)
    task = model.task([request], recording)
    noise, times = model.noise([request], task), model.timesteps(request)
    loops = [
        model.loop([r], task, noise, times, SimpleNamespace(c=TEXT, double=False), None)
        for r in (request, requested(about)[0])
    ]
    assert (times[0], len(times)) == (pytest.approx(0.9), 5)
    for loop, level in zip(loops, (0.9, 0.75)):
        torch.testing.assert_close(loop.latents, (1 - level) * source() + level * noise)


@pytest.mark.parametrize("name", ["repaint", "extend behind", "edit"])
def test_the_second_noise_is_of_the_next_seed_if_none_is_given(name):
    for noise_source in ("philox", "torch"):
        options = {"seed": 3, "noise_source": noise_source}
        drawn = run(CASES[name], variation_seed=None, **options)
        assert torch.equal(drawn, run(CASES[name], variation_seed=4, **options))
        assert not torch.equal(drawn, run(CASES[name], variation_seed=5, **options))


def test_noise_is_the_houses_own_stream_unless_torchs_is_asked_for():
    (request,), model = requested(CASES["euler"], noise_source="philox"), Toy()
    task = model.task([request], None)
    assert torch.equal(model.noise([request], task), philox_normal([3], (FRAMES, 128)))
    theirs = torch.randn(1, 8, 16, FRAMES, generator=torch.Generator().manual_seed(3))
    (request,) = requested(CASES["euler"])
    assert torch.equal(model.noise([request], task), ours(theirs))
    given = philox_normal([8], (FRAMES, 128))[0]
    (request,) = requested(CASES["euler"], noise=given, noise_source="philox")
    assert torch.equal(model.noise([request], task)[0], given)


def test_what_an_extension_is_given_as_noise_it_takes():
    given = philox_normal([8], (16, 128))[0]
    (request,) = requested(CASES["extend behind"], noise=given, noise_source="philox", variation_seed=None)
    model = Toy()
    task = model.task([request], recorded(CASES["extend behind"]))
    assert torch.equal(model.noise([request], task)[0], given)
    object.__setattr__(request, "noise", given[:9])
    with pytest.raises(ValueError, match=r"noise must be \[T, 128\] with T = 16 here"):
        model.noise([request], task)


def test_an_edits_noise_is_none_that_a_song_is_made_with():
    seen = []

    class Watched(Toy):
        def velocity(self, x, *args, **options):
            seen.append(x)
            return super().velocity(x, *args, **options)

    run(CASES["edit"], Watched(), noise_source="philox", variation_seed=8)
    assert EDIT_STREAM > SDE_STREAM + 200  # steps at most
    assert torch.equal(seen[1], philox_normal([8], (FRAMES, 128), stream=EDIT_STREAM))  # the source's, at t = 1


def test_every_draw_is_another_stream():
    draw = drawing(Toy(), [3, 4], 5, 128, "philox", first=7)
    assert torch.equal(draw(), philox_normal([3, 4], (5, 128), stream=7))
    assert torch.equal(draw(), philox_normal([3, 4], (5, 128), stream=8))


def test_only_songs_of_one_length_and_of_the_same_options_are_made_together():
    def key(**options):
        return likeness(Request("rock", **options).for_checkpoint(V1), Toy())

    assert frames_of(10.0) == frames_of(10.02) == 107 and frames_of(10.2) == 109
    assert key(duration=10.0) == key(duration=10.02, seed=3, lyrics="la") != key(duration=10.2)
    for other in ({"omega": 0}, {"erg_lyric": False}, {"guidance_decay": 1}, {"oss_steps": (1, 5)}, {"steps": 5}):
        assert key(duration=10.0) != key(duration=10.0, **other)
    edit = {"task": "edit", "source": "a.wav"}
    assert key(**edit, target_lyrics="la") == key(**edit, target_prompt="jazz") != key(task="repaint", source="a.wav")
