"""The soak test, in a process whose memory is its own: see tests/soak.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# Large pieces of memory go back to the system when they are freed: RSS is what is held, not what is scattered.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576", "MALLOC_ARENA_MAX": "1"}


@pytest.mark.slow
def test_two_hundred_mixed_requests(tiny, tune, tmp_path, offline):
    """Each ends as it has to, and after the first round memory grows by less than 2 %."""
    np.save(tmp_path / "tune.npy", tune)
    (folder := tmp_path / "songs").mkdir()
    ran = subprocess.run(
        [sys.executable, "-m", "tests.soak", tiny, tmp_path / "tune.npy", folder],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **MALLOC, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    warm, *later = map(int, ran.stdout.split())
    assert len(later) == 3 and max(later) < 1.02 * warm
