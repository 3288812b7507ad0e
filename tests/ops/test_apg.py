"""Proof of acefast.ops.apg."""

from __future__ import annotations

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from hypothesis import given, settings
from hypothesis import strategies as st

from acefast.ops.apg import apg

SHAPES = [(1, 1, 1), (2, 7, 3), (1, 250, 64)]  # a single value; odd sizes; ten seconds
TOLERANCE = {
    torch.float32: dict(rtol=2e-6, atol=2e-6),  # the order of a sum
    torch.bfloat16: dict(rtol=2**-7, atol=2**-7),  # one ulp, where a norm is rounded the other way
}


def velocities(*shape: int, steps: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(steps, 2, *shape, generator=torch.Generator().manual_seed(seed))


def naive(cond, uncond, running, scale, momentum=-0.75, norm_threshold=2.5, eta=0.0):
    """Song by song, channel by channel, in fp64."""
    running = (cond - uncond).double() + (0 if running is None else momentum * running.double())
    out = torch.empty_like(running)
    for b in range(cond.shape[0]):
        for ch in range(cond.shape[2]):
            c, d = cond[b, :, ch].double(), running[b, :, ch]
            if norm_threshold > 0 and d.norm() > norm_threshold:
                d = d * (norm_threshold / d.norm())
            direction = c / max(c.norm(), 1e-12)
            parallel = (d @ direction) * direction
            out[b, :, ch] = c + (scale - 1) * (d - parallel + eta * parallel)
    return out, running


@pytest.mark.parametrize("B, T, C", SHAPES)
@pytest.mark.parametrize("eta, norm_threshold", [(0.0, 2.5), (0.3, 0.5), (1.0, 0.0)])
def test_matches_the_formula_in_fp64_over_three_steps(B, T, C, eta, norm_threshold):
    state = state64 = None
    for cond, uncond in velocities(B, T, C, steps=3):
        got, state = apg(cond, uncond, state, 7.0, eta=eta, norm_threshold=norm_threshold)
        want, state64 = naive(cond, uncond, state64, 7.0, eta=eta, norm_threshold=norm_threshold)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state.double(), state64, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_matches_diffusers_over_three_steps(dtype):
    state, buffer = None, MomentumBuffer(-0.75)
    for cond, uncond in velocities(2, 50, 64, steps=3).to(dtype):
        got, state = apg(cond, uncond, state, 7.0, state_dtype=dtype)
        want = normalized_guidance(cond, uncond, 6.0, buffer, 0.0, 2.5, True, norm_dim=(1,))
        assert got.dtype == state.dtype == dtype
        torch.testing.assert_close(got, want, **TOLERANCE[dtype])


def test_bf16_velocities_are_rounded_once():
    cond, uncond = velocities(1, 50, 4).bfloat16()[0]
    got, state = apg(cond, uncond, None, 7.0)
    assert state.dtype == torch.float32
    want, _ = apg(cond.float(), uncond.float(), None, 7.0)
    assert torch.equal(got, want.bfloat16())


def test_plane_of_two_dimensions_is_reduced_as_one():
    cond, uncond = velocities(2, 8, 4, 10)[0]  # [B, C, H, T]
    got, _ = apg(cond, uncond, None, 5.0, time_dim=(-2, -1))
    flat = [v.flatten(2).transpose(1, 2) for v in (cond, uncond)]
    torch.testing.assert_close(got.flatten(2).transpose(1, 2), apg(*flat, None, 5.0)[0])


def test_update_is_orthogonal_to_the_conditional_velocity_and_bounded():
    cond, uncond = velocities(2, 300, 5)[0]
    update = (apg(cond, uncond, None, 3.0)[0] - cond) / 2.0
    assert (update.double() * cond.double()).sum(1).abs().max() < 1e-4
    assert update.norm(dim=1).max() <= 2.5 + 1e-4


@pytest.mark.parametrize("zero", ["cond", "difference", "both"])
def test_zero_norms_give_no_nan(zero):
    cond, uncond = velocities(1, 9, 3)[0]
    cond = cond if zero == "difference" else torch.zeros_like(cond)
    uncond = uncond if zero == "cond" else cond
    got, state = apg(cond, uncond, None, 7.0)
    assert got.isfinite().all() and state.isfinite().all()
    if zero != "cond":
        assert torch.equal(got, cond)


@settings(max_examples=25, deadline=None)
@given(B=st.integers(2, 4), T=st.integers(1, 40), seed=st.integers(0, 100))
def test_song_does_not_depend_on_its_neighbours(B, T, seed):
    cond, uncond = velocities(B, T, 3, seed=seed)[0]
    running = velocities(B, T, 3, seed=seed + 1)[0, 0]
    together, state = apg(cond, uncond, running, 7.0)
    alone, state_alone = apg(cond[-1:], uncond[-1:], running[-1:], 7.0)
    torch.testing.assert_close(together[-1:], alone, rtol=1e-6, atol=1e-6)
    assert torch.equal(state[-1:], state_alone)


def test_inputs_are_left_alone():
    cond, uncond = velocities(1, 9, 3)[0]
    running = torch.ones_like(cond)
    copies = cond.clone(), uncond.clone(), running.clone()
    apg(cond, uncond, running, 7.0)
    assert all(torch.equal(a, b) for a, b in zip((cond, uncond, running), copies))


def test_other_shapes_are_refused():
    cond, uncond = velocities(1, 9, 3)[0]
    with pytest.raises(ValueError, match="apg: uncond must be"):
        apg(cond, uncond[:, :8], None, 7.0)
    with pytest.raises(ValueError, match="apg: running must be"):
        apg(cond, uncond, cond[:, :1], 7.0)
