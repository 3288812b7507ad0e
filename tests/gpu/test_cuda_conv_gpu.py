"""csrc/conv1d.cu and conv_transpose1d.cu on a GPU at the decoder's sizes, beside fp64 and beside Triton's kernels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", "3.2", reason="triton is not installed")

from acefast.backends import why_unavailable
from acefast.cases import all_cases
from acefast.cuda import loader
from acefast.guarded import with_guards
from acefast.ops.conv1d import conv1d, rows_out
from acefast.ops.conv_transpose1d import conv_transpose1d
from acefast.sim.driver import BLOCK_SHARED_LIMIT
from acefast.sim.kernel_times import time_case
from tests.ops.test_conv1d import inputs, padded_with_zeros, relative, snaked, waves
from tests.ops.test_conv_transpose1d_triton import exact
from tests.ops.test_conv_transpose1d_triton import inputs as raised_inputs

DEVICE = "cuda"
GATE = {torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # relative L2: one rounding
# Cin, Cout, K, stride, padding, dilation, residual
LAYERS = {
    "c1024-k7d9": (1024, 1024, 7, 1, 27, 9, False),
    "c512-k7d1": (512, 512, 7, 1, 3, 1, False),
    "c1024-1x1": (1024, 1024, 1, 1, 0, 1, True),
    "c512-1x1": (512, 512, 1, 1, 0, 1, True),
    "down6": (512, 1024, 12, 6, 3, 1, False),
    "down2": (128, 128, 4, 2, 1, 1, False),
}
# Cin, Cout, stride
RAISED = {"up10": (2048, 1024, 10), "up6": (1024, 512, 6), "up4": (256, 128, 4), "up2": (128, 128, 2)}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
    pytest.mark.skipif(bool(why_unavailable("cuda")), reason=f"no CUDA kernels: {why_unavailable('cuda')}"),
]


def given(layer, B, L, dtype):
    """Guarded rows, weight and bias, options, and what they give in fp64."""
    cin, cout, taps, stride, padding, dilation, residual = LAYERS[layer]
    x, weight, bias = (t.to(DEVICE) for t in inputs(B, L, cin, cout, taps, dtype))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    rows = rows_out(L, taps, **geometry)
    around = F.pad(x.double(), (0, 0, padding, padding))
    y = bias.double() + sum(
        around[:, tap * dilation :][:, : (rows - 1) * stride + 1 : stride] @ weight[:, tap].double().T
        for tap in range(taps)
    )
    added = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype) if residual else None
    wave = tuple(t.to(DEVICE) for t in waves(cout))
    y = y if added is None else y + added.double()
    options = {**geometry, "residual": None if added is None else with_guards(added), "wave": wave, "guarded": True}
    return (with_guards(x), weight, bias), options, (y, snaked(y, *(t.double() for t in wave)))


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("B, L", [(1, 127), (3, 129), (2, 3000)])
@pytest.mark.parametrize("layer", LAYERS)
def test_op_is_the_equation_and_as_near_to_it_as_with_triton(layer, B, L, dtype):
    arguments, options, meant = given(layer, B, L, dtype)
    ours, again, theirs = (conv1d(*arguments, **options, backend=name) for name in ("cuda", "cuda", "triton"))
    for got, same, other, want in zip(ours, again, theirs, meant):
        assert relative(got, want) <= GATE[dtype]
        assert relative(got, want) <= 1.02 * relative(other, want)
        assert torch.equal(got, same) and padded_with_zeros(got)


def test_a_row_has_the_same_bits_in_any_tile():
    (x, *weights), options, _ = given("c512-k7d1", 1, 1000, torch.float16)
    long = conv1d(x, *weights, **options, keep=False, backend="cuda")[1]
    short = conv1d(with_guards(x[:, 111:700].contiguous()), *weights, **options, keep=False, backend="cuda")[1]
    assert torch.equal(long[:, 114:697], short[:, 3:-3])


def test_a_graph_replays_it():
    (x, *weights), options, _ = given("c1024-1x1", 2, 500, torch.bfloat16)
    want = [t.clone() for t in conv1d(x, *weights, **options, backend="cuda")]
    out = tuple(with_guards(torch.empty_like(t)) for t in want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        conv1d(x, *weights, **options, out=out, backend="cuda")
    for t in out:
        t.fill_(torch.nan)
    graph.replay()
    assert all(map(torch.equal, out, want))


def raised(layer, B, L, dtype):
    """Guarded rows, weight and bias, options, and what they give in fp64."""
    Cin, Cout, stride = RAISED[layer]
    x, weight, bias, wave = raised_inputs(B, L, Cin, Cout, stride, dtype)
    x, weight, bias, *wave = (t.to(DEVICE) for t in (x, weight, bias, *wave))
    meant = exact(x, weight, bias, wave, stride)
    return (with_guards(x), weight, bias), {"stride": stride, "wave": tuple(wave), "guarded": True}, meant


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("B, L", [(1, 127), (3, 129), (2, 1000)])
@pytest.mark.parametrize("layer", RAISED)
def test_rate_change_is_the_equation_and_as_near_to_it_as_with_triton(layer, B, L, dtype):
    arguments, options, meant = raised(layer, B, L, dtype)
    ours, again, theirs = (conv_transpose1d(*arguments, **options, backend=b) for b in ("cuda", "cuda", "triton"))
    for got, same, other, want in zip(ours, again, theirs, meant):
        assert relative(got, want) <= GATE[dtype]
        assert relative(got, want) <= 1.02 * relative(other, want)
        assert torch.equal(got, same) and padded_with_zeros(got)


@pytest.mark.parametrize("layer", RAISED)
def test_a_raised_row_has_the_same_bits_in_any_tile(layer):
    (x, *weights), options, _ = raised(layer, 1, 500, torch.float16)
    s = options["stride"]
    long = conv_transpose1d(x, *weights, **options, backend="cuda")
    short = conv_transpose1d(with_guards(x[:, 111:400].contiguous()), *weights, **options, backend="cuda")
    for a, b in zip(long, short):
        assert torch.equal(a[:, s * 112 : s * 399], b[:, s:-s])


def test_a_graph_replays_a_rate_change():
    (x, *weights), options, _ = raised("up6", 2, 300, torch.bfloat16)
    want = [t.clone() for t in conv_transpose1d(x, *weights, **options, backend="cuda")]
    out = tuple(with_guards(torch.empty_like(t)) for t in want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        conv_transpose1d(x, *weights, **options, out=out, backend="cuda")
    for t in out:
        t.fill_(torch.nan)
    graph.replay()
    assert all(map(torch.equal, out, want))


TIMED = {
    "conv1d": ("c1024-k7d9-bf16", "c512-k7d3-bf16", "c1024-1x1-bf16", "c512-1x1-bf16", "c512-1x1-last-bf16"),
    "conv_transpose1d": ("2048-s10", "1024-s6", "512-s4", "256-s4", "128-s2"),
}


@pytest.mark.skipif(
    torch.cuda.is_available() and loader.current_sm() not in BLOCK_SHARED_LIMIT, reason="an unknown GPU"
)
@pytest.mark.parametrize("op", TIMED)
def test_a_case_is_timed_beside_tritons(op, capsys):
    """And prints microseconds of both."""
    ours = {case.config: case for case in all_cases("cuda") if case.kernel == op}
    theirs = {case.config: case for case in all_cases() if case.kernel == op}
    sm = loader.current_sm()
    for name in TIMED[op]:
        case = ours[name]
        timed = {"CUDA": case, "Triton": theirs[name]}
        with torch.inference_mode():
            times = {who: time_case(each, torch.device(DEVICE), sm)["measured_us"] for who, each in timed.items()}
        with capsys.disabled():
            print(f"\n{op}/{name}:", ", ".join(f"{who} {us:.1f} us" for who, us in times.items()))
        assert min(times.values()) > 0
