"""residual_unit's CUDA kernel: what is launched, and its PTX in the simulator against the equation in fp64.

tests/csrc/test_residual_unit.py proves its synchronisation, tests/kernels its costs, tests/gpu/test_cuda_units_gpu.py
all of it on a GPU.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast import sim
from acefast.backends import BackendUnavailable, emulated, use_backend
from acefast.cuda import loader, toolkit
from acefast.cuda.residual_unit import KERNELS, TAPS
from acefast.cuda.residual_unit import residual_unit as kernel
from acefast.guarded import GUARD, guarded, whole
from acefast.ops.residual_unit import from_x_alone, residual_unit
from acefast.sim.driver import BLOCK_SHARED_LIMIT, dry_run
from tests.ops.simulated import simulated
from tests.ops.units import GATE, check_guards, exact, poisoned, relative, rows, weights

pytestmark = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")
NAMES = ("x", "alpha1", "inv_beta1", "weight1", "bias1", "alpha2", "inv_beta2", "weight2", "bias2")


def given(rng, C, dtype):
    """What a unit takes behind x, the snake that reads its result, and the first snake as an exact function."""
    rest, wave = weights(rng, C, dtype)
    first = tuple(torch.rand(2, C, generator=rng) + 0.2)
    alpha, inv_beta = (t.double() for t in first)
    return (*first, *rest), wave, lambda x: (x.double() + inv_beta * (alpha * x.double()).sin() ** 2).to(dtype)


def launched(x, rest, sm=80, **options):
    """Entry point, grid, threads and shared memory of the one launch that the op makes on guarded rows."""
    launches = []
    with emulated(sm), loader.recorded(lambda *launch: launches.append(launch)):
        residual_unit(x, *rest, guarded=True, backend="cuda", **options)
    (one,) = launches
    return one[1:5]


def test_poison_around_and_beyond_reaches_nothing(rng):
    """Songs before and behind are NaN, memory before and behind theirs, and what is not a song's is not written."""
    rest, wave, snake1 = given(rng, 128, torch.float16)
    memory = [torch.full((2 * (GUARD + 30 + GUARD) * 128 + 512,), torch.nan).half() for _ in range(3)]
    x, y, waved = (guarded(2, 30, 128, dtype=t.dtype, device=t.device, memory=t[256:-256]) for t in memory)
    clean = rows(rng, 1, 30, 128, torch.float16)
    whole(x)[1] = whole(clean)[0]
    arguments = {**dict(zip(NAMES, (x, *rest))), "dilation": 9, "wave": wave, "out": (y, waved)}
    simulated(kernel, arguments)
    for got, want in zip((y, waved), exact(clean, snake1(clean), *rest[2:], 9, wave)):
        assert relative(got[1:], want) <= GATE[torch.float16]
        assert got[0].isnan().all()
        check_guards(got)
    for held in memory[1:]:
        assert held[:256].isnan().all() and held[-256:].isnan().all()


def test_a_missing_barrier_is_a_race(rng):
    rest, _, _ = given(rng, 128, torch.bfloat16)
    x = rows(rng, 1, 1, 128, torch.bfloat16)
    arguments = {**dict(zip(NAMES, (x, *rest))), "dilation": 1, "wave": None, "out": (poisoned(x), None)}
    with pytest.raises(sim.Finding, match="race"):
        simulated(kernel, arguments, lambda ptx: ptx.replace("bar.sync", "// bar.sync"))


@pytest.mark.parametrize("sm", BLOCK_SHARED_LIMIT)
@pytest.mark.parametrize("C", (128, 256))
def test_the_widest_dilation_fits_a_block(C, sm, rng):
    rest, _, _ = given(rng, C, torch.bfloat16)
    entry, grid, threads, shared = launched(rows(rng, 2, 300, C, torch.bfloat16), rest, sm, dilation=GUARD // 3)
    tile = int(entry.split("_r")[1].removesuffix("_bf16"))
    assert entry == f"residual_unit_c{C}_r{tile}_bf16" and grid == (-(-300 // tile), 1, 2)
    assert threads == tile * C // 128 and shared <= BLOCK_SHARED_LIMIT[sm]


def test_two_blocks_share_a_multiprocessor_where_c128_counts_on_it():
    kernel = KERNELS["c128", 80]
    shared = (kernel["STAGES"] * kernel["KB"] + kernel["ROWS"] + (TAPS - 1) * 9) * 128 * 2
    assert 2 * (shared + 1024) <= 164 * 1024 and 2 * kernel.threads * 255 <= 65536


def test_over_x_it_is_tritons_work(rng):
    rest, wave, _ = given(rng, 128, torch.bfloat16)
    arena = torch.zeros(3 * (GUARD + 40 + GUARD) * 128).bfloat16()
    x, other, free = (guarded(1, 40, 128, dtype=t.dtype, device=t.device, memory=t) for t in arena.chunk(3))
    options = {"dilation": 3, "wave": wave, "activated": other}
    assert (
        launched(x, rest, **options, out=(rows(rng, 1, 40, 128, torch.bfloat16), free))[0]
        == "residual_unit_c128_r128_bf16"
    )
    with pytest.raises(BackendUnavailable, match="it has no cuda kernel for this input"):
        launched(x, rest, **options, out=(x, free))
    with dry_run(80) as launches, use_backend("triton"):
        residual_unit(x, *rest, **options, guarded=True, out=(x, free))
    assert [one.name for one in launches] == ["_residual_unit"]


def test_whether_a_first_snake_is_needed_is_known_ahead():
    cpu = torch.device("cpu")
    with dry_run(80), use_backend("cuda"):
        assert from_x_alone(128, torch.float16, cpu) and from_x_alone(256, torch.bfloat16, cpu)
        assert not from_x_alone(64, torch.float16, cpu) and not from_x_alone(128, torch.float32, cpu)
    with dry_run(80), use_backend("triton"):
        assert not from_x_alone(128, torch.float16, cpu)
    assert not from_x_alone(128, torch.float16, cpu)
