"""conv_transpose1d's CUDA kernel: what is launched, and its PTX in the simulator against the equation in fp64.

tests/csrc/test_conv_transpose1d.py proves its synchronisation, tests/kernels its costs,
tests/gpu/test_cuda_conv_gpu.py all of it on a GPU.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast import sim
from acefast.backends import BackendUnavailable, emulated
from acefast.cuda import loader, toolkit
from acefast.cuda.conv_transpose1d import conv_transpose1d as kernel
from acefast.guarded import GUARD, guarded, whole, with_guards
from acefast.ops.conv_transpose1d import conv_transpose1d
from acefast.sim.driver import BLOCK_SHARED_LIMIT
from tests.ops.simulated import simulated
from tests.ops.test_conv_transpose1d_triton import GATE, between_nans, error, exact, inputs

pytestmark = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")


def launched(x, weight, bias, sm=80, **options):
    """What the op launches on rows without guards."""
    launches = []
    with emulated(sm), loader.recorded(lambda *launch: launches.append(launch)):
        conv_transpose1d(x, weight, bias, backend="cuda", **options)
    return launches


# Cin, Cout, stride; rows of x, around a tile of 128; results
LAYERS = [
    ((64, 128, 4), (1, 1), "both", torch.bfloat16),  # a column tile of two channels' width
    ((64, 64, 8), (2, 127), "snake", torch.float16),
    ((128, 128, 2), (1, 128), "y", torch.float16),
    ((64, 64, 4), (3, 129), "both", torch.bfloat16),
    ((64, 256, 2), (1, 130), "both", torch.float16),
]


@pytest.mark.parametrize("layer, sizes, results, dtype", LAYERS)
def test_kernel_equals_the_equation_around_a_row_tile(layer, sizes, results, dtype):
    """Songs lie in memory that is NaN: of it nothing is read, and nothing written but the results and their guards."""
    (Cin, Cout, stride), (B, L) = layer, sizes
    x, weight, bias, wave = inputs(B, L, Cin, Cout, stride, dtype)
    nan = torch.full((B, stride * L, Cout), torch.nan).to(dtype)
    _, source = between_nans(x)
    memory, out = zip(*(between_nans(nan, torch.nan) for _ in range(2)))
    out = (None if results == "snake" else out[0], None if results == "y" else out[1])
    given = {"x": source, "weight": weight, "bias": bias, "stride": stride, "out": out}
    simulated(kernel, {**given, "wave": None if results == "y" else wave})
    for got, held, meant in zip(out, memory, exact(x, weight, bias, wave, stride)):
        if got is not None:
            assert error(got, meant) <= GATE[dtype]
            assert (whole(got)[:, :GUARD] == 0).all() and (whole(got)[:, -GUARD:] == 0).all()
            whole(got).fill_(torch.nan)
        assert held.isnan().all()


def test_what_it_gives_is_as_near_as_tritons_and_the_same_bits_in_any_tile():
    x, weight, bias, wave = inputs(1, 150, 64, 128, 4, torch.bfloat16)

    def run(rows):
        out = tuple(guarded(1, 4 * rows.shape[1], 128, dtype=rows.dtype, device=rows.device) for _ in "yw")
        simulated(kernel, dict(x=rows, weight=weight, bias=bias, stride=4, wave=wave, out=out))
        return out

    song, piece = run(with_guards(x)), run(with_guards(x[:, 21:]))
    for a, b, want in zip(song, piece, exact(x, weight, bias, wave, 4)):
        assert error(a, want) <= 1.02 * error(want.bfloat16(), want)
        assert torch.equal(a[:, 4 * 22 :], b[:, 4:])


def test_a_missing_barrier_is_a_race():
    x, weight, bias, _ = inputs(1, 1, 64, 128, 2, torch.bfloat16)
    out = guarded(1, 2, 128, dtype=x.dtype, device=x.device), None
    given = {"x": with_guards(x), "weight": weight, "bias": bias, "stride": 2, "wave": None, "out": out}
    with pytest.raises(sim.Finding, match="race"):
        simulated(kernel, given, lambda ptx: ptx.replace("bar.sync", "// bar.sync"))


@pytest.mark.parametrize("sm", BLOCK_SHARED_LIMIT)
@pytest.mark.parametrize("Cout, stride, tile", [(128, 4, 256), (64, 4, 128)])
def test_a_block_fits_its_gpu(Cout, stride, tile, sm):
    tile, k = (128, 32) if sm in (86, 89, 120) else (tile, 64)
    (one,) = launched(*inputs(2, 300, 64, Cout, stride, torch.float16)[:3], sm, stride=stride)
    grid = (3 * stride * Cout // tile, 1, 2)
    assert one[1:4] == (f"conv_transpose1d_n{tile}_k{k}_fp16", grid, tile)
    assert one[4] <= BLOCK_SHARED_LIMIT[sm]
    if tile == 128:  # two blocks on a multiprocessor
        assert 2 * (one[4] + 1024) <= (100 if k == 32 else 164) * 1024


@pytest.mark.parametrize(
    "Cin, Cout, stride, dtype, options",
    [
        (32, 128, 2, torch.float16, {}),  # half of a step
        (64, 96, 8, torch.float16, {}),  # a warp's columns would be of two taps
        (64, 64, 2, torch.float16, {}),  # a column tile would cross the crop
        (64, 128, 2, torch.float32, {}),
        (64, 128, 2, torch.float16, {"wave": "silu"}),
    ],
)
def test_what_the_kernel_does_not_take_is_refused(Cin, Cout, stride, dtype, options):
    x, weight, bias, _ = inputs(1, 40, Cin, Cout, stride, dtype)
    with pytest.raises(BackendUnavailable, match=r"it has no.* kernel for this input"):
        launched(x, weight, bias, stride=stride, **options)
