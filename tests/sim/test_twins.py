"""The table of kernels that exist twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from acefast.cases import all_cases
from acefast.sim import twins
from acefast.sim.study import blocks_per_sm


@pytest.mark.parametrize(
    "sm, warps, registers, shared, held",
    [
        (80, 4, 224, 79360, 2),  # shared memory
        (80, 4, 128, 1024, 4),  # registers
        (86, 4, 224, 79360, 1),
        (86, 8, 32, 1024, 6),  # threads
    ],
)
def test_blocks_on_a_multiprocessor(sm, warps, registers, shared, held):
    launch = SimpleNamespace(sm=sm, num_warps=warps, shared_bytes=shared)
    assert blocks_per_sm(launch, registers) == held


def test_the_committed_table_has_every_twin_there_is():
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    text = (Path(__file__).parents[2] / "csrc/twins.md").read_text()
    assert text.startswith(twins.HEAD)
    theirs = {case.name for case in all_cases()}
    lines = [line.split(" | ")[:2] for line in text.removeprefix(twins.HEAD).strip().splitlines()]
    names = [case.name for case in all_cases("cuda") if case.name in theirs]
    assert lines == [[f"| {name}", family] for name in names for family in ("Triton", "CUDA")]
