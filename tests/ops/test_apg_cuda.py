"""apg's CUDA kernels: what is launched, and their PTX in the simulator against the reference.

tests/csrc/test_apg.py proves how their blocks wait, tests/kernels their costs,
tests/gpu/test_cuda_steps_gpu.py all of it on a GPU.
"""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.backends import BackendUnavailable
from acefast.cuda import toolkit
from acefast.cuda.apg import apg as velocity_kernel
from acefast.cuda.apg import apg_step as kernel
from acefast.ops.apg import apg, apg_numbers, apg_step, scratch_shape
from acefast.ops.sampler_step import counters, omega_memory
from tests.ops.simulated import simulated
from tests.ops.test_apg_triton import TOLERANCE, assert_like_reference, relative, step_arguments, velocities
from tests.ops.test_sampler_step_cuda import recorded

pytestmark = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")


def on_kernel(given):
    """In place, on poisoned scratch memory and counters of zeros."""
    shape = given["latents"].shape
    scratch = torch.full(scratch_shape(shape), torch.nan)
    given |= {"scratch": scratch, "counters": counters(shape), "out": given["latents"]}
    if given.get("omega") is not None:
        more = omega_memory(given["latents"], given["omega"], None)
        sums = more["scratch"].fill_(torch.nan)
        given |= {"omega": more["omega"], "scratch": (scratch, torch.full(shape, torch.nan), sums)}
    return given


def guided(B, T, D, dtype, running, numbers, lengths=None):
    """The velocity and momentum that the kernel writes, and the memory it wrote them to, which was NaN."""
    cond, uncond = velocities(B, T, D, dtype, rows=28)
    out = torch.full_like(cond, torch.nan), torch.full((B, T, D), torch.nan)
    scratch, counted = torch.full(scratch_shape((B, T, D)), torch.nan), counters((B, T, D))
    given = dict(cond=cond, uncond=uncond, running=running, numbers=numbers, lengths=lengths)
    simulated(
        velocity_kernel,
        {**given, "scratch": scratch, "counters": counted, "out": out},
        registers=True,
        races_between_blocks=False,
    )
    assert not counted.any()
    return cond, uncond, out


@pytest.mark.parametrize(
    "B, T, D, dtype", [(1, 1, 64, torch.float32), (3, 257, 20, torch.bfloat16), (1, 255, 8, torch.float16)]
)
@pytest.mark.parametrize("eta, norm_threshold, momentum", [(0.0, 2.5, -0.75), (1.0, 0.0, 0.4)])
def test_ptx_of_a_velocity_matches_the_reference(B, T, D, dtype, eta, norm_threshold, momentum):
    options = dict(eta=eta, norm_threshold=norm_threshold, momentum=momentum)
    lengths = torch.tensor([T, (T + 1) // 2, T - 3]) if B == 3 else None
    state = torch.randn(B, T, D, generator=torch.Generator().manual_seed(1)) if momentum > 0 else None
    cond, uncond, out = guided(B, T, D, dtype, state, apg_numbers(7.0, **options), lengths)
    want, after = apg(cond, uncond, state, 7.0, **options, lengths=lengths)
    for song, end in enumerate([T] * B if lengths is None else lengths.tolist()):
        assert relative(out[0][song, :end], want[song, :end]) < TOLERANCE[dtype]
        torch.testing.assert_close(out[1][song, :end], after[song, :end], rtol=0, atol=0)
        assert out[0][song, end:].isnan().all() and out[1][song, end:].isnan().all()


@pytest.mark.parametrize("zero", ["cond", "difference", "both"])
def test_zero_norms_give_no_nan(zero):
    cond, uncond = velocities(1, 9, 16)
    cond = cond if zero == "difference" else torch.zeros_like(cond)
    uncond = uncond if zero == "cond" else cond
    out, scratch = (torch.empty(1, 9, 16), torch.empty(1, 9, 16)), torch.empty(scratch_shape(cond.shape))
    given = dict(cond=cond.clone(), uncond=uncond.clone(), running=None, numbers=apg_numbers(7.0), scratch=scratch)
    simulated(velocity_kernel, {**given, "counters": counters(cond.shape), "out": out}, races_between_blocks=False)
    assert out[0].isfinite().all() and (zero == "cond" or torch.equal(out[0], cond))


def test_every_partial_sum_of_a_long_song_counts():
    """17 tiles; a block adds their sums in 16 parts."""
    cond, uncond, out = guided(1, 4100, 4, torch.float32, None, apg_numbers(7.0, norm_threshold=40.0))
    assert relative(out[0], apg(cond, uncond, None, 7.0, norm_threshold=40.0)[0]) < 1e-6


@pytest.mark.parametrize("omega", [None, 1.046])
@pytest.mark.parametrize("everything", [False, True])
def test_ptx_of_steps_matches_the_reference_and_leaves_the_counters(everything, omega):
    given, twin = (step_arguments(2, 300, 24, everything=everything, rows=28) for _ in range(2))
    for a in (given, twin):
        a["omega"] = omega
        if omega:
            a["seeds"] = None
    given = on_kernel(given)
    for _ in range(2):
        simulated(kernel, given, registers=True, races_between_blocks=False)
        assert_like_reference(given, twin | {"out": twin["latents"]}, given["out"])
        assert not given["counters"].any()


def test_song_is_the_same_bits_whatever_its_bucket_and_neighbours():
    alone = on_kernel(step_arguments(1, 300, 16, rows=0))
    wide = step_arguments(2, 600, 16, rows=0)
    wide |= {"lengths": torch.tensor([600, 300]), "numbers": alone["numbers"]}
    for name in ("cond", "uncond", "latents", "running"):
        wide[name][1, :300] = alone[name][0]
    for given in (alone, on_kernel(wide)):
        simulated(kernel, given, races_between_blocks=False)
    assert torch.equal(wide["latents"][1, :300], alone["latents"][0])
    assert torch.equal(wide["running"][1, :300], alone["running"][0])


def test_ops_run_on_it_in_one_launch_each():
    given = step_arguments(1, 600, 64)
    for omega, stages in ((None, 2), (1.046, 3)):
        (one,) = recorded(apg_step, **given, omega=omega)
        assert one[:5] == ("apg", "apg_step_bf16", (stages * 12, 1, 1), 256, 6280)
    (one,) = recorded(apg, given["cond"], given["uncond"], None, 7.0)
    assert one[:5] == ("apg", "apg_bf16", (24, 1, 1), 256, 6280)


def test_blocks_hand_over_in_the_order_of_the_memory_model():
    ptx, _ = toolkit.compiled("apg", "apg_step_bf16", 80)
    text = ptx if isinstance(ptx, str) else ptx.decode()
    assert re.search(r"atom\.release\.gpu\.global\.inc", text) and "ld.acquire.gpu" in text
    assert "atom.global" not in text and "ld.global.nc" not in text


@pytest.mark.parametrize("channels, dtype", [(6, torch.float32), (8, torch.bfloat16)], ids=["6 channels", "two dtypes"])
def test_what_the_kernel_does_not_take_is_refused_by_name(channels, dtype):
    cond, uncond = velocities(1, 9, channels)
    with pytest.raises(BackendUnavailable, match="no cuda kernel for this input"):
        recorded(apg, cond, uncond.to(dtype), None, 7.0)
