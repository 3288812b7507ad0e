"""Sampling of ACE-Step v1 against upstream's own loops on a toy velocity: whole trajectories of every task and solver.

Golden numbers: tests/golden/v1/make_sampling.py. Where upstream has a bug its behaviour and ours are both stated.
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from acefast.diffusion import diffusion
from acefast.guidance import guided
from acefast.models.v1.guidance import WindowGuidance
from acefast.models.v1.loop import Sampling
from acefast.models.v1.schedule import schedule, stretch
from acefast.models.v1.tasks import MOST_FRAMES, frames_of
from acefast.ops.philox import philox_normal
from acefast.options import OTHER_NAMES
from acefast.request import CheckpointTraits, Request
from acefast.sampling import sample
from acefast.tasks import Recording
from tests.golden.v1.make_sampling import CASES, FILE, FRAMES, SECONDS, SOURCE, TARGET, TEXT, case, ours, source, toy

GATE = 1e-4
V1 = CheckpointTraits("ace-step-v1-3.5b", False, "v1")
RATE = 48_000
SPAN = FRAMES * 4096 / 44_100  # seconds of the toy source


class Toy(Sampling):
    """A model whose network is ``toy`` and whose encoder gives ``source``, of the frames that there are."""

    device, transformer, traits = torch.device("cpu"), None, V1

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.asked: list[tuple[float, bool]] = []

    def encode(self, audio: np.ndarray) -> Tensor:
        return source(-(-audio.shape[1] * 147 // (160 * 4096)))

    def velocity(self, x: Tensor, t: float, conditions: SimpleNamespace, unconditional: bool = False):
        self.asked.append((t, unconditional))
        names = ["cond", "null", "text"][: 1 if not unconditional else 3 if conditions.double else 2]
        made = [toy(x.to(self.dtype), t, conditions.c[name]).float() for name in names]
        return tuple(made) if unconditional else made[0]


def golden(name: str) -> Tensor:
    with safe_open(FILE, "pt") as file:
        return file.get_tensor(name).float()


def raised(name: str) -> str:
    with safe_open(FILE, "pt") as file:
        return json.loads(file.metadata()["raised"])[name]


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return ((got - want).norm() / want.norm()).item()


def requested(about: dict, **changes) -> list[Request]:
    """Our requests of a case, with upstream's noise."""
    options, seeds = dict(about["options"]), about["seeds"] or (0,)
    names = {"n_min": "edit_from", "n_max": "edit_until", "n_avg": "edit_average"} | OTHER_NAMES
    variance = options.pop("retake_variance", 0.5)
    start, end = options.pop("repaint_start", 0), options.pop("repaint_end", 0)
    asked = {names.get(name, name): value for name, value in options.items() if name != "audio2audio_enable"}
    if not about["seeds"]:
        asked |= {"task": "edit", "target_lyrics": "la"}
    elif about["source"] and (start < 0 or end > about["source"] * 4096 / 44_100 + 0.05):
        asked |= {"task": "extend", "strength": variance, "start": -1.0, "end": None}
    elif about["source"]:
        asked |= {"task": "repaint", "strength": variance}
    elif about["reference"]:
        asked["task"] = "audio2audio"
    elif about["other"]:
        asked["variation"] = variance
    if asked.get("task", "text2music") != "text2music":
        asked["source"] = "song.wav"
    if asked.get("oss_steps") is None:
        asked["steps"] = about["steps"]
    made = []
    for i, seed in enumerate(seeds):
        second = {"variation_seed": about["other"][i]} if about["other"] else {}
        request = Request("rock", **{"seed": seed, "noise_source": "torch", **asked, **second, **changes})
        made.append(request.for_checkpoint(V1))
        if request.task == "text2music":
            object.__setattr__(made[-1], "duration", SECONDS)  # a caller gives 5 seconds at least
    return made


def recorded(about: dict) -> Recording | None:
    """The source of a case, silence of its length, with the regions that upstream's times mean."""
    if not (about["source"] or about["reference"] or not about["seeds"]):
        return None
    own = (about["source"] or FRAMES) * 4096 / 44_100
    start, end = about["options"].get("repaint_start", 0), about["options"].get("repaint_end", own)
    before, after = max(0.0, -start), end - own if end > own + 0.05 else 0.0
    regions = [(0.0, before)] * (before > 0) + [(before + own, before + own + after)] * (after > 0)
    before_n, after_n = round(before * RATE), round(after * RATE)
    waveform = np.zeros((2, before_n + int(own * RATE) + after_n), np.float32)
    return Recording(waveform, tuple(regions) or ((start, end),), before_n, after_n)


def run(about: dict, model: Toy | None = None, **changes) -> Tensor:
    """The latents [B, T, 128] that our loop makes of a case."""
    requests, model = requested(about, **changes), model or Toy(about["dtype"])
    request = requests[0]
    task = model.task(requests, recorded(about))
    double = request.guidance_text > 1
    conditions, other = SimpleNamespace(c=TEXT, double=double), None
    if request.task == "edit":
        conditions, other = (SimpleNamespace(c=TEXT | {"cond": c}, double=False) for c in (TARGET, SOURCE))
    noise, timesteps = model.noise(requests, task), model.timesteps(request)
    told = []
    latents = diffusion(model, requests, task, noise, timesteps, conditions, other)(lambda *step: told.append(step))
    assert told[-1] == (len(timesteps), len(timesteps))
    whole, latents = task.whole(latents)
    assert latents.shape[1] == whole.frames
    return latents


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


# -- what upstream does otherwise --------------------------------------------------------------------------------------


def test_songs_of_a_batch_are_those_made_alone_and_upstreams_are_not():
    """Upstream: a step's mean is the batch's, PingPong's noise the first song's generator's. Ours: each song's own."""
    for name, noise_source in (("euler", "philox"), ("euler", "torch"), ("pingpong", "philox")):
        about = CASES[f"{name}, two songs"]
        single = [case(about["steps"], seed, **about["options"]) for seed in (3, 5)]
        alone = torch.cat([run(one, noise_source=noise_source) for one in single])
        torch.testing.assert_close(run(about, noise_source=noise_source), alone, rtol=0, atol=1e-6)
        assert relative(run(single[1]), golden(f"{name}, two songs")[1:]) > GATE


def test_heuns_window_counts_steps_where_upstream_counts_evaluations():
    """Upstream: the window of N steps is held against 2 N - 1 evaluations, so with all of them guided only N are."""
    about = CASES["heun, guided"]
    N = about["steps"]
    with safe_open(FILE, "pt") as file:
        calls = json.loads(file.metadata()["calls"])["heun, guided"]
    guided_calls = [t for t, c in calls if c == TEXT["null"]]
    times = schedule(N)
    assert guided_calls == pytest.approx([times[0], times[1], times[1], times[2], times[2], times[3]])

    class Counted(WindowGuidance):
        def active(self, t: float, step: int = 0) -> bool:
            counted.append(t)
            return len(counted) <= N

    counted: list[float] = []
    model = Toy()
    conditions = SimpleNamespace(c=TEXT, double=False)
    velocity = guided(
        lambda x, t, step, both: model.velocity(x, t, conditions, unconditional=both), Counted(15.0, window=range(N))
    )
    noise = model.torch_noise(torch.Generator().manual_seed(3), FRAMES)
    theirs = sample(velocity, noise, times, solver="heun", omega=stretch(10.0), corrects_last=False)
    assert relative(theirs, golden("heun, guided")) <= GATE

    model = Toy()
    run(about, model)
    assert [both for _, both in model.asked] == [True] * (2 * N - 1)
    model = Toy()
    run(case(8, 3, scheduler_type="heun"), model)  # steps 2 .. 5 and what corrects towards them
    assert [t for t, both in model.asked if both] == [t for t in schedule(8)[2:6] for _ in range(2)]


def test_a_scale_falls_over_the_window_and_stays_in_one_of_one_step():
    """Upstream divides by the window's length less one."""
    assert "ZeroDivisionError" in raised("cfg falls in one step")
    about = CASES["cfg falls in one step"]
    assert torch.equal(run(about), run(about, guidance_decay=0.0))


def test_a_repaint_of_the_whole_source_repaints_and_upstream_forgets_the_source():
    about = CASES["repaint of the whole"]
    retake = case(6, 3, other=(9,), retake_variance=0.4, repaint_start=0, repaint_end=SECONDS)
    theirs = golden("repaint of the whole")
    assert relative(theirs, run(retake)) <= GATE  # no source in it
    made = run(about)
    assert relative(made, theirs) > 0.1
    model = Toy()
    run(about, model)
    assert [t for t, _ in model.asked] == schedule(6)[3:]  # from step 6 * (1 - 0.4) on


def test_a_repaint_without_a_step_is_refused_and_upstream_gives_noise():
    noise = Toy().torch_noise(torch.Generator().manual_seed(3), FRAMES)
    for name in ("repaint, no variance", "oss, repaint"):
        kept = golden(name)[:, 5:]
        assert torch.equal(kept, noise[:, 5:]), name  # in place of the source
    with pytest.raises(ValueError, match="strength must be above 0"):
        requested(CASES["repaint, no variance"])
    made = run(CASES["oss, repaint"])  # ours counts the steps that are taken
    assert torch.equal(made[:, 5:], source()[:, 5:])


def test_a_repaint_takes_euler_steps_only_and_upstream_does_for_every_solver():
    """Upstream with Heun: the doubled timesteps are steps of no length, and the start index counts them."""
    with pytest.raises(ValueError, match="solver='heun' has no use"):
        requested(CASES["repaint, heun"])
    same = case(6, 3, other=(9,), source=FRAMES, repaint_start=0, repaint_end=SPAN * 5 / 12 + 1e-4, guidance_scale=1.0)
    request = requested(same)[0]
    model, recording = Toy(), recorded(same)
    task = model.task([request], recording)
    noise, times = model.noise([request], task), schedule(6)
    loop = model.loop([request], task, noise, times, SimpleNamespace(c=TEXT, double=False), None)
    t = times[2]  # the third of t0, t1, t1, t2, t2, ...
    start = (1 - t) * source() + t * noise
    theirs = sample(loop.velocity, start, times, start=2, after_step=loop.options["after_step"])
    assert relative(theirs, golden("repaint, heun")) <= GATE


@pytest.mark.parametrize("name", ["repaint", "extend in front", "extend behind"])
def test_what_a_task_keeps_of_its_source_is_the_source(name):
    made, (left, right) = run(CASES[name]), {"repaint": (0, 0), "extend in front": (5, 0)}.get(name, (0, 4))
    kept = made[:, left : made.shape[1] - right]
    outside = [*range(3), *range(9, 12)] if name == "repaint" else range(FRAMES)
    assert torch.equal(kept[:, outside], source()[:, outside])


def test_an_extension_on_both_sides_is_as_long_as_asked_and_upstreams_is_shorter():
    """Upstream counts the end without what it has put in front: 20 frames, 8 less 5 of them behind 5 and 12."""
    assert golden("extend on both sides").shape[1] == 20
    made = run(CASES["extend on both sides"])
    assert made.shape[1] == 5 + 12 + 8
    assert torch.equal(made[:, 5:17], source())


def test_a_song_can_grow_by_more_than_its_length_and_upstream_asserts():
    assert "AssertionError" in raised("extend by more than the source")
    made = run(CASES["extend by more than the source"])
    assert made.shape[1] == 30 and torch.equal(made[:, :12], source())
    new = made[0, 12:]
    assert new.isfinite().all() and len(new.unique(dim=0)) == 18


def test_the_end_put_back_behind_an_overlong_song_is_the_one_cut_off_and_upstreams_is_not():
    """Upstream puts back the last frames of what was left."""
    numbers = source(2580)
    theirs = golden("extend a long one in front")[0, :, 0]
    assert theirs.shape == (2600,) and MOST_FRAMES == 2583
    assert torch.equal(theirs[-17:], numbers[0, 2546:2563, -1])
    made = run(CASES["extend a long one in front"])
    assert made.shape[1] == 2600 and torch.equal(made[:, 20:], numbers)


def test_the_beginning_is_put_back_in_front_of_an_overlong_song_and_upstream_crashes():
    assert "TypeError" in raised("extend a long one behind")  # along the batch, and the wrong tensor
    made = run(CASES["extend a long one behind"])
    assert made.shape[1] == 2600 and torch.equal(made[:, :2580], source(2580))


def test_an_edit_with_pingpong_is_refused_and_upstream_gives_the_source():
    assert torch.equal(golden("edit, pingpong"), source())
    with pytest.raises(ValueError, match="solver='sde' has no use in task='edit'"):
        requested(CASES["edit, pingpong"])


def test_an_edits_source_has_momentum_and_its_target_none_before_the_switch(monkeypatch):
    """Upstream's habit, and ours: with momentum on both sides, or on neither, it is another song."""
    on_both = {"window": range(CASES["edit"]["steps"])}
    monkeypatch.setattr("acefast.models.v1.loop.replace", lambda guidance, **_: replace(guidance, **on_both))
    assert relative(run(CASES["edit"]), golden("edit")) > 100 * GATE
    monkeypatch.undo()
    assert relative(run(CASES["edit"], guidance_momentum=0.0), golden("edit")) > 100 * GATE


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


def test_only_songs_of_one_length_are_made_together():
    model = Toy()
    assert model.bucket(SimpleNamespace(duration=10.0)) == 107 == frames_of(10)
    assert model.bucket(SimpleNamespace(duration=10.2)) == 109
