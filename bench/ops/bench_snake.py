"""Speed of acefast.ops.snake: the decoder's last layer, 48 kHz and 128 channels."""

from __future__ import annotations

import pytest
import torch

from acefast.guarded import with_guards
from acefast.ops.snake import snake, snake_reference


@pytest.mark.parametrize("seconds", (1, 10))
def bench_snake(op_benchmark, device, dtype, backend, seconds):
    C, L = 128, 48_000 * seconds
    x = torch.randn(1, L, C, device=device, dtype=dtype)
    alpha, inv_beta = (torch.rand(C, device=device) + 0.5 for _ in range(2))
    guards = backend == "triton"  # where the kernel has them
    rows = with_guards(x) if guards else x
    moved = 2 * x.nbytes
    op_benchmark(snake, rows, alpha, inv_beta, guarded=guards, reference=snake_reference, backend=backend, bytes=moved)
