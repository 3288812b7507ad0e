"""The levels of instructions that this CPU and the extension have, for tests that run at each."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch  # noqa: F401  comes first, with the OpenMP that the extension takes

NAMES = ("portable", "avx2", "avx512", "bf16", "amx")


def extension():
    """``acefast._cpu``, or a skip that says why there is none."""
    return pytest.importorskip("acefast._cpu", reason="acefast was installed without its C++ kernels for the CPU")


def openmp_libraries() -> list[str]:
    """Paths of the OpenMP libraries in this process: torch's, which the extension shares, and other packages'."""
    paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    return sorted(path for path in paths if re.match(r"lib[gi]?omp[-.\d]", Path(path).name))


def called(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """Python code in a process of its own, where a source tree does not hide the package that is installed."""
    env = {**os.environ, **environment}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=Path(__file__).parent, env=env, capture_output=True, text=True)


@contextlib.contextmanager
def at_isa(name: str) -> Iterator[None]:
    """Within the block the extension uses instructions up to ``name``; skips where they are not here."""
    cpu = extension()
    if NAMES.index(name) > NAMES.index(cpu.supported()):
        pytest.skip(f"this CPU, or the compiler, has no {name}")
    before = cpu.isa()
    cpu.limit_isa(name)
    try:
        yield
    finally:
        cpu.limit_isa(before)
