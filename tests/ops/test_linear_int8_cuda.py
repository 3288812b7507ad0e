"""linear_int8's CUDA kernel: what is launched, and its PTX in the simulator against the equation in fp64.

tests/csrc/test_linear_int8.py proves its synchronisation, tests/kernels its costs, tests/gpu/test_cuda_int8_gpu.py all
of it on a GPU.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast import sim
from acefast.backends import BackendUnavailable, emulated
from acefast.cuda import loader, toolkit
from acefast.cuda.linear_int8 import KERNELS
from acefast.cuda.linear_int8 import linear_int8 as kernel
from acefast.ops.linear_int8 import linear_int8
from acefast.sim.driver import BLOCK_SHARED_LIMIT
from tests.ops.int8 import FORMS, GATE, exact, given, relative
from tests.ops.simulated import simulated

pytestmark = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")
WIDE, NARROW = KERNELS["many", 80], KERNELS["few", 80]
NAMES = ("x", "x_scale", "weight", "weight_scale", "bias")


def ran(operands, options, dtype, tile, change=str):
    """The result, between rows of NaN that no one may write."""
    rows, outputs = operands[0].shape[0], len(operands[2]) // (1 + options.get("swiglu", False))
    memory = torch.full((rows + 2, outputs), torch.nan, dtype=dtype)
    out = memory[1:-1]
    if "residual" in options:
        options = {**options, "residual": out.copy_(options["residual"])}
    simulated(kernel, {**dict(zip(NAMES, operands)), **options, "out": out, "kernel": tile}, change)
    assert memory[[0, -1]].isnan().all()
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tile", (WIDE, NARROW), ids=lambda tile: tile.entry)
def test_every_form_is_the_equation_in_fp64(tile, form, rng):
    dtype = torch.float16 if form in ("swiglu", "gated") else torch.bfloat16
    operands, options = given(rng, (3, 256), 256, form, dtype)
    assert relative(ran(operands, options, dtype, tile), exact(*operands, **options)) <= GATE[dtype]


@pytest.mark.parametrize("rows", (1, 127, 128, 129))
def test_rows_at_a_tiles_edge(rows, rng):
    operands, _ = given(rng, (rows, 384), 256, "plain", torch.float16)
    assert relative(ran(operands, {}, torch.float16, NARROW), exact(*operands)) <= GATE[torch.float16]


def test_more_row_tiles_than_a_group_has(rng):
    operands, _ = given(rng, (9 * 128 + 5, 128), 256, "plain", torch.bfloat16)
    assert relative(ran(operands, {}, torch.bfloat16, NARROW), exact(*operands)) <= GATE[torch.bfloat16]


@pytest.mark.parametrize("form", ("gated", "swiglu"))
def test_a_row_has_the_same_bits_in_any_tile(form, rng):
    operands, options = given(rng, (130, 256), 256, form, torch.bfloat16)
    assert torch.equal(*(ran(operands, options, torch.bfloat16, tile) for tile in (WIDE, NARROW)))


def test_sums_are_exact_where_fp32_would_lose_a_one():
    """1151 products of 127 by 127 pass 2**24; as many of 127 by -127 leave the 1 that came first."""
    x, weight = torch.full((1, 2304), 127, dtype=torch.int8), torch.zeros(128, 2304, dtype=torch.int8)
    x[0, 0] = weight[0, 0] = 1
    weight[0, 1:1152], weight[0, 1153:] = 127, -127
    out = ran((x, torch.ones(1), weight, torch.ones(128)), {}, torch.bfloat16, NARROW)
    assert out[0, 0] == 1 and not out[0, 1:].any()


def test_a_poisoned_row_stays_in_its_row(rng):
    (x, x_scale, *rest), options = given(rng, (70, 128), 128, "swiglu", torch.bfloat16)
    clean = ran((x, x_scale, *rest), options, torch.bfloat16, NARROW)
    x_scale[1], x_scale[69] = torch.nan, torch.inf
    got = ran((x, x_scale, *rest), options, torch.bfloat16, NARROW)
    assert got[1].isnan().all() and not got[69].isfinite().any()
    assert torch.equal(got[2:69], clean[2:69]) and torch.equal(got[0], clean[0])


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [("bar.sync", "// bar.sync", "race|uninitialised|waited"), ("wait_group", "wait_group 3; //", "waited|uninit")],
    ids=("barrier", "wait"),
)
def test_a_missing_barrier_or_wait_is_found(old, new, kind, rng):
    operands, _ = given(rng, (1, 384), 128, "plain", torch.bfloat16)
    with pytest.raises(sim.Finding, match=kind):
        ran(operands, {}, torch.bfloat16, NARROW, lambda ptx: ptx.replace(old, new))


def launched(sm, rows, K, outputs, **options):
    launches = []
    x, weight = torch.zeros(rows, K, dtype=torch.int8), torch.zeros(outputs, K, dtype=torch.int8)
    with emulated(sm), loader.recorded(lambda *launch: launches.append(launch)):
        y = linear_int8(x, torch.ones(rows), weight, torch.ones(outputs), **options, backend="cuda")
    (one,) = launches
    return y, one[1:5]


@pytest.mark.parametrize("sm", BLOCK_SHARED_LIMIT)
def test_a_tile_is_chosen_by_rows_and_fits_a_block(sm):
    many = launched(sm, 1500, 128, 512)[1]
    few, odd = launched(sm, 375, 128, 512)[1], launched(sm, 1500, 128, 384)[1]
    small = sm in (86, 89, 120)
    assert many[0] == f"linear_int8_m128_n{128 if small else 256}_bf16" and many[1] == (12 * (4 if small else 2), 1, 1)
    assert few[:2] == ("linear_int8_m128_n128_bf16", (12, 1, 1)) and odd[1] == (36, 1, 1)
    assert max(many[3], few[3]) <= BLOCK_SHARED_LIMIT[sm] and 2 * (few[3] + 1024) <= 164 << 10


def test_a_result_is_new_or_the_residual():
    y, launch = launched(80, 5, 128, 256, swiglu=True, dtype=torch.float16)
    assert y.shape == (5, 128) and y.dtype == torch.float16 and launch[0] == "linear_int8_m128_n128_fp16"
    residual = torch.zeros(5, 256).bfloat16()
    assert launched(80, 5, 128, 256, residual=residual)[0] is residual


@pytest.mark.parametrize(
    "rows, K, outputs, options",
    [
        (5, 64, 128, {}),
        (5, 128, 192, {}),
        (0, 128, 128, {}),
        (5, 128, 128, {"dtype": torch.float32}),
        (5, 128, 128, {"out": torch.zeros(5 * 128 + 4, dtype=torch.half)[4:].view(5, 128)}),  # not 16 bytes aligned
    ],
    ids=("K 64", "N 192", "empty", "fp32", "off"),
)
def test_what_does_not_fit_is_the_references(rows, K, outputs, options):
    with pytest.raises(BackendUnavailable, match="it has no cuda kernel for this input"):
        launched(80, rows, K, outputs, **options)
