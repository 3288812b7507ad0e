"""Proof of the Triton kernels of acefast.ops.apg: the guided velocity, and the guided step of the sampler."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.backends import BackendUnavailable
from acefast.guidance import Guidance
from acefast.kernels.apg import apg_step as kernel
from acefast.ops.apg import apg, apg_numbers, apg_step, scratch_shape
from acefast.ops.sampler_step import Repaint, clock, sampler_step, step_table
from acefast.sim.driver import dry_run
from acefast.sim.interpreter import interpreted
from tests.ops.simulated import simulated

TOLERANCE = {  # relative L2 of a velocity rounded once
    torch.float32: 1e-6,
    torch.float16: 5e-4,
    torch.bfloat16: 4e-3,
}


def velocities(B: int, T: int, D: int, dtype: torch.dtype = torch.float32, rows: int = 0) -> list[torch.Tensor]:
    """Conditional and unconditional halves of one buffer with ``rows`` more rows a song, which are NaN."""
    both = torch.full((2 * B, T + rows, D), torch.nan, dtype=dtype)
    both[:, :T] = torch.randn(2 * B, T, D, generator=torch.Generator().manual_seed(T))
    return [half[:, :T] for half in both.split(B)]


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("B, T, D", [(1, 1, 64), (2, 255, 16), (1, 256, 24), (3, 257, 32)])  # 24: a ragged last part
def test_interpreted_velocity_matches_the_reference_over_two_steps(B, T, D, dtype):
    lengths = torch.tensor([T, (T + 1) // 2, T - 3]) if B == 3 else None
    cond, uncond = velocities(B, T, D, dtype, rows=30)
    if lengths is not None:
        cond[1, lengths[1] :] = uncond[2, lengths[2] :] = torch.nan
    state = twin = None
    for scale in (7.0, 3.0):
        with interpreted():
            got, state = apg(cond, uncond, state, scale, lengths=lengths, backend="triton")
        want, twin = apg(cond, uncond, twin, scale, lengths=lengths)
        assert got.dtype == dtype and relative(got, want) < TOLERANCE[dtype]
        torch.testing.assert_close(state, twin, rtol=0, atol=0)


@pytest.mark.parametrize("eta, norm_threshold, momentum", [(0.3, 0.5, 0.4), (1.0, 0.0, 0.0)])
def test_interpreted_velocity_takes_every_option(eta, norm_threshold, momentum):
    options = dict(eta=eta, norm_threshold=norm_threshold, momentum=momentum)
    cond, uncond = velocities(2, 40, 16)
    running = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(1))
    with interpreted():
        got, state = apg(cond, uncond, running, 7.0, **options, backend="triton")
    want, twin = apg(cond, uncond, running, 7.0, **options)
    assert relative(got, want) < 1e-6 and torch.equal(state, twin)


def test_every_partial_sum_of_a_long_song_counts():
    """17 tiles; a program adds their sums 16 at a time."""
    cond, uncond = velocities(1, 4100, 4)
    with interpreted():
        got, _ = apg(cond, uncond, None, 7.0, norm_threshold=40.0, backend="triton")
    assert relative(got, apg(cond, uncond, None, 7.0, norm_threshold=40.0)[0]) < 1e-6


@pytest.mark.parametrize("zero", ["cond", "difference", "both"])
def test_zero_norms_give_no_nan(zero):
    cond, uncond = velocities(1, 9, 16)
    cond = cond if zero == "difference" else torch.zeros_like(cond)
    uncond = uncond if zero == "cond" else cond
    with interpreted():
        got, _ = apg(cond, uncond, None, 7.0, backend="triton")
    assert got.isfinite().all() and (zero == "cond" or torch.equal(got, cond))


def test_guidance_runs_on_the_kernel():
    cond, uncond = velocities(1, 20, 16)
    x = torch.zeros_like(cond)
    with interpreted():
        got, _ = Guidance(7.0).combine(cond, uncond, x, 0.9, backend="triton")
    torch.testing.assert_close(got, Guidance(7.0).combine(cond, uncond, x, 0.9)[0], rtol=1e-5, atol=1e-6)


# The step


def step_arguments(B: int, T: int, D: int, *, dtype=torch.bfloat16, rows: int = 30, everything: bool = False) -> dict:
    g = torch.Generator().manual_seed(T)
    cond, uncond = velocities(B, T, D, dtype, rows)
    tensors = [torch.randn(B, T, D, generator=g) for _ in range(4)]
    held = torch.tensor([2], dtype=torch.int32)
    given = {
        "latents": tensors[0],
        "cond": cond,
        "uncond": uncond,
        "running": tensors[1],
        "numbers": apg_numbers(7.0, eta=0.3 if everything else 0.0),
        "times": step_table([1.0, 0.9, 0.7, 0.25]),
        "step": clock((B, T, D), step=1),
        "model_latents": torch.zeros(B, T + rows, D, dtype=torch.bfloat16),
    }
    if everything:
        given["seeds"] = torch.arange(B) - 1
        given["repaint"] = Repaint(torch.rand(B, T, generator=g) < 0.5, *tensors[2:], held)
        given["lengths"] = torch.tensor([T, (T + 1) // 2, T - 3][:B])
    return given


def assert_like_reference(given: dict, twin: dict, got: torch.Tensor) -> None:
    want = apg_step(**twin)
    assert relative(got, want) < 1e-6
    assert relative(given["model_latents"], want.new_zeros(given["model_latents"].shape) + twin["model_latents"]) < 4e-3
    assert torch.equal(given["running"], twin["running"]) and torch.equal(given["step"], twin["step"])


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("B, T, D, dtype", [(1, 1, 64, torch.float32), (3, 257, 16, torch.bfloat16)])
def test_interpreted_step_matches_the_reference(B, T, D, dtype, everything):
    given, twin = (step_arguments(B, T, D, dtype=dtype, everything=everything) for _ in range(2))
    with interpreted():
        got = apg_step(**given, backend="triton")
    assert_like_reference(given, twin, got)


@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
def test_a_step_of_ace_step_v1_over_frequency_and_frames(lengths):
    """Norms over (16, T) of 8 channels, then Euler's step stretched by omega; frames of a padded buffer."""
    given, twin = (step_arguments(2, 20 * 16, 8, dtype=torch.float32, rows=5 * 16) for _ in range(2))
    for arguments in (given, twin):
        arguments["omega"] = 1.046
        if lengths:
            arguments["lengths"] = torch.tensor([20 * 16, 13 * 16])
    with interpreted():
        got = apg_step(**given, backend="triton")
    assert_like_reference(given, twin, got)
    plane = step_arguments(2, 20 * 16, 8, dtype=torch.float32)
    velocity, _ = apg(
        *(plane[name].unflatten(1, (20, 16)).permute(0, 3, 2, 1) for name in ("cond", "uncond", "running")),
        7.0,
        time_dim=(2, 3),
    )  # [B, 8, 16, T], as upstream has it
    dx = velocity[0] * (0.7 - 0.9)
    want = plane["latents"][0] + ((dx - dx.mean()) * 1.046 + dx.mean()).permute(2, 1, 0).flatten(0, 1)
    assert lengths or relative(got[0], want) < 1e-6


def test_a_guided_step_with_omega_is_four_launches():
    x, clocked = torch.empty(1, 322 * 16, 8, device="meta"), clock((1, 322 * 16, 8), device="meta")
    numbers, times = torch.empty(4, device="meta"), step_table([1.0, 0.5], device="meta")
    with dry_run(80) as launches:
        apg_step(x, x, x, x, numbers, times, clocked, omega=torch.empty(1, device="meta"), out=x, backend="triton")
    names = [one.name for one in launches]
    assert names == ["_partials_kernel", "_velocity_kernel", "_sums_kernel", "_sampler_step_kernel"]


def test_reference_step_is_guidance_and_then_a_step():
    given, twin = (step_arguments(2, 40, 16, dtype=torch.float32, everything=True) for _ in range(2))
    scale, *numbers = twin.pop("numbers").tolist()
    given_apg = [twin.pop(name) for name in ("cond", "uncond", "running")]
    options = dict(zip(("momentum", "norm_threshold", "eta"), numbers))
    guided, running = apg(*given_apg, scale, **options, lengths=twin["lengths"])
    want = sampler_step(velocity=guided, **twin)
    assert torch.equal(apg_step(**given), want) and torch.equal(given["running"], running)


@pytest.mark.parametrize("everything", [False, True])
def test_ptx_of_a_step_matches_the_reference(everything):
    given, twin = (step_arguments(2, 300, 64, everything=everything) for _ in range(2))
    given |= {"scratch": torch.full(scratch_shape((2, 300, 64)), torch.nan), "out": given["latents"]}
    simulated(kernel, given, registers=True, approx="random")
    assert_like_reference(given, twin, given["out"])


def test_song_is_the_same_bits_whatever_its_bucket_and_neighbours():
    """Alone in a buffer of its length, and second of two in one of three tiles."""
    alone = step_arguments(1, 300, 16, rows=0)
    cond, uncond = (torch.full((2, 600, 16), 3.0, dtype=torch.bfloat16) for _ in range(2))
    x, running = torch.ones(2, 600, 16), torch.ones(2, 600, 16)
    for wide, name in ((cond, "cond"), (uncond, "uncond"), (x, "latents"), (running, "running")):
        wide[1, :300] = alone[name][0]
    table, counter, lengths = alone["times"], clock(x.shape, step=1), torch.tensor([600, 300])
    with interpreted():
        want = apg_step(**alone, backend="triton")
        apg_step(x, cond, uncond, running, alone["numbers"], table, counter, lengths=lengths, out=x, backend="triton")
    assert torch.equal(x[1:, :300], want) and torch.equal(running[1:, :300], alone["running"])


@pytest.mark.parametrize("number", [False, True], ids=["clock", "number"])
def test_a_real_guided_step_is_two_launches(number):
    x = torch.empty(1, 6144, 64, device="meta")
    cond, uncond = torch.empty(2, 1, 6144, 64, dtype=torch.bfloat16, device="meta")
    table, counter = step_table([1.0, 0.5], device="meta"), clock(x.shape, device="meta")
    numbers, scratch = torch.empty(4, device="meta"), torch.empty(scratch_shape(x.shape), device="meta")
    with dry_run(80) as launches:
        step = 1 if number else counter
        apg_step(x, cond, uncond, x, numbers, table, step, scratch=scratch, out=x, backend="triton")
    assert [one.grid for one in launches] == [(24, 4, 1)] * 2


@pytest.mark.parametrize(
    "change",
    [dict(time_dim=2), dict(state_dtype=torch.bfloat16), dict(lengths=torch.tensor([7]).expand(2))],
    ids=["time_dim", "state_dtype", "one length of all"],
)
def test_what_the_kernel_does_not_take_is_refused_by_name_and_left_to_the_reference(change):
    cond, uncond = velocities(2, 9, 16)
    with interpreted():
        apg(cond, uncond, None, 7.0, **change)
        with pytest.raises(BackendUnavailable, match="no triton kernel for this input"):
            apg(cond, uncond, None, 7.0, **change, backend="triton")


@pytest.mark.parametrize("name", ["cond", "running", "scratch"])
def test_other_shapes_are_refused(name):
    given = step_arguments(1, 9, 16) | {name: torch.zeros(1, 8, 16)}
    with interpreted(), pytest.raises(ValueError, match=f"apg: {name} must be"):
        apg_step(**given, backend="triton")
