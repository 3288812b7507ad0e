"""Launches of CUDA kernels in a dry run: compiled by nvcc, recorded and checked beside those of Triton."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.backends import BackendUnavailable
from acefast.cuda import loader, toolkit
from acefast.cuda.toolkit import CompileError
from acefast.ops.qk_norm_rope import qk_norm_rope
from acefast.sim.driver import BLOCK_SHARED_LIMIT, dry_run
from acefast.sim.graph import check_step
from acefast.sim.resources import read_kernel

pytestmark = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")


def rows(device="meta", L=100):
    """8 heads of queries and 8 of keys."""
    qkv = torch.zeros(1, L, 24 * 128, dtype=torch.bfloat16, device=device)
    return qkv, *torch.ones(2, 128, dtype=torch.bfloat16, device=device), None, None, 8, 8


def test_both_families_are_recorded_in_the_order_of_their_launches_and_not_run():
    with dry_run(90) as launches:
        for backend in ("cuda", "triton", "cuda"):
            qk_norm_rope(*rows(), backend=backend)
    assert [one.name for one in launches] == ["qk_norm_rope_h4_bf16", "_qk_norm_rope", "qk_norm_rope_h4_bf16"]
    one = launches[0]
    assert (one.sm, one.grid, one.num_warps, one.shared_bytes) == (90, (13, 4, 1), 4, 0)
    assert ".target sm_90" in one.ptx and read_kernel(one.kernel).name == "qk_norm_rope_h4_bf16"
    assert [a.type for a in one.arguments.values()] == list("ppppppiillllllf") and one.arguments[
        "argument 6"
    ].value == 100
    assert one.arguments["argument 0"].shape == (1, 100, 3072)


def test_a_graph_check_is_told_of_them():
    given = rows()
    with dry_run(80):
        assert check_step(lambda: qk_norm_rope(*given, backend="cuda")).launches["qk_norm_rope_h4_bf16"] == 1


def test_they_run_in_a_dry_run_only():
    with dry_run(80):
        qk_norm_rope(*rows("cpu"), backend="cuda")
    assert not loader.recording()
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match="qk_norm_rope: backend='cuda' cannot run: "):
            qk_norm_rope(*rows("cpu"), backend="cuda")


ENTRY, TYPES = "qk_norm_rope_h4_bf16", "ppppppiillllllf"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"types": TYPES.replace("ii", "il")},
            rf"{ENTRY}: takes lllllliillllllf \(a pointer is an l\), and is launched with ppppppilllllllf",
        ),
        ({"types": TYPES.replace("ii", "ll")}, "is launched with ppppppllllllllf"),
        ({"types": TYPES.replace("f", "i")}, "is launched with ppppppiilllllli"),
        (
            {"entry": "qk_norm_rope_fp64"},
            "qk_norm_rope: it has no entry point 'qk_norm_rope_fp64'; it has qk_norm_rope_h4_",
        ),
        ({"S": 2**31}, f"{ENTRY}: 2147483648 is no int32"),
        ({"shared": BLOCK_SHARED_LIMIT[80] + 1}, f"{ENTRY}: out of resource: 166913 bytes of shared memory, a block"),
    ],
)
def test_what_a_gpu_would_not_notice_or_refuse_is_refused(change, told):
    given = {"entry": ENTRY, "types": TYPES, "S": 100, "shared": 1024, **change}
    values = (*(None,) * 6, given["S"], 8, *(0,) * 6, 1e-6)
    with dry_run(80) as launches, pytest.raises(CompileError, match=told):
        loader.launch("qk_norm_rope", given["entry"], (1, 1, 1), 128, given["shared"], values, given["types"])
    assert not launches


def test_grids_are_held_to_the_hardwares_limits_and_empty_ones_launch_nothing():
    with dry_run(80) as launches:
        loader.launch("qk_norm_rope", ENTRY, (0, 1, 1), 256, 0, (), "")
        with pytest.raises(ValueError, match=rf"{ENTRY}: grid must be at most .*, got \(1, 70000, 1\)"):
            loader.launch("qk_norm_rope", ENTRY, (1, 70_000, 1), 256, 0, (), "")
    assert not launches
