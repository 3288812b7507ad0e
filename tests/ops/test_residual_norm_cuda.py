"""residual_norm's CUDA kernel: what is launched, and its PTX in the simulator against the equation in fp64.

tests/csrc/test_residual_norm.py proves its synchronisation, tests/kernels its costs, tests/gpu/test_cuda_rows_gpu.py
all of it on a GPU.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast import sim
from acefast.backends import BackendUnavailable
from acefast.cuda import toolkit
from acefast.cuda.residual_norm import NAMES, WIDTHS
from acefast.cuda.residual_norm import residual_norm as kernel
from acefast.ops.residual_norm import residual_norm
from acefast.sim.driver import dry_run
from acefast.sim.resources import read_cubin
from tests.ops.simulated import simulated
from tests.ops.test_residual_norm import GATE, GIVEN, expected, inputs, relative

pytestmark = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def run(x, weight, *rest, dtype=BF16, change=str, apart=0, **options):
    """x' and h, each NaN before, with ``apart`` rows of it behind a song."""
    B, S, H = x.shape
    whole = [torch.full((B, S + apart, H), torch.nan, dtype=of) for of in (x.dtype, dtype)]
    arguments = {**dict(zip(("x", "weight", "y", "gate", "scale", "shift"), (x, weight, *rest))), **options}
    simulated(kernel, arguments | {"out": tuple(t[:, :S] for t in whole)}, change)
    assert all(t[:, S:].isnan().all() for t in whole)
    return tuple(t[:, :S] for t in whole)


def given(shape, stream, dtype, rng):
    x, weight, y, *vectors = inputs(shape, dtype, rng)
    return x.to(stream), weight, y, *vectors


@pytest.mark.parametrize("stream, dtype", NAMES, ids=str)
@pytest.mark.parametrize("S, H", [(1, 2048), (2, 2560), (3, 2560)])
def test_any_number_of_rows_gives_the_equation_and_no_more(S, H, stream, dtype, rng):
    arguments = given((2, S, H), stream, dtype, rng)
    new, h = run(*arguments, dtype=dtype, apart=2)
    want_new, want_h = expected(*arguments)
    assert relative(new, want_new) <= GATE[stream] and relative(h, want_h) <= GATE[dtype]


def test_a_row_has_the_same_bits_whatever_the_number_of_rows(rng):
    x, weight, y, *vectors = given((1, 3, 2560), FP32, BF16, rng)
    new, h = run(x, weight, y, *vectors)
    for rows in (slice(0, 1), slice(1, 3), slice(2, 3)):
        few = run(x[:, rows], weight, y[:, rows], *vectors)
        assert torch.equal(few[0], new[:, rows]) and torch.equal(few[1], h[:, rows])


@pytest.mark.parametrize("names", GIVEN[:-1])
@pytest.mark.parametrize("weighed", (True, False))
def test_it_does_with_what_it_is_given(weighed, names, rng):
    x, weight, *rest = given((1, 3, 2048), BF16, BF16, rng)
    kwargs = {k: v for k, v in zip(("y", "gate", "scale", "shift"), rest) if k in names.split()}
    weight = weight if weighed else None
    new, h = run(x, weight, **kwargs)
    want_new, want_h = expected(x, weight, **kwargs)
    assert relative(h, want_h) <= GATE[BF16]
    assert relative(new, want_new) <= GATE[BF16] if "y" in names else new.isnan().all()


def test_rows_of_one_memory_and_tables_by_step(rng):
    """As a layer has them: y and the stream expanded over songs, six vectors a step."""
    x, weight, y, *_ = inputs((1, 3, 2048), BF16, rng)
    tables = torch.randn(3, 6, 2048, generator=rng)
    arguments = x.expand(2, -1, -1), weight, y[:, :1].expand(2, 3, -1), tables[:, 2], tables[:, 1], tables[:, 0]
    new, h = run(*arguments, step=torch.tensor([2], dtype=torch.int32))
    want_new, want_h = expected(*arguments[:3], *(t[2] for t in arguments[3:]))
    assert relative(new, want_new) <= GATE[BF16] and relative(h, want_h) <= GATE[BF16]


def test_in_place_without_a_place_and_neighbours_that_are_nan(rng):
    x, *rest = given((2, 3, 2048), BF16, BF16, rng)
    new, h = run(x, *rest)
    names = ("weight", "y", "gate", "scale", "shift")
    alone = torch.empty_like(h)
    simulated(kernel, {"x": x, **dict(zip(names, rest)), "out": (None, alone)})
    assert torch.equal(alone, h)
    x[0], rest[1][1, 1:] = torch.nan, torch.inf
    simulated(kernel, {"x": x, **dict(zip(names, rest)), "out": (x, alone)})
    assert torch.equal(x[1, :1], new[1, :1]) and torch.equal(alone[1, :1], h[1, :1])


def test_statistics_are_those_of_the_rounded_stream(rng):
    x, weight, y, gate, *_ = given((1, 3, 2048), BF16, BF16, rng)
    new, h = run(x, weight, y, gate)
    assert torch.equal(h, run(new, weight)[1])


def test_silence_is_kept_finite_by_eps(rng):
    x, weight, *_ = inputs((1, 2, 2048), FP32, rng)
    weight = weight.bfloat16()
    assert relative(run(x * 1e-3, weight, eps=1e-4)[1], expected(x * 1e-3, weight, eps=1e-4)[1]) <= GATE[BF16]
    assert not run(x * 0, weight)[1].any()


def test_a_missing_barrier_is_a_race(rng):
    with pytest.raises(sim.Finding, match=r"race|uninitialised"):
        run(*given((1, 2, 2048), BF16, BF16, rng), change=lambda ptx: ptx.replace("bar.sync", "// bar.sync"))


@pytest.mark.parametrize("sm", [80, *(pytest.param(sm, marks=pytest.mark.slow) for sm in (86, 89, 90, 100, 120))])
def test_no_entry_point_spills(sm):
    for H in WIDTHS:
        for name in NAMES.values():
            found = read_cubin(toolkit.compiled("residual_norm", f"residual_norm_h{H}_{name}", sm)[1])
            assert found.spill_bytes == found.local == 0


def launches(*arguments, **options):
    with dry_run(80) as found:
        residual_norm(*arguments, **options)
    return [one.name for one in found]


def test_what_it_cannot_take_is_tritons_or_refused(rng):
    x, weight, y, gate, scale, shift = inputs((1, 4, 2048), BF16, rng)
    assert launches(x, weight, y, gate, backend="cuda") == ["residual_norm_h2048_bf16"]
    assert launches(x, weight, y, gate) == []  # of a CPU no GPU's kernel is taken by itself
    fp32 = x.float()
    for case in (
        (x[..., :1024], weight[:1024]),
        (torch.randn(1, 1, 2052).bfloat16()[..., 2:2050], None),
        (fp32, weight.float()),
        (x.half(), weight.half()),
        (fp32, weight, y),  # with an fp32 norm
        (x, weight, y.float()),
        (x, weight, y, gate.bfloat16()),
        (x, weight, y, gate, scale),
        (x, weight, y, gate, None, shift),
    ):
        with pytest.raises(BackendUnavailable, match="it has no cuda kernel for this input"):
            launches(*case, backend="cuda")
        assert launches(*case, backend="triton") == ["_residual_norm"]
    assert launches(fp32, weight, y, dtype=BF16, backend="cuda") == ["residual_norm_h2048_fp32_bf16"]


def test_what_is_compiled_has_one_call(rng):
    x, weight, y, *rest = inputs((1, 4, 256), BF16, rng)
    seen = []

    def backend(module, example):
        seen.extend(str(node.target) for node in module.graph.nodes if "acefast" in str(node.target))
        return module.forward

    for given in ((x, weight, y, *rest), (x, weight)):
        compiled = torch.compile(lambda *a: residual_norm(*a, backend="reference"), fullgraph=True, backend=backend)
        assert all(map(torch.equal, compiled(*given), residual_norm(*given, backend="reference")))
        torch.library.opcheck(torch.ops.acefast._residual_norm.default, given, {"dtype": FP32})
    assert seen == ["acefast._residual_norm.default"] * 2
