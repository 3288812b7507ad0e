"""swiglu on the packed gate and up projections of a 2B song's tokens."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.swiglu import swiglu, swiglu_reference

INTERMEDIATE = 6144


@pytest.mark.parametrize("seconds", (30, 240))
def bench_swiglu(op_benchmark, device, dtype, backend, seconds):
    gate_up = torch.randn(1, int(12.5 * seconds), 2 * INTERMEDIATE, device=device, dtype=dtype)
    op_benchmark(swiglu, gate_up, reference=swiglu_reference, backend=backend, bytes=gate_up.nbytes * 3 // 2)
