"""quantize_rows' CUDA kernel: what is launched, and its PTX in the simulator against the reference, bit for bit.

tests/csrc/test_quantize_rows.py proves its synchronisation, tests/kernels its costs, tests/gpu/test_cuda_int8_gpu.py
all of it on a GPU.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast import sim
from acefast.backends import BackendUnavailable, emulated
from acefast.cuda import loader, toolkit
from acefast.cuda.quantize_rows import NAMES
from acefast.cuda.quantize_rows import quantize_rows as kernel
from acefast.ops.quantize_rows import quantize_rows, quantize_rows_reference
from tests.ops.simulated import simulated

pytestmark = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")


def ran(x, change=str):
    """q and scale by the kernel, in memory that was not zero."""
    out = torch.full(x.shape, 99, dtype=torch.int8), torch.full(x.shape[:-1], torch.nan)
    simulated(kernel, {"x": x, "out": out}, change)
    return out


@pytest.mark.parametrize("dtype", NAMES, ids=str)
@pytest.mark.parametrize("K", (8, 1016, 1024, 1032, 2048))  # one thread's; a warp's share and its neighbours
def test_kernel_has_the_references_bits(K, dtype, rng):
    x = torch.randn(3, K, generator=rng).to(dtype)
    x[1] = 0
    x[2] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.0]).repeat(K // 8)  # ties
    assert all(map(torch.equal, ran(x), quantize_rows_reference(x)))


@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_poison_is_in_its_rows_scale_and_no_other(dtype, rng):
    x = torch.randn(4, 64, generator=rng).to(dtype)
    clean = quantize_rows_reference(x)
    x[1, 3], x[2, 63] = torch.nan, -torch.inf
    q, scale = ran(x)
    assert scale[1].isnan() and scale[2].isinf()
    for row in (0, 3):
        assert torch.equal(q[row], clean[0][row]) and scale[row] == clean[1][row]


def test_a_missing_barrier_is_a_race(rng):
    with pytest.raises(sim.Finding, match=r"race|uninitialised"):
        ran(torch.randn(1, 2048, generator=rng), lambda ptx: ptx.replace("bar.sync", "// bar.sync"))


@pytest.mark.parametrize("K, threads", [(8, 32), (2048, 64), (2560, 96), (9728, 320), (32768, 1024)])
def test_a_block_has_the_threads_that_a_row_needs(K, threads):
    launches = []
    x = torch.zeros(2, 3, K, dtype=torch.bfloat16)
    with emulated(80), loader.recorded(lambda *launch: launches.append(launch)):
        q, scale = quantize_rows(x, backend="cuda")
        assert quantize_rows(x[:0], backend="cuda")[0].shape == (0, 3, K)
    first, empty = launches
    assert first[1:5] == ("quantize_rows_bf16", (6, 1, 1), threads, threads // 8) and empty[2] == (0, 1, 1)
    assert q.shape == x.shape and scale.shape == (2, 3)


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 12), torch.zeros(1, 32776), torch.zeros(17)[1:]], ids=("12", "wide", "off")
)
def test_other_rows_are_the_references(x):
    refused = pytest.raises(BackendUnavailable, match="it has no cuda kernel for this input")
    with emulated(80), loader.recorded(lambda *launch: None), refused:
        quantize_rows(x, backend="cuda")
