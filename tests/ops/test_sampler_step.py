"""Proof of acefast.ops.sampler_step: its meaning, and the Triton kernel, interpreted and as PTX, bit for bit."""

from __future__ import annotations

import re

import pytest
import torch

from acefast import sampling, sim
from acefast.backends import BackendUnavailable
from acefast.ops.philox import philox_normal
from acefast.ops.sampler_step import Repaint, clock, sampler_step, step_table
from acefast.sim.driver import dry_run
from acefast.sim.interpreter import interpreted
from tests.ops.simulated import exact, simulated

TIMESTEPS = [1.0, 0.9, 0.7, 0.25]
SEEDS = [5, 2**63 + 9, 2**64 - 1]


def arguments(
    B: int = 2,
    T: int = 300,
    D: int = 64,
    *,
    dtype: torch.dtype = torch.bfloat16,
    sde: str = "",
    repaint: bool = False,
    lengths: bool = False,
    step: int = 1,
    rows: int = 40,
) -> dict:
    """A step on views of buffers with ``rows`` more rows a song, NaN in those, and in what a short song leaves over."""
    g = torch.Generator().manual_seed(T)

    def tensor(dtype: torch.dtype = torch.float32, extra: int = 0) -> torch.Tensor:
        x = torch.full((B, T + extra, D), torch.nan, dtype=dtype)
        return x[:, :T].copy_(torch.randn(B, T, D, generator=g))

    valid = torch.tensor([T, (T + 1) // 2, max(1, T - 3)][:B])
    velocity = tensor(dtype, rows)
    if lengths:
        for song, length in zip(velocity, valid):
            song[length:] = torch.nan
    held = torch.tensor([2], dtype=torch.int32)
    return {
        "latents": tensor(extra=rows),
        "velocity": velocity,
        "times": step_table(TIMESTEPS),
        "step": clock((B, T, D), step=step),
        "model_latents": torch.zeros(B, T + rows, D, dtype=torch.bfloat16),
        "noise": tensor() if sde == "given" else None,
        "seeds": torch.tensor([s - (s >> 63 << 64) for s in SEEDS[:B]]) if sde == "drawn" else None,
        "repaint": Repaint(torch.rand(B, T, generator=g) < 0.5, tensor(), tensor(), held) if repaint else None,
        "lengths": valid if lengths else None,
    }


OUTPUTS = ("out", "model_latents", "step")


def results(given: dict, out: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return out, given["model_latents"], given["step"]


def assert_same(got, want) -> None:
    for name, a, b in zip(OUTPUTS, got, want):
        assert torch.equal(a, b), f"{name}: {(a != b).sum()} of {a.numel()} differ"


# Meaning


def test_table_holds_each_step_rounded_once():
    table = step_table(TIMESTEPS, state_dtype=torch.float64)
    want = [(1.0, 1.0 - 0.9, 0.9, 1.0 - 0.9), (0.9, 0.9 - 0.7, 0.7, 1.0 - 0.7), (0.7, 0.7 - 0.25, 0.25, 0.75)]
    assert table.tolist() == [list(row) for row in [*want, (0.25, 0.25, 0.0, 1.0)]]
    assert torch.equal(step_table(TIMESTEPS), table.float())
    rounded = step_table([0.7, 0.1], state_dtype=torch.bfloat16)
    t, t_next = torch.tensor([0.7, 0.1]).bfloat16()
    assert rounded.dtype == torch.float32 and rounded[0].tolist() == [t, t - t_next, t_next, 1 - t_next]


@pytest.mark.parametrize("sde", ["", "given", "drawn"])
@pytest.mark.parametrize("step", [1, 2, 3])  # held by the repaint; no longer; the last one, without noise
def test_step_is_the_formula(sde, step):
    given = arguments(3, 7, 5, sde=sde, repaint=True, lengths=True, step=step)
    t, t_next = [*TIMESTEPS, 0.0][step : step + 2]
    x, v, copy = given["latents"].double(), given["velocity"].double(), given["model_latents"].clone()
    drawn = philox_normal(SEEDS, (7, 5), stream=1 + step)
    eps = {"": None, "given": given["noise"], "drawn": drawn}[sde]
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
        (dict(seeds=torch.zeros(3)), r"seeds must be \[B\] = \[2\]"),
        (dict(lengths=torch.zeros(3)), r"lengths must be \[B\] = \[2\]"),
        (dict(out=torch.zeros(2, 9, 5)), "out must be latents' shape"),
        (dict(repaint=Repaint(torch.zeros(9), *torch.zeros(2, 2, 9, 4), torch.zeros(1))), r"repaint.mask must be"),
    ],
)
def test_other_shapes_are_refused(change, why):
    with pytest.raises(ValueError, match=f"sampler_step: .*{why}"):
        sampler_step(**{**arguments(2, 9, 4), **change})


# The Triton kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("B, T, D", [(1, 1, 64), (2, 255, 16), (1, 256, 24), (3, 257, 64)])  # 24: a ragged last part
def test_interpreted_kernel_gives_the_references_bits(B, T, D, dtype):
    given, twin = (arguments(B, T, D, dtype=dtype, lengths=B > 1) for _ in range(2))
    with interpreted():
        got = sampler_step(**given, backend="triton")
    assert_same(results(given, got), results(twin, sampler_step(**twin)))


@pytest.mark.parametrize("sde", ["", "given", "drawn"])
@pytest.mark.parametrize("step", [1, 3])
def test_interpreted_kernel_renoises_and_repaints(sde, step):
    given, twin = (arguments(3, 70, 16, sde=sde, repaint=True, lengths=True, step=step) for _ in range(2))
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
    from acefast.kernels.sampler_step import sampler_step as kernel

    given, twin = (arguments(**options) for _ in range(2))
    given["out"] = given["latents"]
    simulated(kernel, given, exact, registers=True)
    assert_same(results(given, given["out"]), results(twin, sampler_step(**twin)))


def test_ptx_without_its_barrier_is_a_race():
    """A program's warps all read its clock entry before one of them writes it."""
    from acefast.kernels.sampler_step import sampler_step as kernel

    with pytest.raises(sim.Finding, match=r"^race: global memory: write over what several warps read"):
        simulated(
            kernel,
            {**arguments(), "out": torch.empty(2, 300, 64)},
            lambda ptx: re.sub(r"\tbar\.sync[^\n]*\n", "\n", ptx),
        )


def test_a_real_step_is_one_launch():
    where = {"device": "meta"}
    x = torch.empty(1, 6144, 64, **where)
    with dry_run(80) as launches:
        sampler_step(x, x, step_table(TIMESTEPS, **where), clock(x.shape, **where), out=x, backend="triton")
    assert [(one.name, one.grid) for one in launches] == [("_sampler_step_kernel", (24, 4, 1))]


@pytest.mark.parametrize(
    "change",
    [
        lambda a: dict(latents=a["latents"].double()),
        lambda a: dict(times=a["times"].double()),
        lambda a: dict(velocity=a["velocity"].mT.contiguous().mT),
    ],
    ids=["fp64", "fp64 times", "channels apart"],
)
def test_what_the_kernel_does_not_take_is_refused_by_name_and_left_to_the_reference(change):
    given = arguments(2, 9, 4)
    given |= change(given)
    with interpreted():
        sampler_step(**given)
        with pytest.raises(BackendUnavailable, match="no triton kernel for this input"):
            sampler_step(**given, backend="triton")
