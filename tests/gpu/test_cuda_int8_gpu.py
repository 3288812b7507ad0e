"""csrc/linear_int8.cu and csrc/quantize_rows.cu on a GPU: every tile beside the equation in fp64, at real sizes."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.2", reason="triton is not installed")

from acefast.backends import why_unavailable
from acefast.cases import all_cases
from acefast.cuda import loader
from acefast.cuda.linear_int8 import KERNELS
from acefast.cuda.linear_int8 import linear_int8 as kernel
from acefast.ops.linear_int8 import linear_int8, quantize_weight
from acefast.ops.quantize_rows import quantize_rows, quantize_rows_reference
from acefast.sim.driver import BLOCK_SHARED_LIMIT
from acefast.sim.kernel_times import time_case
from tests.ops.int8 import FORMS, GATE, exact, given, relative

DEVICE = "cuda"
DTYPES = (torch.bfloat16, torch.float16)
TILES = {tile.entry: tile for tile in KERNELS.values()}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
    pytest.mark.skipif(bool(why_unavailable("cuda")), reason=f"no CUDA kernels: {why_unavailable('cuda')}"),
]


@pytest.fixture(params=TILES)
def tile(request):
    found = TILES[request.param]
    if found.shared > BLOCK_SHARED_LIMIT.get(loader.current_sm(), 99 << 10):
        pytest.skip(f"{found.entry} needs {found.shared} bytes of shared memory")
    return found


def made(R, K, N, form, dtype):
    return given(torch.Generator().manual_seed(0), (R, K), N, form, dtype, DEVICE)


def launched(operands, options, dtype, tile):
    outputs = len(operands[2]) // (1 + options.get("swiglu", False))
    out = torch.full((len(operands[0]), outputs), torch.nan, device=DEVICE, dtype=dtype)
    if "residual" in options:
        options = {**options, "residual": out.copy_(options["residual"])}
    kernel(*operands, **options, out=out, kernel=tile)
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("R, K, N", [(1, 128, 256), (129, 640, 512), (1300, 2048, 1024)])
def test_every_tile_is_the_equation_in_fp64(tile, R, K, N, form, dtype):
    operands, options = made(R, K, N, form, dtype)
    got = launched(operands, options, dtype, tile)
    assert relative(got, exact(*operands, **options)) <= GATE[dtype]
    assert torch.equal(got, launched(operands, options, dtype, tile))


@pytest.mark.parametrize("form", FORMS)
def test_a_row_has_the_same_bits_in_any_tile(form):
    if BLOCK_SHARED_LIMIT.get(loader.current_sm(), 0) < KERNELS["many", 80].shared:
        pytest.skip("this GPU has one tile")
    operands, options = made(700, 2048, 2048, form, torch.bfloat16)
    one, other = (launched(operands, options, torch.bfloat16, tile) for tile in TILES.values())
    assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", (*DTYPES, torch.float32), ids=str)
@pytest.mark.parametrize("R, K", [(1, 8), (1500, 2048), (375, 9728), (3, 32768)])
def test_quantised_rows_are_the_references_of_a_cpu_and_of_a_gpu(R, K, dtype):
    x = torch.randn(R, K, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0] = 0
    got = quantize_rows(x.to(DEVICE), backend="cuda")
    for want in (quantize_rows_reference(x), quantize_rows_reference(x.to(DEVICE))):
        for ours, theirs in zip(got, want):
            assert torch.equal(ours.cpu(), theirs.cpu())


def test_a_layer_is_as_near_as_eight_bits_are_in_a_graph_too():
    """A graph quantises and multiplies: the same bits as without it, again with what its input then holds."""
    x = torch.randn(1500, 2048, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0)).bfloat16()
    weight = torch.randn(4096, 2048, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(1)).bfloat16() / 45
    held, static = quantize_weight(weight), x.clone()

    def layer(x):
        return linear_int8(*quantize_rows(x, backend="cuda"), *held, backend="cuda")

    eager = layer(x)
    assert relative(eager, x.double() @ weight.double().T) < 1.5e-2
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        layer(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = layer(static)
    for scale in (1, -2, 1):
        static.copy_(scale * x)
        graph.replay()
        assert torch.equal(result, scale * eager)


@pytest.mark.skipif(
    torch.cuda.is_available() and loader.current_sm() not in BLOCK_SHARED_LIMIT, reason="an unknown GPU"
)
def test_a_case_is_timed_beside_the_libraries(capsys):
    """And prints microseconds of ours, of torch's bf16 product and of its product of integers alone."""
    sm = loader.current_sm()
    for case in (case for case in all_cases("cuda") if case.kernel in ("linear_int8", "quantize_rows")):
        with torch.inference_mode():
            us = time_case(case, torch.device(DEVICE), sm)["measured_us"]
        told = f"\n{case.name}: CUDA {us:.1f} us"
        if case.kernel == "linear_int8":
            real = case.real(torch.device(DEVICE))
            narrow = real["x"], real["weight"].t()
            for name, product, given in (
                ("torch bf16", torch.mm, [t.bfloat16() for t in narrow]),
                ("torch int8 without an epilogue", torch._int_mm, narrow),
            ):
                told += f", {name} {timed(product, *given):.1f} us"
        with capsys.disabled():
            print(told)
        assert us > 0


def timed(product, x, weight) -> float:
    """Microseconds of a call, the mean of 20 after 3; its operands may stay in L2."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    for i in range(23):
        if i == 3:
            events[0].record()
        product(x, weight)
    events[1].record()
    torch.cuda.synchronize()
    return 1e3 * events[0].elapsed_time(events[1]) / 20
