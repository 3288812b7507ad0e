"""swiglu on the packed gate and up projections of a song's tokens."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.swiglu import swiglu, swiglu_reference

INTERMEDIATE = {"2b": 6144, "xl": 9728}


@pytest.mark.parametrize("model", INTERMEDIATE)
@pytest.mark.parametrize("seconds", (30, 240))
def bench_swiglu(op_benchmark, device, dtype, backend, seconds, model):
    gate_up = torch.randn(1, int(12.5 * seconds), 2 * INTERMEDIATE[model], device=device, dtype=dtype)
    op_benchmark(swiglu, gate_up, reference=swiglu_reference, backend=backend, bytes=gate_up.nbytes * 3 // 2)
