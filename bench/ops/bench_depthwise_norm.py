"""depthwise_norm at the widths of the vocoder's backbone, both channels of a song."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.depthwise_norm import depthwise_norm, depthwise_norm_reference


@pytest.mark.parametrize("C", (128, 256, 384, 512))
@pytest.mark.parametrize("seconds", (30, 240))
def bench_depthwise_norm(op_benchmark, device, dtype, backend, seconds, C):
    x = torch.randn(2, seconds * 44_100 // 512, C, device=device, dtype=dtype)
    conv_weight, *vectors = (torch.randn(size, device=device, dtype=dtype) for size in ((7, C), (C,), (C,), (C,)))
    given = x, conv_weight, *vectors
    op_benchmark(depthwise_norm, *given, reference=depthwise_norm_reference, backend=backend, bytes=2 * x.nbytes)
