"""What may happen before, between and after the steps: hooks, mixed noise, wavelet correction, repaint."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acefast import repaint, sampling
from acefast.ops.philox import philox_normal
from acefast.sampling import Cancelled, sample, schedule


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flow_to(clean: torch.Tensor):
    """The exact velocity towards one clean song: x_t = t n + (1 - t) clean, so v = (x_t - clean) / t."""
    return lambda x, t, step, corrector: (x - clean.to(x.dtype)) / t


# Hooks


def test_on_step_is_told_each_step_and_the_clean_estimate():
    clean, noise, seen = randn(1, 3, 2), randn(1, 3, 2, seed=1), []
    sample(flow_to(clean), noise, [1.0, 0.5, 0.2], on_step=seen.append)
    assert [(i.step, i.steps, i.t, i.t_next) for i in seen] == [(0, 3, 1.0, 0.5), (1, 3, 0.5, 0.2), (2, 3, 0.2, 0.0)]
    for info in seen:
        torch.testing.assert_close(info.denoised, clean, rtol=0, atol=2e-6)
        torch.testing.assert_close(info.latents, info.t_next * noise + (1 - info.t_next) * clean)
    assert 0 <= seen[0].elapsed <= seen[1].elapsed <= seen[2].elapsed


def test_on_step_replaces_latents():
    def replace(info):
        return torch.full((1, 3, 2), 7.0, dtype=torch.float64) if info.step == 1 else None

    got = sample(lambda x, *_: torch.ones_like(x), randn(1, 3, 2), [1.0, 0.5, 0.25], on_step=replace)
    assert torch.equal(got, torch.full((1, 3, 2), 6.75))


@pytest.mark.parametrize("stop", [lambda info: False, lambda info: info.cancel()], ids=["False", "cancel"])
def test_on_step_cancels_before_the_next_evaluation(stop):
    asked = []

    def velocity(x, t, step, corrector):
        asked.append(step)
        return x

    with pytest.raises(Cancelled, match="cancelled after step 2 of 8") as caught:
        sample(velocity, randn(1, 3, 2), schedule(8, 3.0), on_step=lambda i: stop(i) if i.step == 1 else None)
    assert asked == [0, 1] and caught.value.step == 1


def test_on_step_answer_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="on_step must return None, a tensor or False, got str"):
        sample(lambda x, *_: x, randn(1, 3, 2), [1.0], on_step=lambda info: "stop")


@pytest.mark.parametrize("solver", sampling.SOLVERS)
def test_hooks_run_in_order_and_correction_skips_sde(solver):
    calls = []
    sample(
        lambda x, *_: x,
        randn(1, 3, 2),
        [1.0, 0.5],
        solver=solver,
        seeds=[1],
        correct=lambda x, denoised, t, t_next: calls.append(("correct", t, t_next)) or x,
        after_step=lambda x, step, t_next: calls.append(("after", step, t_next)) or x,
        on_step=lambda info: calls.append(("on", info.step, info.t_next)),
    )
    want = []
    for step, (t, t_next) in enumerate([(1.0, 0.5), (0.5, 0.0)]):
        want += [] if solver == "sde" else [("correct", t, t_next)]
        want += [("after", step, t_next), ("on", step, t_next)]
    assert calls == want


def test_correction_is_given_the_clean_estimate_of_the_first_velocity():
    clean, noise, seen = randn(1, 3, 2), randn(1, 3, 2, seed=1), []
    sample(flow_to(clean), noise, [1.0, 0.5], correct=lambda x, denoised, t, t_next: seen.append(denoised) or x * 2)
    assert len(seen) == 2
    for denoised in seen:
        torch.testing.assert_close(denoised, clean, rtol=0, atol=2e-6)


# Noise


def test_mixed_noise_keeps_the_variance_and_reaches_both_ends():
    a, b = philox_normal([1, 2], (4000, 8))
    assert sampling.mix_noise(a, b, 0) is a and sampling.mix_noise(a, b, 1) is b
    mixed = sampling.mix_noise(a, b, 1 / 3)
    torch.testing.assert_close(mixed, math.sqrt(3) / 2 * a + b / 2)
    assert mixed.std().item() == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match="variation must be 0 to 1"):
        sampling.mix_noise(a, b, 1.5)


@pytest.mark.parametrize("amount, index", [(0.01, 0), (0.5, 6), (0.2, 3), (0.9, 7), (1.0, 7), (0.6, 6)])
def test_cover_starts_at_the_nearest_timestep(amount, index):
    t, noise, source = schedule(8, 3.0), randn(1, 3, 2), randn(1, 3, 2, seed=1)
    latents, rest = sampling.noised_start(t, noise, source, amount)
    assert rest == t[index:]
    torch.testing.assert_close(latents, t[index] * noise + (1 - t[index]) * source)
    torch.testing.assert_close(sample(flow_to(source), latents, rest), source, rtol=0, atol=2e-6)


def test_cover_without_noise_amount_starts_from_noise():
    t, noise = schedule(8, 3.0)[1:], randn(1, 3, 2)
    latents, rest = sampling.noised_start(t, noise, noise * 2, 0.0)
    assert latents is noise and rest == t
    with pytest.raises(ValueError, match="amount must be 0 to 1"):
        sampling.noised_start(t, noise, noise, -0.1)


# Wavelet correction


def naive_wavelet(x, clean, t, mode, scale, high_scale):
    """Both signals through the whole transform, in fp64, song by song and channel by channel."""
    out = x.double().clone()
    for b in range(x.shape[0]):
        for ch in range(x.shape[2]):
            bands = []
            for signal in (x[b, :, ch].double(), clean[b, :, ch].double()):
                s = signal.tolist() + [0.0] * (len(signal) % 2)
                bands.append([((p + q) / 2**0.5, (p - q) / 2**0.5) for p, q in zip(s[::2], s[1::2])])
            frames = []
            for (low, high), (low0, high0) in zip(*bands):
                if mode in ("low", "double"):
                    low += t * scale * (low - low0)
                if mode in ("high", "double"):
                    high += (1 - t) * (scale if mode == "high" else high_scale) * (high - high0)
                frames += [(low + high) / 2**0.5, (low - high) / 2**0.5]
            out[b, :, ch] = torch.tensor(frames[: x.shape[1]], dtype=torch.float64)
    return x + scale * (x.double() - clean) if mode == "pix" else out


@pytest.mark.parametrize("mode", ["low", "high", "double", "pix"])
@pytest.mark.parametrize("T", [1, 6, 7])
def test_wavelet_correction_matches_the_whole_transform(mode, T):
    x, clean = randn(2, T, 3), randn(2, T, 3, seed=1)
    want = naive_wavelet(x, clean, 0.7, mode, 0.3, 0.2)
    got = sampling.wavelet_correction(x, clean, 0.7, mode=mode, scale=0.3, high_scale=0.2)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    transposed = sampling.wavelet_correction(x.mT, clean.mT, 0.7, mode=mode, scale=0.3, high_scale=0.2, time_dim=-1)
    torch.testing.assert_close(transposed.mT, got)


def test_unknown_wavelet_mode_is_refused():
    with pytest.raises(ValueError, match="low, high, double, pix, got 'mid'"):
        sampling.wavelet_correction(randn(1, 2, 2), randn(1, 2, 2), 0.5, mode="mid")


# Repaint


def test_repaint_plans_are_the_documented_ones():
    plan = repaint.repaint_plan
    assert plan("conservative", 0.1) == repaint.RepaintPlan(1.0, 25, 0.05, True)
    assert plan("balanced") == repaint.RepaintPlan(0.5, 12, 0.025, True)
    assert plan("balanced", 0.2) == repaint.RepaintPlan(0.8, 20, pytest.approx(0.04), True)
    assert plan("balanced", 0.25).boundary_frames == 19
    assert plan("aggressive", 0.1) == repaint.RepaintPlan(0.0, 0, 0.0, False)
    assert [plan("balanced", s).injected_steps(8) for s in (0.0, 0.5, 0.9, 1.0)] == [8, 4, 1, 0]
    with pytest.raises(ValueError, match="mode must be"):
        plan("bold")
    with pytest.raises(ValueError, match="strength must be 0 to 1"):
        plan("balanced", 2)


@pytest.mark.parametrize("per_song", [False, True])
def test_injection_noises_the_source_outside_the_region_only(per_song):
    x, source, noise = randn(3, 2, 6, 4)
    mask = torch.tensor([0, 1, 1, 0, 0, 0])
    masks = torch.stack([mask, mask.flip(0)]) if per_song else mask
    got = repaint.inject(x, source, noise, masks, 0.3)
    inside = masks.bool().expand(2, 6)
    assert torch.equal(got[inside], x[inside])
    torch.testing.assert_close(got[~inside], (0.3 * noise + 0.7 * source)[~inside])
    v1 = [tensor.mT.unsqueeze(2) for tensor in (x, source, noise)]  # time last, as [B, C, H, T]
    assert torch.equal(repaint.inject(*v1, masks, 0.3, time_dim=-1), got.mT.unsqueeze(2))


def test_injection_on_every_step_ends_in_the_source():
    source, noise = randn(2, 1, 6, 4)
    mask = torch.tensor([False, False, True, True, True, False])
    got = sample(
        lambda x, *_: torch.sin(x),
        noise,
        schedule(8, 3.0),
        after_step=lambda x, step, t_next: repaint.inject(x, source, noise, mask, t_next),
    )
    assert torch.equal(got[:, ~mask], source[:, ~mask])
    assert not torch.isclose(got[:, mask], source[:, mask]).all()


def test_boundary_ramps_linearly_outside_the_region():
    x, source = torch.ones(1, 12, 2), torch.zeros(1, 12, 2)
    mask = torch.zeros(12)
    mask[5:7] = 1
    got = repaint.blend_boundary(x, source, mask, 3)[0, :, 0].tolist()
    assert got == [0, 0, 0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0, 0]


def upstreams_ramps(mask, frames):
    """The weight of what was made, as upstream builds it: a ramp at either side of a region, cut at the song's ends."""
    T, weight = len(mask), torch.tensor(mask, dtype=torch.float32)
    starts = [i for i in range(T) if mask[i] and not (i and mask[i - 1])]
    ends = [i + 1 for i in range(T) if mask[i] and not (i + 1 < T and mask[i + 1])]
    for start, end in zip(starts, ends):
        first, last = max(start - frames, 0), min(end + frames, T)
        left, right = torch.linspace(0, 1, start - first + 2)[1:-1], torch.linspace(1, 0, last - end + 2)[1:-1]
        weight[first:start] = torch.maximum(weight[first:start], left)
        weight[end:last] = torch.maximum(weight[end:last], right)
    return weight


@settings(max_examples=200, deadline=None)
@given(mask=st.lists(st.booleans(), min_size=1, max_size=16), frames=st.integers(1, 30))
def test_boundary_ramps_are_upstreams_at_the_songs_ends_too(mask, frames):
    T = len(mask)
    masks = torch.tensor([mask, mask[::-1]])
    got = repaint.blend_boundary(torch.ones(2, T, 1), torch.zeros(2, T, 1), masks, frames)[..., 0]
    for row, m in zip(got, masks.tolist()):
        torch.testing.assert_close(row, upstreams_ramps(m, frames), rtol=0, atol=1e-6)


def test_boundary_of_no_frames_blends_nothing():
    x = randn(1, 4, 2)
    assert repaint.blend_boundary(x, x * 0, torch.tensor([0, 1, 1, 0]), 0) is x
    with pytest.raises(ValueError, match="frames must be 0 or more"):
        repaint.blend_boundary(x, x, torch.ones(4), -1)


def test_mask_of_another_length_is_refused():
    x = randn(2, 4, 3)
    for mask in (torch.ones(3), torch.ones(1, 4), torch.ones(2, 4, 3)):
        with pytest.raises(ValueError, match=r"mask must be \[T\] or \[B, T\]"):
            repaint.inject(x, x, x, mask, 0.5)
