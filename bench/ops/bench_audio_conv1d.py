"""Speed of acefast.ops.audio_conv1d: the decoder's last layer, at 48 kHz."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.audio_conv1d import audio_conv1d, audio_conv1d_reference


@pytest.mark.parametrize("seconds", (5, 20))
def bench_audio_conv1d(op_benchmark, device, dtype, backend, seconds):
    x = torch.randn(1, 48_000 * seconds, 128, device=device, dtype=dtype)
    weight = (torch.randn(2, 7, 128, device=device) / (7 * 128) ** 0.5).to(dtype)
    op_benchmark(
        audio_conv1d,
        x,
        weight,
        reference=audio_conv1d_reference,
        backend=backend,
        bytes=x.nbytes + weight.nbytes + 2 * x.shape[1] * 4,
        flops=2 * x.shape[1] * weight.numel(),
    )
