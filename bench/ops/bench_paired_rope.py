"""paired_rope of the queries of cross-attention, at the sizes of ACE-Step v1: 20 heads of 128."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.paired_rope import paired_rope, paired_rope_reference, paired_rope_table


@pytest.mark.parametrize("seconds", (30, 120, 240))
def bench_paired_rope(op_benchmark, device, dtype, backend, seconds):
    S = int(seconds * 44100 / 4096)
    x = torch.randn(2, S, 20, 128, device=device, dtype=dtype)  # with guidance
    table = paired_rope_table(S, 128, 1e6, device)
    op_benchmark(paired_rope, x, table, reference=paired_rope_reference, backend=backend, bytes=2 * x.nbytes)
