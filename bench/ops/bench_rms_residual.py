"""rms_residual at the autoencoder's levels, 30 s of song."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.rms_residual import rms_residual, rms_residual_reference


@pytest.mark.parametrize("rows, C", [(16 * 323, 1024), (32 * 646, 512), (64 * 1292, 256), (128 * 2584, 128)])
def bench_rms_residual(op_benchmark, device, dtype, backend, rows, C):
    h, x = (torch.randn(rows, C, device=device, dtype=dtype) for _ in range(2))
    weight, bias = (torch.randn(C, device=device, dtype=dtype) for _ in range(2))
    given = h, weight, bias, x
    op_benchmark(rms_residual, *given, reference=rms_residual_reference, backend=backend, bytes=3 * h.nbytes)
