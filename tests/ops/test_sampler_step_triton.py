"""Proof of the Triton kernel of acefast.ops.sampler_step: the reference's bits, interpreted and as PTX."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast import sampling, sim
from acefast.backends import BackendUnavailable
from acefast.kernels.sampler_step import sampler_step as kernel
from acefast.ops.sampler_step import clock, omega_memory, sampler_step, step_table
from acefast.sim.driver import dry_run
from acefast.sim.interpreter import interpreted
from tests.ops.simulated import exact, simulated
from tests.ops.steps import SEEDS, TIMESTEPS, arguments, assert_same, results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("B, T, D", [(1, 1, 64), (2, 255, 16), (1, 256, 24), (3, 257, 32)])  # 24: a ragged last part
def test_interpreted_kernel_gives_the_references_bits(B, T, D, dtype):
    given, twin = (arguments(B, T, D, dtype=dtype, lengths=B > 1) for _ in range(2))
    with interpreted():
        got = sampler_step(**given, backend="triton")
    assert_same(results(given, got), results(twin, sampler_step(**twin)))


@pytest.mark.parametrize("sde", ["", "given", "drawn"])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_interpreted_kernel_renoises_and_repaints(sde, step):
    given, twin = (arguments(3, 70, 16, sde=sde, repaint=True, lengths=True, step=step) for _ in range(2))
    with interpreted():
        got = sampler_step(**given, backend="triton")
    assert_same(results(given, got), results(twin, sampler_step(**twin)))


@pytest.mark.parametrize("B, T, D, lengths", [(1, 1, 64, False), (2, 255, 24, True), (1, 4100, 32, False)])
def test_interpreted_kernels_stretch_by_omega(B, T, D, lengths):
    """One tile; two of a song that ends in it, with a ragged part; 34, of which a program adds 16 at a time."""
    given, twin = (arguments(B, T, D, omega=1.046, lengths=lengths) for _ in range(2))
    with interpreted():
        got = sampler_step(**given, backend="triton")
    assert_same(results(given, got), results(twin, sampler_step(**twin)))


def test_interpreted_steps_are_those_of_sample():
    noise, v = torch.randn(2, 20, 16, generator=torch.Generator().manual_seed(0)), torch.full((2, 20, 16), 0.1)
    x, counter, table = noise.clone(), clock(noise.shape), step_table(TIMESTEPS)
    seeds = torch.tensor([5, SEEDS[1] - 2**64])
    with interpreted():
        for _ in TIMESTEPS:
            sampler_step(x, v, table, counter, seeds=seeds, out=x, backend="triton")
    assert torch.equal(x, sampling.sample(lambda *_: v, noise, TIMESTEPS, solver="sde", seeds=SEEDS[:2]))


@pytest.mark.parametrize("options", [{}, dict(sde="drawn", repaint=True, lengths=True)], ids=["euler", "all"])
def test_ptx_gives_the_references_bits(options):
    given, twin = (arguments(**options) for _ in range(2))
    given["out"] = given["latents"]
    simulated(kernel, given, exact, registers=True)
    assert_same(results(given, given["out"]), results(twin, sampler_step(**twin)))


@pytest.mark.parametrize("step", [None, 1], ids=["clock", "number"])
def test_ptx_stretches_by_omega(step):
    given, twin = (arguments(omega=1.046, repaint=True, lengths=True) for _ in range(2))
    if step is not None:
        given, twin = ({**a, "step": step} for a in (given, twin))
    given |= omega_memory(given["latents"], given["omega"], None) | {"out": given["latents"]}
    given["scratch"].fill_(torch.nan)
    simulated(kernel, given, exact, registers=True)
    want = sampler_step(**twin)
    assert torch.equal(given["out"], want) and torch.equal(given["model_latents"], twin["model_latents"])
    assert step is not None or torch.equal(given["step"], twin["step"])


def test_ptx_takes_a_step_that_the_host_knows():
    given, twin = ({**arguments(sde="drawn", repaint=True, lengths=True), "step": 1} for _ in range(2))
    given["out"] = given["latents"]
    simulated(kernel, given, exact, registers=True)
    want = sampler_step(**twin)
    assert torch.equal(given["out"], want) and torch.equal(given["model_latents"], twin["model_latents"])


def test_ptx_without_its_barrier_is_a_race():
    """A program's warps all read its clock entry before one of them writes it."""
    with pytest.raises(sim.Finding, match=r"^race: global memory: write over what several warps read"):
        simulated(
            kernel,
            {**arguments(), "out": torch.empty(2, 300, 64)},
            lambda ptx: re.sub(r"\tbar\.sync[^\n]*\n", "\n", ptx),
        )


@pytest.mark.parametrize("options", [{}, {"noise": True}], ids=["euler", "sde"])
@pytest.mark.parametrize("step", [None, 1], ids=["clock", "number"])
def test_a_real_step_is_one_launch(step, options):
    where = {"device": "meta"}
    x = torch.empty(1, 6144, 64, **where)
    step, options = clock(x.shape, **where) if step is None else step, {name: x for name in options}
    with dry_run(80) as launches:
        sampler_step(x, x, step_table(TIMESTEPS, **where), step, **options, out=x, backend="triton")
    assert [(one.name, one.grid) for one in launches] == [("_sampler_step_kernel", (24, 4, 1))]


def test_a_real_step_with_omega_is_two_launches():
    x = torch.empty(2, 2583 * 16, 8, device="meta")  # 240 s of ACE-Step v1 as its guidance sees them
    with dry_run(80) as launches:
        table, counter = step_table(TIMESTEPS, device="meta"), clock(x.shape, device="meta")
        sampler_step(x, x, table, counter, omega=1.046, out=x, backend="triton")
    assert [(one.name, one.grid) for one in launches] == [
        ("_sums_kernel", (162, 1, 2)),
        ("_sampler_step_kernel", (162, 1, 2)),
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda a: dict(latents=a["latents"].double()),
        lambda a: dict(times=a["times"].double()),
        lambda a: dict(velocity=a["velocity"].mT.contiguous().mT),
        lambda a: dict(lengths=torch.tensor([7]).expand(2)),
        lambda a: dict(seeds=torch.tensor([7]).expand(2)),
    ],
    ids=["fp64", "fp64 times", "channels apart", "one length of all", "one seed of all"],
)
def test_what_the_kernel_does_not_take_is_refused_by_name_and_left_to_the_reference(change):
    given = arguments(2, 9, 4)
    given |= change(given)
    with interpreted():
        sampler_step(**given)
        with pytest.raises(BackendUnavailable, match="no triton kernel for this input"):
            sampler_step(**given, backend="triton")
