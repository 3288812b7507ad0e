"""Speed of acefast.ops.philox: the initial noise of a song."""

from __future__ import annotations

import pytest

from acefast.ops.philox import philox_normal, philox_normal_reference


@pytest.mark.parametrize("seconds", (10, 60, 600))
def bench_philox(op_benchmark, device, backend, seconds):
    elements = 25 * seconds * 64  # 25 latent frames a second, 64 channels
    op_benchmark(
        philox_normal,
        [42],
        (25 * seconds, 64),
        device=device,
        reference=philox_normal_reference,
        backend=backend,
        bytes=4 * elements,  # the values written; there is nothing to read
    )
