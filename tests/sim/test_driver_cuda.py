"""Launches of CUDA kernels in a dry run: compiled by nvcc, recorded and checked beside those of Triton."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.backends import BackendUnavailable
from acefast.cuda import loader, toolkit
from acefast.cuda.toolkit import CompileError
from acefast.ops.snake import snake
from acefast.sim.driver import BLOCK_SHARED_LIMIT, dry_run
from acefast.sim.graph import check_step
from acefast.sim.resources import read_kernel

pytestmark = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")


def rows(device="meta", L=100):
    return torch.empty(1, L, 128, dtype=torch.bfloat16, device=device), *torch.ones(2, 128, device=device)


def test_both_families_are_recorded_in_the_order_of_their_launches_and_not_run():
    with dry_run(90) as launches:
        for backend in ("cuda", "triton", "cuda"):
            snake(*rows(), backend=backend)
    assert [one.name for one in launches] == ["snake_bf16", "_snake", "snake_bf16"]
    one = launches[0]
    assert (one.sm, one.grid, one.num_warps, one.shared_bytes) == (90, (2, 1, 1), 8, 1024)
    assert ".target sm_90" in one.ptx and read_kernel(one.kernel).name == "snake_bf16"
    assert [a.type for a in one.arguments.values()] == list("pppplii") and one.arguments["argument 4"].value == 100
    assert one.arguments["argument 0"].shape == (1, 164, 128)


def test_a_graph_check_is_told_of_them():
    given = rows()
    with dry_run(80):
        assert check_step(lambda: snake(*given, backend="cuda")).launches["snake_bf16"] == 1


def test_they_run_in_a_dry_run_only():
    with dry_run(80):
        snake(*rows("cpu"), backend="cuda")
    assert not loader.recording()
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match="snake: backend='cuda' cannot run: "):
            snake(*rows("cpu"), backend="cuda")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"types": "pppplli"}, r"snake_bf16: takes llll?lii \(a pointer is an l\), and is launched with pppplli"),
        ({"types": "ppppiii"}, "is launched with ppppiii"),
        ({"types": "pppplif"}, "is launched with pppplif"),
        ({"entry": "snake_fp64"}, "snake: it has no entry point 'snake_fp64'; it has snake_bf16, "),
        ({"C": 2**31}, "snake_bf16: 2147483648 is no int32"),
        ({"shared": BLOCK_SHARED_LIMIT[80] + 1}, "snake_bf16: out of resource: 166913 bytes of shared memory, a block"),
    ],
)
def test_what_a_gpu_would_not_notice_or_refuse_is_refused(change, told):
    given = {"entry": "snake_bf16", "types": "pppplii", "C": 128, "shared": 1024, **change}
    values = (None, None, None, None, 100, given["C"], 32)
    with dry_run(80) as launches, pytest.raises(CompileError, match=told):
        loader.launch("snake", given["entry"], (1, 1, 1), 256, given["shared"], values, given["types"])
    assert not launches


def test_grids_are_held_to_the_hardwares_limits_and_empty_ones_launch_nothing():
    with dry_run(80) as launches:
        loader.launch("snake", "snake_bf16", (0, 1, 1), 256, 0, (), "")
        with pytest.raises(ValueError, match=r"snake_bf16: grid must be at most .*, got \(1, 70000, 1\)"):
            loader.launch("snake", "snake_bf16", (1, 70_000, 1), 256, 0, (), "")
    assert not launches
