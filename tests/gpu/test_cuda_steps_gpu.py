"""csrc/sampler_step.cu and csrc/apg.cu on a GPU at real sizes: parity, the same bits again and from a graph, times."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.2", reason="triton is not installed")

from acefast.backends import why_unavailable
from acefast.cases import all_cases
from acefast.cuda import loader
from acefast.ops.apg import apg, apg_numbers, apg_step, apg_step_reference, scratch_shape
from acefast.ops.sampler_step import Repaint, clock, counters, sampler_step, sampler_step_reference, step_table
from acefast.sim.kernel_times import time_case

DEVICE = "cuda"
TIMES = [1.0, 0.9, 0.7, 0.25]
SIZES = [(1, 250, 64), (2, 6000, 64), (8, 3008, 64), (2, 2583 * 16, 8)]  # the last is ACE-Step v1's
TYPED = [*((torch.bfloat16, *size) for size in SIZES), (torch.float16, *SIZES[1]), (torch.float32, *SIZES[1])]
TIMED = ("apg/step", "apg/step-batch", "sampler_step/euler", "sampler_step/omega", "sampler_step/sde-drawn")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
    pytest.mark.skipif(bool(why_unavailable("cuda")), reason=f"no CUDA kernels: {why_unavailable('cuda')}"),
]


def given(B, T, D, *, sde="", repaint=False, lengths=False, guided=False, dtype=torch.bfloat16):
    g = torch.Generator(DEVICE).manual_seed(T)

    def tensor():
        return torch.randn(B, T, D, device=DEVICE, generator=g)

    arguments = {"latents": tensor(), "times": step_table(TIMES, device=DEVICE)}
    arguments |= {"step": clock((B, T, D), step=1, device=DEVICE)}
    arguments |= {"model_latents": torch.zeros(B, T, D, dtype=dtype, device=DEVICE)}
    if guided:
        numbers, both = apg_numbers(7.0, eta=0.2).to(DEVICE), torch.cat([tensor(), tensor()]).to(dtype)
        arguments |= {"cond": both[:B], "uncond": both[B:], "running": tensor(), "numbers": numbers}
    else:
        arguments["velocity"] = tensor().to(dtype)
    if sde:
        drawn = {"seeds": torch.arange(B, device=DEVICE) - 1}
        arguments |= drawn if sde == "drawn" else {"noise": tensor()}
    if repaint:
        held = torch.tensor([2], dtype=torch.int32, device=DEVICE)
        mask = torch.rand(B, T, device=DEVICE, generator=g) < 0.5
        arguments["repaint"] = Repaint(mask, tensor(), tensor(), held)
    if lengths:
        arguments["lengths"] = T - 5 * torch.arange(B, device=DEVICE, dtype=torch.int32)
    return arguments


def copied(arguments):
    return {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in arguments.items()}


def relative(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


OPTIONS = [{}, {"sde": "given", "lengths": True}, {"sde": "drawn", "repaint": True, "lengths": True}]
IDS = ["euler", "sde", "all"]


def beside_triton(T, D):
    """Not at every size: each kind of sizes is compiled."""
    return D == 64 and T % 16 == 0


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
@pytest.mark.parametrize("dtype, B, T, D", TYPED)
def test_a_step_has_the_bits_of_tritons_and_of_the_references(B, T, D, options, dtype):
    arguments = given(B, T, D, **options, dtype=dtype)
    ours, theirs, meant = copied(arguments), copied(arguments), copied(arguments)
    got = sampler_step(**ours, backend="cuda")
    assert torch.equal(got, sampler_step_reference(**meant))
    assert not beside_triton(T, D) or torch.equal(got, sampler_step(**theirs, backend="triton"))
    for name in ("step", "model_latents"):
        assert torch.equal(ours[name], meant[name])
        assert not beside_triton(T, D) or torch.equal(ours[name], theirs[name])


@pytest.mark.parametrize("lengths", (False, True))
@pytest.mark.parametrize("B, T, D", SIZES)
def test_omega_in_one_launch_is_the_reference_again_and_again(B, T, D, lengths):
    arguments = given(B, T, D, lengths=lengths)
    counted = counters((B, T, D), device=DEVICE)
    want = sampler_step_reference(**copied(arguments), omega=1.046)
    first = sampler_step(**copied(arguments), omega=1.046, counters=counted, backend="cuda")
    assert relative(first, want) <= 1e-7
    for _ in range(20):
        assert torch.equal(sampler_step(**copied(arguments), omega=1.046, counters=counted, backend="cuda"), first)
    assert not counted.any()


@pytest.mark.parametrize("omega", (None, 1.046))
@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
@pytest.mark.parametrize("B, T, D", SIZES)
def test_a_guided_step_is_as_near_to_fp64_as_tritons_and_the_same_again(B, T, D, options, omega):
    if omega is not None:
        options = {name: value for name, value in options.items() if name != "sde"}
    arguments = given(B, T, D, **options, guided=True)
    wide = {n: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for n, v in arguments.items()}
    if "repaint" in wide:
        mask, source, noise, held = wide["repaint"]
        wide["repaint"] = Repaint(mask, source.double(), noise.double(), held)
    wide["step"] = wide["step"].clone()
    want = apg_step_reference(**wide, omega=omega)
    counted = counters((B, T, D), device=DEVICE)
    ours, theirs = copied(arguments), copied(arguments)
    got = apg_step(**ours, omega=omega, counters=counted, backend="cuda")
    assert relative(got, want) <= 1e-6 and (ours["step"] == 2).all()
    assert relative(ours["running"], wide["running"]) <= 1e-6
    if beside_triton(T, D):
        other = apg_step(**theirs, omega=omega, backend="triton")
        assert relative(got, want) <= max(1.05 * relative(other, want), 2e-7)
        assert torch.equal(ours["running"], theirs["running"])
        assert relative(ours["model_latents"], theirs["model_latents"]) <= 1e-3
    for _ in range(20):
        again = copied(arguments)
        assert torch.equal(apg_step(**again, omega=omega, counters=counted, backend="cuda"), got)
    assert not counted.any()


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
def test_a_velocity_is_as_near_to_the_reference_as_tritons(dtype):
    cond, uncond = torch.randn(2, 3, 6000, 64, device=DEVICE).to(dtype)
    running = torch.randn(3, 6000, 64, device=DEVICE)
    want, after = apg(cond.double(), uncond.double(), running.double(), 7.0, state_dtype=torch.float64)
    got, momentum = apg(cond, uncond, running, 7.0, backend="cuda")
    other, theirs = apg(cond, uncond, running, 7.0, backend="triton")
    assert relative(got, want) <= max(1.05 * relative(other, want), 2e-7)
    assert torch.equal(momentum, theirs) and relative(momentum, after) <= 1e-6


def test_a_replayed_graph_takes_one_step_after_another():
    """Also where one launch has far more blocks than a GPU holds at once."""
    B, T, D = 16, 15000, 64  # 2 x 3776 blocks
    arguments = given(B, T, D, sde="drawn", lengths=True, guided=True)
    x, counted = arguments["latents"], counters((B, T, D), device=DEVICE)
    scratch = torch.empty(scratch_shape((B, T, D)), device=DEVICE)
    arguments |= {"out": x, "scratch": scratch, "counters": counted}
    start = {name: arguments[name].clone() for name in ("latents", "running")}

    def again():
        for name, value in start.items():
            arguments[name].copy_(value)
        arguments["step"].fill_(0)
        arguments["model_latents"].zero_()

    again()
    for _ in TIMES:
        apg_step(**arguments, backend="cuda")
    want = x.clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        apg_step(**arguments, backend="cuda")
    for _ in range(3):
        again()
        for _ in TIMES:
            graph.replay()
        assert torch.equal(x, want) and (arguments["step"] == len(TIMES)).all() and not counted.any()


def test_a_case_is_timed_beside_tritons(capsys):
    sm = loader.current_sm()
    theirs = {case.name: case for case in all_cases()}
    for case in all_cases("cuda"):
        if case.name not in TIMED:
            continue
        with torch.inference_mode():
            times = [time_case(each, torch.device(DEVICE), sm)["measured_us"] for each in (case, theirs[case.name])]
        with capsys.disabled():
            print(f"\n{case.name}: CUDA {times[0]:.1f} us, Triton {times[1]:.1f} us")
        assert min(times) > 0
