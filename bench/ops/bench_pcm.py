"""Speed of acefast.ops.pcm: a song's last pass, peaks looked for."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.pcm import pcm, pcm_reference


@pytest.mark.parametrize("pcm_dtype", (torch.float32, torch.int16), ids=str)
@pytest.mark.parametrize("seconds", (30, 240))
def bench_pcm(op_benchmark, device, backend, seconds, pcm_dtype):
    audio = torch.randn(1, 2, 48_000 * seconds, device=device)
    levels = torch.tensor([10 ** (-1 / 20)], dtype=torch.float64, device=device)
    moved = audio.nbytes * 2 + audio.numel() * pcm_dtype.itemsize
    op_benchmark(pcm, audio, levels, dtype=pcm_dtype, reference=pcm_reference, backend=backend, bytes=moved)
