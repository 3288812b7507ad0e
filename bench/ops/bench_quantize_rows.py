"""quantize_rows before a layer's products, of 30 s to 240 s of song."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.quantize_rows import quantize_rows, quantize_rows_reference


@pytest.mark.parametrize("K", (2048, 2560, 6144, 9728))
@pytest.mark.parametrize("seconds", (30, 120, 240))
def bench_quantize_rows(op_benchmark, device, dtype, backend, seconds, K):
    rows = -(-int(12.5 * seconds) // 128) * 128
    x = torch.randn(rows, K, device=device, dtype=dtype)
    bytes = x.nbytes + x.numel() + 4 * rows
    op_benchmark(quantize_rows, x, reference=quantize_rows_reference, backend=backend, bytes=bytes)
