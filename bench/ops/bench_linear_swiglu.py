"""linear_swiglu on a song's tokens: the kernel, and the library's product with SwiGLU after it."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.linear import linear
from acefast.ops.linear_swiglu import linear_swiglu, linear_swiglu_reference
from acefast.ops.swiglu import swiglu

SIZES = {"2b": (2048, 6144), "xl": (2560, 9728)}  # H, I


def two_ops(x, weight, *, backend=None):
    """What the kernel competes with; its GEMM is cuBLASLt's on a GPU."""
    return swiglu(linear(x, weight), backend=backend)


@pytest.mark.parametrize("op", (linear_swiglu, two_ops), ids=("fused", "in two"))
@pytest.mark.parametrize("model", SIZES)
@pytest.mark.parametrize("seconds", (30, 120, 240))
def bench_linear_swiglu(op_benchmark, device, dtype, backend, seconds, model, op):
    H, I = SIZES[model]  # noqa: E741
    rows = -(-int(12.5 * seconds) // 128) * 128  # padded, as a song's static buffers are
    x = torch.randn(1, rows, H, device=device, dtype=dtype)
    weight = torch.randn(2 * I, H, device=device, dtype=dtype) / H**0.5
    bytes = x.nbytes + weight.nbytes + rows * I * x.itemsize
    flops = 4 * rows * H * I
    op_benchmark(op, x, weight, reference=linear_swiglu_reference, backend=backend, bytes=bytes, flops=flops)
