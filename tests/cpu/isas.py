"""The levels of instructions that this CPU and the extension have, for tests that run at each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

NAMES = ("portable", "avx2", "avx512", "bf16", "amx")


def extension():
    """``acefast._cpu``, or a skip that says why there is none."""
    return pytest.importorskip("acefast._cpu", reason="acefast was installed without its C++ kernels for the CPU")


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
