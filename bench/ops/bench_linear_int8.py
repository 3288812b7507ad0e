"""linear_int8 on a song's tokens, beside the library's product of 16 bits and its product of integers alone."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.linear import linear
from acefast.ops.linear_int8 import int_product, linear_int8, linear_int8_reference

LAYERS = {
    "2b qkv": (2048, 4096),
    "2b gate, up": (2048, 12288),
    "2b down": (6144, 2048),
    "xl down": (9728, 2560),
}  # K, N


def operands(seconds, layer, device):
    """x, its scales, a weight and its scales; rows are padded, as a song's static buffers are."""
    K, N = LAYERS[layer]
    R = -(-int(12.5 * seconds) // 128) * 128
    x, weight = (torch.randint(-127, 128, (n, K), device=device, dtype=torch.int8) for n in (R, N))
    return x, torch.rand(R, device=device) / 127, weight, torch.rand(N, device=device) / 127


@pytest.mark.parametrize("swiglu", (False, True), ids=("plain", "swiglu"))
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("seconds", (30, 120, 240))
def bench_linear_int8(op_benchmark, device, dtype, backend, seconds, layer, swiglu):
    if swiglu != (layer == "2b gate, up"):
        pytest.skip("the layer has another form")
    given = operands(seconds, layer, device)
    R, N = len(given[0]), len(given[2])
    bytes = sum(t.nbytes for t in given) + R * N // (1 + swiglu) * dtype.itemsize
    options = {"swiglu": swiglu, "dtype": dtype}
    flops = R * given[2].numel()  # half of them: of integers the peak is twice that of 16 bits
    counted = {"flops": flops, **options}
    op_benchmark(linear_int8, *given, reference=linear_int8_reference, backend=backend, bytes=bytes, **counted)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("seconds", (30, 120, 240))
@pytest.mark.parametrize("integers", (False, True), ids=("16 bits", "_int_mm"))
def bench_library(benchmark, device, dtype, seconds, layer, integers):
    x, _, weight, _ = operands(seconds, layer, device)
    product = int_product if integers else linear
    given = (x, weight) if integers else (x.to(dtype), weight.to(dtype))

    def call():
        product(*given)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark(call)
