"""Guidance against formulas written down in fp64, and when it acts."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

from acefast.guidance import VARIANTS, Guidance, adg, apg, cfg, guided
from acefast.sampling import sample, schedule

SHAPES = [(1, 1, 2), (2, 7, 3), (1, 250, 64)]  # one frame; odd sizes; ten seconds


def tensors(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def naive_adg(cond, uncond, latents, t, scale, variant):
    """Frame by frame in fp64."""
    cond, uncond, latents = cond.double(), uncond.double(), latents.double()
    clean, null = latents - t * cond, latents - t * uncond
    target = torch.empty_like(clean)
    weight = max(scale - 1, 0) + 1e-3
    limit = {"adg": 3.14 / 6, "adg_w_norm": 3.14 / 3, "adg_wo_clip": math.inf}[variant]
    for b in range(cond.shape[0]):
        for frame in range(cond.shape[1]):
            a, n = clean[b, frame], null[b, frame]
            cosine = (a @ n / (a.norm() * n.norm())).item()
            theta = math.acos(min(max(cosine, -1 + 1e-6), 1 - 1e-6))
            turn = min(weight * theta, limit)
            delta = a - n
            orthogonal = delta - n * (delta @ n) / (n @ n + 1e-8)
            ratio = math.sin(turn) / math.sin(theta) if math.sin(theta) > 1e-3 else weight
            target[b, frame] = math.cos(turn) * a + ratio * orthogonal
    if variant == "adg_w_norm":
        for b in range(cond.shape[0]):
            for ch in range(cond.shape[2]):
                target[b, :, ch] *= clean[b, :, ch].norm() / target[b, :, ch].norm()
    return (latents - target) / t


@pytest.mark.parametrize("B, T, C", SHAPES)
def test_cfg_matches_the_formula_in_fp64(B, T, C):
    cond, uncond = tensors(2, B, T, C)
    want = uncond.double() + 4.5 * (cond.double() - uncond.double())
    torch.testing.assert_close(cfg(cond, uncond, 4.5).double(), want, rtol=1e-6, atol=1e-6)
    rounded = cfg(cond.bfloat16(), uncond.bfloat16(), 4.5)
    assert torch.equal(rounded, cfg(cond.bfloat16().float(), uncond.bfloat16().float(), 4.5).bfloat16())


@pytest.mark.parametrize("variant", ["adg", "adg_w_norm", "adg_wo_clip"])
@pytest.mark.parametrize("t, scale", [(1.0, 7.0), (0.3, 1.5), (0.02, 7.0)])
@pytest.mark.parametrize("B, T, C", SHAPES)
def test_adg_matches_the_formula_in_fp64(variant, t, scale, B, T, C):
    cond, uncond, latents = tensors(3, B, T, C)
    want = naive_adg(cond, uncond, latents, t, scale, variant)
    got = adg(cond, uncond, latents, t, scale, variant=variant)
    torch.testing.assert_close(got, want.float(), rtol=2e-7, atol=1e-6)


def test_adg_keeps_close_velocities_close():
    cond, latents = tensors(2, 1, 20, 8)
    same = adg(cond, cond, latents, 0.5, 7.0)
    torch.testing.assert_close(same, cond, rtol=0, atol=1e-3)  # the cosine's clamp leaves an angle of 0.0014


def test_adg_without_the_clip_turns_further():
    cond, uncond, latents = tensors(3, 1, 50, 8)
    change = [(adg(cond, uncond, latents, 0.7, 3.0, variant=v) - cond).norm() for v in ("adg", "adg_wo_clip")]
    assert change[1] > 1.2 * change[0]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("zero", ["cond", "uncond", "latents", "all"])
def test_zero_norms_give_no_nan(variant, zero):
    cond, uncond, latents = tensors(3, 2, 5, 4)
    for name, tensor in (("cond", cond), ("uncond", uncond), ("latents", latents)):
        if zero in (name, "all"):
            tensor.zero_()
    got, _ = Guidance(7.0, variant).combine(cond, uncond, latents, 0.5)
    assert got.isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_song_does_not_depend_on_its_neighbours(variant):
    cond, uncond, latents = tensors(3, 3, 40, 8)
    guidance = Guidance(5.0, variant)
    together, _ = guidance.combine(cond, uncond, latents, 0.6)
    alone, _ = guidance.combine(cond[1:2], uncond[1:2], latents[1:2], 0.6)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-6, atol=1e-6)


def test_interval_includes_both_ends_and_reads_t_or_one_minus_t():
    official = Guidance(7.0, interval=(0.2, 0.9))
    assert [official.active(t) for t in (1.0, 0.9, 0.5, 0.2, 0.19, 0.0)] == [False, True, True, True, False, False]
    diffusers = Guidance(7.0, interval=(0.2, 0.9), semantics="diffusers")
    assert [diffusers.active(t) for t in (1.0, 0.9, 0.8, 0.5, 0.1, 0.09)] == [False, False, True, True, True, False]
    assert Guidance(7.0, interval=(0.0, 0.1), semantics="diffusers").active(torch.tensor(0.9).item())  # fp32's 0.9


def test_default_interval_is_everywhere_and_scale_one_nowhere():
    assert all(Guidance(1.5).active(t) for t in (1.0, 0.5, 0.0))
    assert not any(Guidance(1.0).active(t) for t in (1.0, 0.5, 0.0))


@pytest.mark.parametrize(
    "options",
    [
        dict(scale=0.5),
        dict(scale=math.nan),
        dict(scale=2, variant="apgg"),
        dict(scale=2, semantics="upstream"),
        dict(scale=2, interval=(0.6, 0.5)),
        dict(scale=2, interval=(-0.1, 0.5)),
        dict(scale=2, interval=(0.5, math.nan)),
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="guidance: "):
        Guidance(**options)


class Model:
    """Velocities that depend on the step only, and a record of what was asked for."""

    def __init__(self, steps: int) -> None:
        self.velocities = tensors(2 * steps, 1, 6, 4).unflatten(0, (steps, 2))
        self.asked: list[tuple[int, bool]] = []

    def __call__(self, latents, t, step, unconditional):
        self.asked.append((step, unconditional))
        cond, uncond = self.velocities[step]
        return (cond, uncond) if unconditional else cond


def test_unconditional_velocity_is_asked_for_inside_the_interval_only():
    model, times = Model(8), schedule(8, 1.0)
    velocity = guided(model, Guidance(7.0, interval=(0.3, 0.8)))
    outside = velocity(torch.zeros(1, 6, 4), times[0], 0, False)
    assert torch.equal(outside, model.velocities[0, 0])
    sample(velocity, torch.zeros(1, 6, 4), times)
    assert model.asked[1:] == [(i, 0.3 <= t <= 0.8) for i, t in enumerate(times)]


def test_momentum_advances_on_guided_steps_only():
    model, times = Model(4), [1.0, 0.75, 0.5, 0.25]
    velocity = guided(model, Guidance(7.0, interval=(0.5, 0.75)))
    x = torch.zeros(1, 6, 4)
    got = [velocity(x, t, i, False) for i, t in enumerate(times)]
    first, running = apg(*model.velocities[1], None, 7.0)
    assert torch.equal(got[1], first)
    assert torch.equal(got[2], apg(*model.velocities[2], running, 7.0)[0])
    assert torch.equal(got[3], model.velocities[3, 0])


def test_momentum_survives_an_unguided_step_between():
    model = Model(3)
    velocity = guided(model, Guidance(7.0, interval=(0.5, 1.0)))
    x = torch.zeros(1, 6, 4)
    velocity(x, 1.0, 0, False)
    velocity(x, 0.1, 1, False)
    _, running = apg(*model.velocities[0], None, 7.0)
    assert torch.equal(velocity(x, 0.9, 2, False), apg(*model.velocities[2], running, 7.0)[0])


def test_corrector_is_plain_cfg_and_leaves_the_momentum():
    model = Model(2)
    velocity = guided(model, Guidance(7.0))
    x = torch.zeros(1, 6, 4)
    velocity(x, 1.0, 0, False)
    assert torch.equal(velocity(x, 0.5, 0, True), cfg(*model.velocities[0], 7.0))
    _, running = apg(*model.velocities[0], None, 7.0)
    assert torch.equal(velocity(x, 0.5, 1, False), apg(*model.velocities[1], running, 7.0)[0])


def test_adg_corrector_is_adg_until_t_is_zero():
    cond, uncond, latents = tensors(3, 1, 6, 4)
    guidance = Guidance(7.0, "adg")
    at_half, _ = guidance.combine(cond, uncond, latents, 0.5, corrector=True)
    assert torch.equal(at_half, adg(cond, uncond, latents, 0.5, 7.0))
    at_zero, _ = guidance.combine(cond, uncond, latents, 0.0, corrector=True)
    assert torch.equal(at_zero, cfg(cond, uncond, 7.0))
    with pytest.raises(ValueError, match="adg: t must be above 0"):
        guidance.combine(cond, uncond, latents, 0.0)


@pytest.mark.parametrize("semantics", ["official", "diffusers"])
def test_whole_guided_loop_matches_one_built_from_diffusers(semantics):
    """Diffusers' guidance and Euler step, its interval read as 1 - t; ours with either reading of the same interval."""
    model, times, interval = Model(10), schedule(10, 3.0), (0.1, 0.7)
    noise = tensors(1, 1, 6, 4, seed=1)[0]
    x, buffer = noise, MomentumBuffer(-0.75)
    for i, (t, t_next) in enumerate(zip(times, [*times[1:], 0.0])):
        cond, uncond = model.velocities[i]
        position = 1 - t if semantics == "diffusers" else t
        v = cond
        if interval[0] <= position <= interval[1]:
            v = normalized_guidance(cond, uncond, 6.0, buffer, 0.0, 2.5, True, norm_dim=(1,))
        x = x + (t_next - t) * v
    got = sample(guided(model, Guidance(7.0, interval=interval, semantics=semantics)), noise, times)
    torch.testing.assert_close(got, x, rtol=1e-5, atol=1e-5)
