"""sampler_step's CUDA kernel: what is launched, and its PTX in the simulator, which gives the reference's bits.

How its blocks wait is csrc/common/turns.cuh and mean.cuh, which tests/csrc/test_apg.py proves in apg's kernel.
tests/kernels has its costs, tests/gpu/test_cuda_steps_gpu.py all of it on a GPU.
"""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast import sim
from acefast.backends import BackendUnavailable, emulated
from acefast.cuda import loader, toolkit
from acefast.cuda.sampler_step import sampler_step as kernel
from acefast.ops.sampler_step import clock, counters, omega_memory, sampler_step, step_table
from tests.ops.simulated import exact, simulated
from tests.ops.steps import TIMESTEPS, arguments, assert_same, results

pytestmark = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")


def recorded(launch, *arguments, sm=80, **options):
    launches = []
    with emulated(sm), loader.recorded(lambda *one: launches.append(one)):
        launch(*arguments, **options, backend="cuda")
    return launches


def with_omega(given):
    """In place, and with the memory that omega needs, which is poisoned but for the counters."""
    given |= omega_memory(given["latents"], given["omega"], None)
    given["scratch"].fill_(torch.nan)
    return given | {"out": given["latents"], "counters": counters(given["latents"].shape)}


@pytest.mark.parametrize(
    "B, T, D, dtype, options",
    [
        (1, 1, 64, torch.bfloat16, {}),
        (2, 255, 16, torch.float16, {}),
        (1, 256, 24, torch.float32, dict(sde="given")),  # 24: a ragged last part
        (3, 257, 20, torch.bfloat16, dict(sde="drawn", repaint=True, lengths=True)),
        (2, 40, 8, torch.bfloat16, dict(sde="drawn", repaint=True, lengths=True, step=3)),  # the last, without noise
        (2, 30, 4, torch.float32, dict(repaint=True, step=2)),  # which nothing is held in any more
    ],
)
def test_ptx_gives_the_references_bits(B, T, D, dtype, options):
    given, twin = (arguments(B, T, D, dtype=dtype, **options) for _ in range(2))
    if dtype != torch.bfloat16:
        for a in (given, twin):
            a["model_latents"] = a["model_latents"].to(dtype)
    given["out"] = given["latents"]
    simulated(kernel, given, exact, registers=True)
    assert_same(results(given, given["out"]), results(twin, sampler_step(**twin)))


@pytest.mark.parametrize("number", [False, True], ids=["clock", "number"])
def test_ptx_stretches_by_omega_and_leaves_its_counters_as_they_were(number):
    given, twin = (arguments(2, 260, 24, omega=1.046, repaint=True, lengths=True) for _ in range(2))
    if number:
        given, twin = ({**a, "step": 1} for a in (given, twin))
    given = with_omega(given)
    for step in (1, 2):  # the second launch finds what the first one left
        if number:
            given["step"] = twin["step"] = step
        simulated(kernel, given, exact, registers=True, races_between_blocks=False)
        twin["latents"] = sampler_step(**twin)
        assert torch.equal(given["out"], twin["latents"]) and not given["counters"].any()
        assert torch.equal(given["model_latents"], twin["model_latents"])
        assert number or torch.equal(given["step"], twin["step"])


def test_a_song_has_the_same_bits_whatever_its_bucket_and_neighbours():
    alone = with_omega(arguments(1, 270, 16, omega=1.046, dtype=torch.float32))
    wide = with_omega(arguments(2, 530, 16, omega=1.046, dtype=torch.float32) | {"lengths": torch.tensor([530, 270])})
    for name in ("latents", "velocity"):
        wide[name][1, :270] = alone[name][0]
    for given in (alone, wide):
        given["model_latents"] = None
        simulated(kernel, given, races_between_blocks=False)
    assert torch.equal(wide["out"][1, :270], alone["out"][0])


def test_an_op_runs_on_it():
    for omega in (None, 1.046):
        given = arguments(2, 300, 64, omega=omega)
        (one,) = recorded(sampler_step, **given)
        source, entry, grid, threads, shared = one[:5]
        assert (source, entry, threads, shared) == ("sampler_step", "sampler_step_bf16", 256, 72)
        assert grid == (16 if omega is None else 32, 1, 1)


def test_ptx_without_its_barriers_is_a_race():
    """A block's warps all read its clock entry before one of them writes it."""
    with pytest.raises(sim.Finding, match=r"^race: global memory: write over what several warps read"):
        simulated(
            kernel,
            {**arguments(), "out": torch.empty(2, 300, 64)},
            lambda ptx: re.sub(r"\tbar\.sync[^\n]*\n", "\n", ptx),
        )


def test_blocks_hand_over_in_the_order_of_the_memory_model():
    ptx, _ = toolkit.compiled("sampler_step", "sampler_step_bf16", 80)
    text = ptx if isinstance(ptx, str) else ptx.decode()
    assert len(re.findall(r"atom\.release\.gpu\.global\.inc", text)) == 3 and "ld.acquire.gpu" in text
    assert "ld.global.nc" not in text  # whose cache does not see what another block writes


@pytest.mark.parametrize(
    "change",
    [
        lambda a: dict(model_latents=a["model_latents"].float()),
        lambda a: dict(lengths=torch.tensor([7, 9], dtype=torch.int16)),
        lambda a: dict(latents=torch.zeros(2, 9, 5)[..., :4]),
        lambda a: dict(latents=torch.zeros(2 * 9 * 4 + 1)[1:].view(2, 9, 4)),
        lambda a: dict(latents=torch.zeros(2, 9, 4, dtype=torch.float64)),
        lambda a: dict(velocity=torch.zeros(2, 9, 4, dtype=torch.float64)),
    ],
    ids=["two dtypes", "short lengths", "odd rows", "odd address", "fp64", "fp64 velocity"],
)
def test_what_the_kernel_does_not_take_is_refused_by_name(change):
    given = arguments(2, 9, 4, rows=4)
    given |= change(given)
    with pytest.raises(BackendUnavailable, match="no cuda kernel for this input"):
        recorded(sampler_step, **given)


def test_memory_of_other_shapes_is_refused():
    given = arguments(2, 9, 4, omega=1.0)
    with pytest.raises(ValueError, match=r"sampler_step: counters must be \[1 \+ B\] = \[3\], got \[2\]"):
        recorded(sampler_step, **given, counters=torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match="sampler_step: counters must be"):
        recorded(sampler_step, **given, counters=torch.zeros(3))


def test_a_real_step_with_omega_is_one_launch():
    x = torch.empty(2, 2583 * 16, 8, device="meta")  # 240 s of ACE-Step v1 as its guidance sees them
    table, counter = step_table(TIMESTEPS, device="meta"), clock(x.shape, device="meta")
    (one,) = recorded(sampler_step, x, x, table, counter, omega=1.046, out=x)
    assert one[2] == (2 * 2 * 162, 1, 1)
