"""fsq of a song's codes; too small to matter, here so that it stays so."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.fsq import fsq, fsq_reference

LEVELS = (8, 8, 8, 5, 5, 5)


@pytest.mark.parametrize("seconds", (30, 600))
def bench_fsq(op_benchmark, device, backend, seconds):
    z = torch.randn(1, 5 * seconds, len(LEVELS), device=device)
    op_benchmark(fsq, z, LEVELS, reference=fsq_reference, backend=backend, bytes=2 * z.nbytes)
