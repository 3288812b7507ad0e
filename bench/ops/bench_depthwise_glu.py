"""depthwise_glu at the width of ACE-Step v1, 12800 channels in and 6400 out, with guidance's two rows."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.depthwise_glu import depthwise_glu, depthwise_glu_reference


@pytest.mark.parametrize("seconds", (30, 120, 240))
def bench_depthwise_glu(op_benchmark, device, dtype, backend, seconds):
    S, width = int(seconds * 44100 / 4096), 12800
    x = torch.randn(2, S, width, device=device, dtype=dtype)
    weight, bias = (torch.randn(shape, device=device, dtype=dtype) for shape in ((3, width), (width,)))
    op_benchmark(
        depthwise_glu,
        *(x, weight.t(), bias),
        reference=depthwise_glu_reference,
        backend=backend,
        bytes=x.nbytes * 3 // 2,
        silu_input=True,
    )
