"""conv1d's CUDA kernel: what is launched, and its PTX in the simulator against the equation in fp64.

tests/csrc/test_conv1d.py proves its synchronisation, tests/kernels its costs, tests/gpu/test_cuda_conv_gpu.py all of
it on a GPU.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast import sim
from acefast.backends import BackendUnavailable, emulated
from acefast.cuda import loader, toolkit
from acefast.cuda.conv1d import conv1d as kernel
from acefast.guarded import GUARD, guarded, whole, with_guards
from acefast.ops.conv1d import conv1d
from acefast.sim.driver import BLOCK_SHARED_LIMIT
from tests.ops.simulated import simulated
from tests.ops.test_conv1d import inputs, naive, padded_with_zeros, poisoned, relative, snaked, waves

pytestmark = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")
GATE = {torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # relative L2: one rounding, as of Triton's


def launched(x, weight, bias, sm=80, **options):
    """What the op launches on rows without guards."""
    launches = []
    with emulated(sm), loader.recorded(lambda *launch: launches.append(launch)):
        conv1d(x, weight, bias, backend="cuda", **options)
    return launches


# Cin, Cout, K, stride, padding, dilation; rows of the result, around a tile of 128; results
LAYERS = [
    ((64, 256, 7, 1, 27, 9), (1, 1), "both", torch.bfloat16),
    ((64, 256, 4, 2, 1, 1), (2, 127), "snake", torch.float16),
    ((128, 128, 1, 1, 0, 1), (1, 128), "y", torch.float16),
    ((64, 128, 3, 1, 2, 2), (3, 129), "snake", torch.bfloat16),
]


@pytest.mark.parametrize("layer, sizes, results, dtype", LAYERS)
def test_kernel_equals_the_equation_around_a_row_tile(layer, sizes, results, dtype, rng):
    """Songs lie in memory that is NaN: of it nothing is read, and nothing written but the results and their guards."""
    (cin, cout, taps, stride, padding, dilation), (B, R) = layer, sizes
    L = (R - 1) * stride + dilation * (taps - 1) + 1 - 2 * padding
    rows, weight, bias = inputs(B, L, cin, cout, taps, dtype)
    memory = [
        torch.full((B * (n + 2 * GUARD) * C + 256,), torch.nan, dtype=dtype) for n, C in ((L, cin), *[(R, cout)] * 2)
    ]
    x, y, activated = (
        guarded(B, n, C, dtype=dtype, device=rows.device, memory=m[128:-128])
        for m, n, C in zip(memory, (L, R, R), (cin, cout, cout))
    )
    whole(x).zero_()
    x.copy_(rows)
    wave = waves(cout)
    out = (None if results == "snake" else y, None if results == "y" else activated)
    geometry = dict(stride=stride, padding=padding, dilation=dilation)
    given = {"x": x, "weight": weight, "bias": bias, **geometry, "wave": None if results == "y" else wave, "out": out}
    simulated(kernel, given)
    want = naive(rows, weight, bias, stride, padding, dilation)
    for got, meant, held in zip(out, (want, snaked(want, *wave)), memory[1:]):
        if got is not None:
            assert relative(got, meant) <= GATE[dtype] and padded_with_zeros(got)
            assert held[:128].isnan().all() and held[-128:].isnan().all()
        else:
            assert held.isnan().all()


@pytest.mark.parametrize("dtype", GATE, ids=str)
def test_residual_is_added_in_fp32_also_in_place(dtype, rng):
    x, weight, _ = inputs(2, 131, 64, 128, 1, dtype)
    residual, wave = with_guards(torch.randn(2, 131, 128, generator=rng).to(dtype)), waves(128)
    want = naive(x, weight, None, 1, 0, 1, residual)
    activated = poisoned(2, 131, 128, dtype)
    simulated(
        kernel,
        {
            "x": with_guards(x),
            "weight": weight,
            "bias": None,
            "residual": residual,
            "wave": wave,
            "out": (residual, activated),
        },
    )
    for got, meant in ((residual, want), (activated, snaked(want, *wave))):
        assert relative(got, meant) <= GATE[dtype] and padded_with_zeros(got)


def test_a_missing_barrier_is_a_race(rng):
    x, weight, bias = inputs(1, 1, 64, 128, 3, torch.bfloat16)
    given = {
        "x": with_guards(x),
        "weight": weight,
        "bias": bias,
        "padding": 1,
        "out": (poisoned(1, 1, 128, x.dtype), None),
    }
    with pytest.raises(sim.Finding, match="race"):
        simulated(kernel, given, lambda ptx: ptx.replace("bar.sync", "// bar.sync"))


@pytest.mark.parametrize("sm", BLOCK_SHARED_LIMIT)
@pytest.mark.parametrize("cout, taps, tile", [(256, 7, 256), (256, 1, 128), (384, 7, 128)])
def test_a_block_fits_its_gpu(cout, taps, tile, sm, rng):
    tile, k = (128, 32) if sm in (86, 89, 120) else (tile, 64)
    (one,) = launched(*inputs(2, 300, 64, cout, taps, torch.float16), sm, padding=taps // 2)
    assert one[1:4] == (f"conv1d_n{tile}_k{k}_fp16", (3 * cout // tile, 1, 2), tile)
    assert one[4] <= BLOCK_SHARED_LIMIT[sm]
    if tile == 128:  # two blocks on a multiprocessor
        assert 2 * (one[4] + 1024) <= (100 if k == 32 else 164) * 1024


@pytest.mark.parametrize(
    "cin, cout, dtype, options",
    [
        (32, 128, torch.float16, {}),  # half of a step
        (64, 64, torch.float16, {}),
        (64, 2048, torch.float16, {}),  # frames
        (64, 128, torch.float32, {}),
        (64, 128, torch.float16, {"wave": "silu"}),
        (64, 128, torch.float16, {"share": 0.25}),
        (64, 128, torch.float16, {"padding": GUARD + 1}),
    ],
)
def test_what_the_kernel_does_not_take_is_refused(cin, cout, dtype, options):
    x, weight, bias = inputs(1, 40, cin, cout, 3, dtype)
    with pytest.raises(BackendUnavailable, match=r"it has no.* kernel for this input"):
        launched(x, weight, bias, **options)


def test_a_total_is_tritons_work():
    x, weight, bias = inputs(1, 40, 64, 128, 3, torch.float16)
    with pytest.raises(BackendUnavailable, match="it has no cuda kernel for this input"):
        launched(x, weight, bias, padding=1, total=torch.zeros(1, 40, 128).half())
