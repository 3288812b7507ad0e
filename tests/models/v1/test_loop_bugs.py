"""Upstream's bugs and habits in sampling ACE-Step v1: each test states its behaviour, by golden numbers, and ours."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from acefast.guidance import guided
from acefast.models.v1.guidance import WindowGuidance
from acefast.models.v1.schedule import schedule, stretch
from acefast.models.v1.tasks import MOST_FRAMES
from acefast.sampling import sample
from tests.golden.v1.make_sampling import CASES, FILE, FRAMES, SECONDS, TEXT, case, source
from tests.models.v1.toy import GATE, SPAN, Toy, golden, raised, recorded, relative, requested, run


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
