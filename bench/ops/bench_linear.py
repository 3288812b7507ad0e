"""linear on a song's tokens: of a GPU the library's product, of a CPU its own kernel beside it.

OMP_NUM_THREADS=1 pytest bench/ops/bench_linear.py --device cpu
"""

from __future__ import annotations

import pytest
import torch

from acefast.ops.linear import add_linear, linear, linear_reference

LAYERS = {"2b o": (2048, 2048), "2b qkv": (2048, 4096), "2b gate, up": (2048, 12288), "2b down": (6144, 2048)}  # K, N


def operands(rows, layer, device, dtype):
    K, N = LAYERS[layer]
    x = torch.randn(rows, K, device=device, dtype=dtype)
    weight = torch.randn(N, K, device=device, dtype=dtype) / K**0.5
    return x, weight, x.nbytes + weight.nbytes + rows * N * x.itemsize, 2 * rows * K * N


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rows", (1, 13, 125, 375, 750, 1500))  # from 125: songs of 10 to 120 s
def bench_linear(op_benchmark, device, dtype, backend, rows, layer):
    x, weight, bytes, flops = operands(rows, layer, device, dtype)
    op_benchmark(linear, x, weight, reference=linear_reference, backend=backend, bytes=bytes, flops=flops)


@pytest.mark.parametrize("C", (128, 256, 384, 512))
def bench_linear_with_what_follows(op_benchmark, device, dtype, backend, C):
    """Both layers' shapes of a block of v1's vocoder, 128 latent frames of two channels."""
    x = torch.randn(2048, C, device=device, dtype=dtype)
    weight, bias = torch.randn(4 * C, C, device=device, dtype=dtype) / C**0.5, x.new_zeros(4 * C)
    residual = x.new_ones(2048, 4 * C)
    bytes, flops = x.nbytes + weight.nbytes + 2 * residual.nbytes, 2 * weight.numel() * len(x)
    operands, options = (x, weight, bias), {"gelu": True, "residual": residual}
    op_benchmark(linear, *operands, **options, reference=linear_reference, backend=backend, bytes=bytes, flops=flops)


@pytest.mark.parametrize("rows", (125, 375, 1500))
def bench_add_linear(op_benchmark, device, dtype, backend, rows):
    y, weight, bytes, flops = operands(rows, "2b o", device, dtype)
    start = torch.randn(rows, len(weight), device=device, dtype=dtype)

    def added(y, weight, *, backend=None):
        x = start.clone()
        add_linear(x, y, weight, backend=backend)
        return x

    def reference(y, weight):
        return start + linear_reference(y, weight)

    op_benchmark(added, y, weight, reference=reference, backend=backend, bytes=bytes, flops=flops)
