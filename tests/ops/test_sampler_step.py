"""Proof of acefast.ops.sampler_step: its meaning; the Triton kernel is in test_sampler_step_triton.py."""

from __future__ import annotations

import itertools

import pytest
import torch

from acefast.ops.philox import philox_normal
from acefast.ops.sampler_step import Repaint, clock, sampler_step, step_table
from tests.ops.steps import OUTPUTS, SEEDS, TIMESTEPS, arguments


def test_table_holds_each_step_rounded_once():
    table = step_table(TIMESTEPS, state_dtype=torch.float64)
    want = [(1.0, 1.0 - 0.9, 0.9, 1.0 - 0.9), (0.9, 0.9 - 0.7, 0.7, 1.0 - 0.7), (0.7, 0.7 - 0.25, 0.25, 0.75)]
    assert table.tolist() == [list(row) for row in [*want, (0.25, 0.25, 0.0, 1.0)]]
    assert torch.equal(step_table(TIMESTEPS), table.float())
    rounded = step_table([0.7, 0.1], state_dtype=torch.bfloat16)
    t, t_next = torch.tensor([0.7, 0.1]).bfloat16()
    assert torch.equal(rounded[0], torch.stack([t, t - t_next, t_next, 1 - t_next]).float())


@pytest.mark.parametrize("sde", ["", "given", "drawn"])
@pytest.mark.parametrize("step", [1, 2, 3])  # held by the repaint; no longer; the last one, without noise
def test_step_is_the_formula(sde, step):
    given = arguments(3, 7, 5, sde=sde, repaint=True, lengths=True, step=step)
    t, t_next = [*TIMESTEPS, 0.0][step : step + 2]
    x, v, copy = given["latents"].double(), given["velocity"].double(), given["model_latents"].clone()
    drawn = philox_normal(SEEDS, (7, 5), stream=1 + step)
    eps = {"": None, "given": given["noise"], "drawn": drawn}[sde]
    eps = None if step == 3 else eps
    want = x - v * (t - t_next) if eps is None else t_next * eps.double() + (1 - t_next) * (x - v * t)
    mask, source, noise, _ = given["repaint"]
    if step < 2:
        want = want.where(mask[..., None], t_next * noise.double() + (1 - t_next) * source.double())
    got = sampler_step(**given)
    for b, n in enumerate(given["lengths"]):
        torch.testing.assert_close(got[b, :n].double(), want[b, :n], rtol=1e-6, atol=1e-6)
        assert torch.equal(got[b, n:], given["latents"][b, n:])
        assert torch.equal(given["model_latents"][b, :n], got[b, :n].bfloat16())
        assert torch.equal(given["model_latents"][b, n:], copy[b, n:])
    assert (given["step"] == step + 1).all()


@pytest.mark.parametrize("lengths", (False, True), ids=("whole", "lengths"))
def test_omega_stretches_what_departs_from_a_songs_mean(lengths):
    given = arguments(3, 7, 5, omega=1.05, lengths=lengths, repaint=True, step=1)
    x, dt = given["latents"].double(), TIMESTEPS[1] - TIMESTEPS[2]
    mask, source, noise, _ = given["repaint"]
    held = TIMESTEPS[2] * noise.double() + (1 - TIMESTEPS[2]) * source.double()
    got = sampler_step(**given)
    for b, n in enumerate(given["lengths"] if lengths else [7] * 3):
        change = given["velocity"][b, :n].double() * dt
        want = x[b, :n] - ((change - change.mean()) * 1.05 + change.mean())
        torch.testing.assert_close(
            got[b, :n].double(), want.where(mask[b, :n, None], held[b, :n]), rtol=1e-6, atol=1e-6
        )
        assert torch.equal(got[b, n:], given["latents"][b, n:])


def test_omega_of_one_is_eulers_step_and_may_lie_in_a_tensor():
    given = arguments(2, 9, 4) | {"step": 1}
    torch.testing.assert_close(sampler_step(**given | {"omega": 1.0}), sampler_step(**given), rtol=1e-6, atol=1e-6)
    assert torch.equal(sampler_step(**given | {"omega": torch.tensor([1.03])}), sampler_step(**given | {"omega": 1.03}))


def test_omega_over_a_batch_given_as_one_song_couples_its_songs():
    """ACE-Step v1's own scheduler takes the mean over the whole batch; here each song has its own."""
    g = torch.Generator().manual_seed(0)
    x, v = (
        torch.randn(2, 9, 4, generator=g),
        torch.randn(2, 9, 4, generator=g) + torch.tensor([0.0, 3.0])[:, None, None],
    )
    sigma, sigma_next = torch.tensor(0.9), torch.tensor(0.7)
    dx = (sigma_next - sigma) * v
    upstream = x + ((dx - dx.mean()) * 1.046 + dx.mean())
    table = step_table([0.9, 0.7])
    together = sampler_step(*(t.view(1, 18, 4) for t in (x, v)), table, 0, omega=1.046).view(2, 9, 4)
    torch.testing.assert_close(together, upstream, rtol=1e-6, atol=1e-6)
    alone = sampler_step(x, v, table, 0, omega=1.046)
    assert (alone - upstream).abs().max() > 1e-3
    torch.testing.assert_close(alone[:1], sampler_step(x[:1], v[:1], table, 0, omega=1.046), rtol=0, atol=0)


def test_sde_step_is_upstreams_pingpong():
    """FlowMatchPingPongScheduler of ACE-Step v1, whose last step multiplies its noise by zero."""
    x, v, eps = torch.randn(3, 2, 9, 4, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([1.0, 0.90035909, 0.75112110, 0.00892857, 0.0])
    table = step_table(sigmas[:-1].tolist())
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        denoised = x - sigma * v
        want = (1 - sigma_next) * denoised + sigma_next * eps
        torch.testing.assert_close(sampler_step(x, v, table, i, noise=eps), want, rtol=1e-6, atol=1e-6)


def test_step_known_to_the_host_is_the_same_and_counts_nothing():
    given = arguments(2, 9, 4, sde="drawn", repaint=True)
    number = {**given, "step": 1, "model_latents": None}
    assert torch.equal(sampler_step(**number), sampler_step(**given))


def test_out_may_be_the_latents_and_inputs_are_left_alone_otherwise():
    given = arguments(2, 9, 4)
    copies = {n: v.clone() for n, v in given.items() if isinstance(v, torch.Tensor) and n not in OUTPUTS}
    want = sampler_step(**{**given, "step": 1})
    assert all(torch.equal(given[n].nan_to_num(), v.nan_to_num()) for n, v in copies.items())
    assert sampler_step(**{**given, "step": 1}, out=given["latents"]) is given["latents"]
    assert torch.equal(given["latents"], want)


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(velocity=torch.zeros(2, 8, 4)), r"velocity must be latents' shape = \[2, 9, 4\], got \[2, 8, 4\]"),
        (dict(times=torch.zeros(4, 3)), r"times must be \[steps, 4\]"),
        (dict(step=clock((2, 300, 4))), r"step must be clock\(latents.shape\) = \[3\], got \[5\]"),
        (dict(step=4), "step must be 0 to 3, got 4"),
        (dict(model_latents=torch.zeros(2, 8, 4)), "model_latents must be"),
        (dict(noise=torch.zeros(2, 9, 4), seeds=torch.zeros(2)), "exclude each other"),
        (dict(omega=1.0, seeds=torch.zeros(2)), "omega stretches Euler's step, got it with the SDE's seeds"),
        (dict(omega=torch.ones(2)), r"omega must be \[1\] = \[1\], got \[2\]"),
        (dict(omega=torch.ones(1).double()), "omega must be torch.float32"),
        (dict(seeds=torch.zeros(3)), r"seeds must be \[B\] = \[2\]"),
        (dict(lengths=torch.zeros(3)), r"lengths must be \[B\] = \[2\]"),
        (dict(out=torch.zeros(2, 9, 5)), "out must be latents' shape"),
        (dict(repaint=Repaint(torch.zeros(9), *torch.zeros(2, 2, 9, 4), torch.zeros(1))), r"repaint.mask must be"),
    ],
)
def test_other_shapes_are_refused(change, why):
    with pytest.raises(ValueError, match=f"sampler_step: .*{why}"):
        sampler_step(**{**arguments(2, 9, 4), **change})
